"""Moments: what an error in each weight costs, from the inputs that a layer reads on calibration data."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from trimtab.compress.quantise.gptq import hessian_of
from trimtab.compress.quantise.layer import layer_of
from trimtab.compress.quantise.staged import Staged, chunks
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.graph.model import Graph
from trimtab.train.data import checked

_SAMPLES = 256
"""Calibration samples, at most."""
_DAMPING = 0.01
"""Of the mean of the diagonal, added to it."""


def hessians(graph: Graph, context: Context, names: Collection[str]) -> dict[str, Tensor]:
    """E[x x^T] over the inputs of each layer, [n, n], n the weights of one output channel, damped.

    Layers of several groups, transposed ones and embeddings have none.

    Raises:
        InputError: there is no calibration data.
    """
    if not context.calibrate:
        raise InputError("Share: weighted: no data", do="Give calibrate= or train= to the Task.")
    inputs = [checked(batch, graph, "calibrate")[0] for batch in context.calibrate]
    state = Staged(graph, chunks(graph, inputs, _SAMPLES, context.seed))
    tensors, found = graph.tensors(), {}
    for node in state.nodes:
        layer = layer_of(node, tensors)
        if layer is None or layer.weight not in names or layer.groups > 1 or layer.flipped:
            continue
        state.advance(state.place[node])
        weight = tensors[layer.weight].detach()
        source = node.args[layer.data]
        total = hessian_of(node, [values[source] for values in state.values], weight)[0]
        scale = float(total.diagonal().mean()) or 1.0
        found[layer.weight] = total / scale + _DAMPING * torch.eye(len(total), dtype=total.dtype)
    return found
