"""Attention: where tokens look at each other in a captured network, by one operator or by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from trimtab.graph.model import Graph
from trimtab.graph.splice import alone

_ATEN = torch.ops.aten
_WHOLE = _ATEN.scaled_dot_product_attention.default
_SOFTMAX = (_ATEN.softmax.int, _ATEN._softmax.default)
_PRODUCTS = (_ATEN.matmul.default, _ATEN.bmm.default)
_SCALED = (
    *(_ATEN.mul.Tensor, _ATEN.mul_.Tensor, _ATEN.div.Tensor, _ATEN.div_.Tensor, _ATEN.add.Tensor, _ATEN.add_.Tensor),
    *(_ATEN.masked_fill.Scalar, _ATEN.masked_fill_.Scalar, _ATEN.where.self, _ATEN.where.ScalarOther),
    *(_ATEN.where.ScalarSelf, _ATEN._to_copy.default, _ATEN.to.dtype, _ATEN.expand.default, _ATEN.reshape.default),
)
"""What may stand between the products of queries with keys and their softmax."""


_NEVER = -1e4
"""A score that is lowered by as much has no share."""


@dataclass(frozen=True)
class Mixer:
    """Attention in which every token sees all others, or all before it, whatever the input is.

    Args:
        name: of the module that it is in.
        node: that gives the mixed values.
        inputs: names of the nodes of values, queries and keys.
        nodes: names of the operator nodes that only the shares need, with what makes queries and keys.
        width: of a query.
        causal: tokens see those before them only.
        transposed: keys come as [..., width, tokens].
    """

    name: str
    node: Node
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]
    width: int
    causal: bool
    transposed: bool = False


def mixers(graph: Graph) -> Iterator[Mixer]:
    """The attention of a graph, in graph order; with masks that depend on the input, it is not among them."""
    for node in graph.nodes():
        found = _whole(graph, node) if node.target is _WHOLE else _by_hand(graph, node)
        if found is not None and node.meta["val"].ndim in (3, 4):
            yield found


def _whole(graph: Graph, node: Node) -> Mixer | None:
    q, k, v = node.args[:3]
    assert isinstance(q, Node)
    assert isinstance(k, Node)
    assert isinstance(v, Node)
    given = dict(zip(("mask", "dropout", "causal"), node.args[3:], strict=False))
    mask = given.get("mask", node.kwargs.get("attn_mask"))
    causal = bool(given.get("causal", node.kwargs.get("is_causal", False)))
    if isinstance(mask, Node):
        looked = _looks(_value(graph, mask), masks=True) if constant(mask) else None
        if looked is None:
            return None
        causal = looked
    if k.meta["val"].shape[:-1] != v.meta["val"].shape[:-1] or v.meta["val"].shape != node.meta["val"].shape:
        return None  # fewer heads of keys, or tokens that look at others' values
    return Mixer(_name(graph, node), node, (v.name, q.name, k.name), _alone(node, v), _width(q), causal)


def _by_hand(graph: Graph, node: Node) -> Mixer | None:
    """matmul, a scale and perhaps a mask, softmax, matmul."""
    if node.target not in _PRODUCTS or not all(isinstance(a, Node) for a in node.args[:2]):
        return None
    shares, v = node.args[:2]
    while isinstance(shares, Node) and shares.target in (_ATEN.dropout.default, _ATEN._to_copy.default):
        shares = shares.args[0]
    if not isinstance(shares, Node) or shares.target not in _SOFTMAX or len(shares.users) > 1:
        return None
    if v.meta["val"].shape != node.meta["val"].shape:  # type: ignore[union-attr]
        return None
    scores = _scores(shares)
    causal = _looks(_value(graph, shares), masks=False) if scores is not None else None
    if scores is None or causal is None:
        return None
    q, k = scores.args[:2]
    assert isinstance(q, Node)
    assert isinstance(k, Node)
    assert isinstance(v, Node)
    names = (v.name, q.name, k.name)
    return Mixer(_name(graph, node), node, names, _alone(node, v), _width(q), causal, transposed=True)


def _width(query: Node) -> int:
    return int(query.meta["val"].shape[-1])


def _alone(node: Node, values: Node) -> tuple[str, ...]:
    """The names of a node and of the operators that only it needs, up to its values, in order."""
    found = alone(node, [values])
    return tuple(n.name for n in node.graph.nodes if n in found and n.op == "call_function")


def _scores(softmax: Node) -> Node | None:
    """The product of queries and keys that a softmax is of; None where more than constants are done to it."""
    node: Any = softmax.args[0]
    while isinstance(node, Node) and len(node.users) == 1:
        if node.target in _PRODUCTS:
            return node if all(isinstance(a, Node) for a in node.args[:2]) else None
        moving = [n for n in node.all_input_nodes if not constant(n)]
        if node.target not in _SCALED or len(moving) != 1:
            return None
        node = moving[0]
    return None


def constant(node: Node) -> bool:
    """Whether a node's value does not depend on what the inputs hold, but at most on their sizes."""
    seen: set[Node] = set()
    queue = [node]
    while queue:
        each = queue.pop()
        if each.op == "placeholder":
            return False
        if each not in seen and each.target not in (_ATEN.sym_size.int, _ATEN.sym_numel.default):
            seen.add(each)
            queue += each.all_input_nodes
    return True


def _value(graph: Graph, node: Node) -> Tensor:
    """A node's value on random inputs."""

    class Until(Interpreter):
        found: Tensor

        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n is node:
                self.found = value.clone()
            return value

    run = Until(graph.net, garbage_collect_values=True)
    with torch.no_grad():
        run.run(*graph.example())
    return run.found


def _looks(value: Tensor, masks: bool) -> bool | None:
    """Whether tokens see those before them only (True), or all (False), by a mask or by shares; None for neither."""
    if value.shape[-1] != value.shape[-2]:
        return None
    seen = value if value.dtype is torch.bool else value > (_NEVER if masks else 0.0)
    lower = torch.ones(value.shape[-2:], dtype=torch.bool, device=value.device).tril()
    if bool(seen.all()):
        return False
    return True if bool((seen == lower).all()) else None


def _name(graph: Graph, node: Node) -> str:
    """The module around the first linear layer that the mixed values reach; the node's own name where there is none."""
    at = node
    for _ in range(8):
        reader = next(iter(at.users), None)
        if reader is None:
            break
        if reader.target in (_ATEN.linear.default, _ATEN.addmm.default, _ATEN.mm.default):
            weights = [n for n in reader.all_input_nodes if n.op == "get_attr" and n.meta["val"].ndim == 2]
            layer = str(weights[0].target).rpartition(".")[0] if weights else ""
            return layer.rpartition(".")[0] or node.name
        at = reader
    return node.name
