"""Take out what an evaluating network computes for nothing: dropout, masks of ones, counters, detaches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode

_ATEN = torch.ops.aten
_SAME = {_ATEN.detach.default, _ATEN.alias.default}
_DROPOUTS = {
    op: names.index("train")
    for op in (
        *(_ATEN.dropout.default, _ATEN.dropout_.default, _ATEN.feature_dropout.default, _ATEN.feature_dropout_.default),
        *(_ATEN.alpha_dropout.default, _ATEN.alpha_dropout_.default),
        *(_ATEN.feature_alpha_dropout.default, _ATEN.feature_alpha_dropout_.default),
    )
    for names in [[argument.name for argument in op._schema.arguments]]
}
_FILLED = {_ATEN.fill_.Scalar, _ATEN.full_like.default, _ATEN.zeros.default, _ATEN.zeros_like.default}
_TIMES = {_ATEN.mul.Tensor, _ATEN.mul_.Tensor}
_OVER = {_ATEN.div.Tensor, _ATEN.div_.Tensor}
_PLUS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}


def simplify(graph: Graph) -> Graph:
    """A graph of the same values in evaluation, without what only training needs; it cannot be trained as before.

    Dropout and detach nodes, random masks that became a constant (drop path), counts of batches and
    nodes that nothing reads are removed. Parameters that nothing reads any more go with them.
    """
    fresh = set_mode(graph.copy(), False)
    for node in list(fresh.nodes()):
        dropped = node.target in _DROPOUTS and not node.args[_DROPOUTS[node.target]]
        counter = node.target is _ATEN.add_.Tensor and node.args[1] == 0 and "train" in node.meta
        if dropped or counter or node.target in _SAME:
            node.replace_all_uses_with(node.all_input_nodes[0])
            fresh.net.graph.erase_node(node)
    _remove_masks(fresh)
    return pruned(fresh)


def pruned(graph: Graph) -> Graph:
    """The graph without nodes, parameters and buffers that nothing reads. Its nodes are edited in place."""
    graph.net.graph.eliminate_dead_code(_acts)
    for node in list(graph.net.graph.find_nodes(op="get_attr")):
        if not node.users:
            graph.net.graph.erase_node(node)
    net = GraphModule(graph.net, graph.net.graph)  # takes along only what the nodes name
    net.training = graph.net.training
    kept = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return replace(
        graph,
        net=net,
        tied=tuple(pair for pair in graph.tied if pair[1] in kept),
        unsaved=tuple(name for name in graph.unsaved if name in kept),
    )


def _acts(node: Node) -> bool:
    """Whether a node matters though nothing reads it; a random number does not."""
    written = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return node.op in ("placeholder", "output", "call_module") or written


def _remove_masks(graph: Graph) -> None:
    """Multiply, divide and add by the number that a mask is full of; a one or a zero then disappears."""
    full: dict[Node, float] = {}
    for node in list(graph.nodes()):
        value = _filled(node, full)
        if value is not None:
            full[node] = value
            continue
        left, right = (*node.args[:2], None, None)[:2]
        if node.target in (_TIMES | _PLUS | _OVER) and len(node.args) == 2 and not node.kwargs:
            if isinstance(right, Node) and right in full and _shape(left) == _shape(node):
                _apply(graph, node, left, full[right])
            elif isinstance(left, Node) and left in full and _shape(right) == _shape(node) and node.target not in _OVER:
                _apply(graph, node, right, full[left])
    for node in reversed(list(full)):
        if not node.users:
            graph.net.graph.erase_node(node)


def _filled(node: Node, full: dict[Node, float]) -> float | None:
    """The number that all elements of a node's tensor are, where a training-only mask makes it so."""
    if node.target in _FILLED and "train" in node.meta:
        return 0.0 if node.target in (_ATEN.zeros.default, _ATEN.zeros_like.default) else float(str(node.args[1]))
    left, right = (*node.args[:2], None, None)[:2]
    if isinstance(left, Node) and left in full and isinstance(right, (int, float)):
        if node.target in _TIMES:
            return full[left] * right
        if node.target in _OVER:
            return full[left] / right
    return None


def _apply(graph: Graph, node: Node, other: Any, value: float) -> None:
    neutral = 0.0 if node.target in _PLUS else 1.0
    # drop path divides the branch by what it keeps, and its mask multiplies by the same
    undone = isinstance(other, Node) and node.target in _TIMES and other.target in _OVER and other.args[1] == value
    if value == neutral or undone:
        node.replace_all_uses_with(other.args[0] if undone else other)
        graph.net.graph.erase_node(node)
    else:
        node.args = (other, value)


def _shape(value: Any) -> Any:
    return value.meta["val"].shape if isinstance(value, Node) else None
