"""Recurrent layers: the hidden width is cut in all layers and directions together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.rules.ties import Dims, Labels, Rule, Ties, Value, shape

aten = torch.ops.aten


def recurrent(ties: Ties, node: Node) -> Value:
    """LSTM, GRU and plain recurrent layers: weights (gates x hidden, in) and (gates x hidden, hidden).

    The initial state holds all layers and directions in one tensor, so their hidden units are one.
    """
    args: Any = node.args
    x, state, weights, bias, layers, _, _, both, _ = args
    states: list[Any] = list(state) if isinstance(state, (list, tuple)) else [state]
    directions = 2 if both else 1
    each = len(weights) // (layers * directions)
    hidden = shape(weights[1])[1]
    if each != (4 if bias else 2):
        return _projected(ties, node)
    labels = ties.fresh(hidden)
    source = ties.of(x)[-1]
    for layer in range(layers):
        for direction in range(directions):
            start = (layer * directions + direction) * each
            _cell(ties, node, weights[start : start + each], source, labels)
        source = np.tile(labels, directions)
    for tensor in states:
        ties.tie(labels, ties.of(tensor)[-1], f"{node.name} starts from a state that is left whole")
    result: Dims = (*ties.of(x)[:-1], np.tile(labels, directions))
    return (result, *((None, None, labels),) * len(states))


def _cell(ties: Ties, node: Node, weights: list[Any], source: Labels | None, labels: Labels) -> None:
    gates = shape(weights[0])[0] // len(labels)
    ties.tie(source, ties.of(weights[0])[1], f"{node.name} reads an input that is left whole")
    ties.tie(labels, ties.of(weights[1])[1], "")
    for weight in weights:
        ties.tie(np.tile(labels, gates), ties.of(weight)[0], "")
    ties.produce(weights[0], 0)


def _projected(ties: Ties, node: Node) -> Value:
    for arg in node.all_input_nodes:
        for labels in ties.of(arg):
            ties.pin(labels, f"{node.name} projects its state")
    return tuple((None,) * v.ndim for v in node.meta["val"])


_OPS = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
RULES: dict[Any, Rule] = {op: Rule(recurrent) for op in _OPS}
