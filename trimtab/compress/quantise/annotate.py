"""Annotate: which tensors are quantised, and which of them share a scale, so that the runtime fuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.fx import Node

from trimtab.core.errors import InputError
from trimtab.graph.model import Graph
from trimtab.run.fusable import INTEGER, IntegerSupport, Weighted

_ATEN = torch.ops.aten
_NEVER = ("conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "addmm", "bilinear", "lstm", "gru")
"""Layers with weights that a runtime may have no integer kernel for."""


@dataclass(frozen=True)
class Annotation:
    """What to quantise in a graph.

    Args:
        weights: for each quantised weight's name, its output-channel dimension.
        names: for each quantised weight's name, the user's name of its layer.
        layers: the operator nodes that use these weights.
        tensors: for each quantised activation's node name, the name of the one whose range it shares
            (its own where it shares none), in graph order.
        floats: for each weighted layer left in floating point, the reason.
        unfused: names of operators on the way that the runtime runs in floating point, with a count.
        readers: for a quantised tensor that is computed in floating point and that floating point reads too (the
            input of a transformer's layers, say), the nodes that read its levels; the others read what was computed.
    """

    weights: Mapping[str, int]
    names: Mapping[str, str]
    layers: tuple[str, ...]
    tensors: Mapping[str, str]
    floats: Mapping[str, str]
    unfused: Mapping[str, int]
    readers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def annotate(
    graph: Graph,
    skip: Sequence[str] = (),
    support: IntegerSupport = INTEGER,
    left: Mapping[str, str] | None = None,
) -> Annotation:
    """Choose what is quantised: exactly what the runtime then runs in integers.

    A tensor is quantised where a convolution or linear layer reads it, behind every convolution (its
    fused activation included), and around a residual addition or concatenation whose inputs are all
    quantised anyway. What only moves values (pooling by maximum, reshape, slice, padding by zero)
    shares its input's scale.

    Args:
        graph: evaluating, batch norm folded.
        skip: names of layers to leave in floating point: exact, a prefix, or a pattern.
        support: what the runtime fuses.
        left: exact names of more layers to leave, each with the reason.

    Raises:
        InputError: an entry of `skip` fits no layer.
    """
    layers, floats = _layers(graph, skip, support, left or {})
    wanted = _wanted(graph, layers, support)
    order = [n for n in graph.net.graph.nodes if n in wanted]
    weights = {_weight(n, kind): kind.axis for n, kind in layers.items()}
    shared = _shared(order, wanted, support)
    return Annotation(
        weights,
        {_weight(n, kind): layer_name(graph, n) for n, kind in layers.items()},
        tuple(n.name for n in layers),
        {n.name: shared[n].name for n in order},
        floats,
        _unfused(graph, wanted, layers, support),
        {} if support.whole else _readers(graph, wanted, layers, support),
    )


def fits(name: str, pattern: str) -> bool:
    """Whether an entry of `skip` or `layers` means a layer: its exact name, a prefix, or a pattern."""
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def layer_name(graph: Graph, node: Node) -> str:
    """The user's name of the layer that a node computes: its weight's module, or the node's own name."""
    for arg in node.args[1:]:
        if isinstance(arg, Node) and arg.op == "get_attr":
            return str(arg.target).rpartition(".")[0] or str(arg.target)
    return node.name


def _weight(node: Node, kind: Weighted) -> str:
    weight: Any = node.args[kind.weight]
    return str(weight.target)


def _layers(
    graph: Graph, skip: Sequence[str], support: IntegerSupport, left: Mapping[str, str]
) -> tuple[dict[Node, Weighted], dict[str, str]]:
    """Weighted nodes to run in integers, and why the others are not."""
    found: dict[Node, Weighted] = {}
    floats: dict[str, str] = {}
    unused = set(skip)
    for node in graph.nodes():
        kind = support.weighted.get(node.target)
        if kind is None and not _is_weighted(node):
            continue
        name = layer_name(graph, node)
        hit = [s for s in skip if fits(name, s)]
        unused.difference_update(hit)
        if kind is None:
            floats[name] = f"the runtime has no integer {_plain(node)}"
            continue
        reason = f"skip={hit[0]}" if hit else left.get(name) or _obstacle(graph, node, kind, support)
        if reason is None:
            found[node] = kind
        else:
            floats[name] = reason
    if unused:
        raise InputError("Quantise: skip", got=repr(sorted(unused)[0]), expected=f"one of {_some(found, graph)}")
    return found, floats


def _some(found: Mapping[Node, Any], graph: Graph) -> str:
    names = list(dict.fromkeys(layer_name(graph, n) for n in found))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _is_weighted(node: Node) -> bool:
    name = str(node.target)
    return any(name.startswith(f"aten.{op}.") for op in _NEVER)


def _obstacle(graph: Graph, node: Node, kind: Weighted, support: IntegerSupport) -> str | None:
    """Why a weighted node cannot run in integers, or None."""
    weight, source = node.args[kind.weight], node.args[kind.source]
    if any(node.kwargs.get(factor, 1) != 1 for factor in ("alpha", "beta")):
        return "it scales its product or its bias"
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return "its weight is computed in the network"
    for user in weight.users:
        other = support.weighted.get(user.target)
        if other is None or user.args[other.weight] is not weight:
            return f"its weight is also read by {_plain(user)}"
    # several get_attr nodes may read one parameter: a tied embedding
    for twin in graph.net.graph.find_nodes(op="get_attr", target=weight.target):
        for user in twin.users:
            if user.target not in support.weighted:
                return f"its weight is also read by {_plain(user)}"
    if not _is_float(source) or not _is_float(weight):
        return "it does not compute in float32"
    return None


def _plain(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")


def _is_float(value: Any) -> bool:
    found = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(found, torch.Tensor) and found.dtype == torch.float32


def _result(node: Node, support: IntegerSupport) -> Node:
    """What a runtime's kernel writes: the fused activation's result where there is one."""
    users = list(node.users)
    if len(users) == 1 and users[0].target in support.activations and users[0].args[0] is node:
        return users[0]
    return node


def _wanted(graph: Graph, layers: Mapping[Node, Weighted], support: IntegerSupport) -> set[Node]:
    """The activations to quantise, grown until nothing changes."""
    wanted: set[Node] = set()
    for node, kind in layers.items():
        wanted.add(node.args[kind.source])  # type: ignore[arg-type]
        if not kind.float_output:
            wanted.add(_result(node, support))
    size = -1
    while size != len(wanted):
        size = len(wanted)
        for node in graph.nodes():
            inputs = joined(node, support)
            if inputs and all(_natural(i, wanted, support) for i in inputs):
                wanted.update(inputs)
                wanted.add(_result(node, support))
            elif support.whole and _alone(node, wanted, support):
                wanted.update((node.args[0], node))  # type: ignore[arg-type]
    return wanted


def _alone(node: Node, wanted: set[Node], support: IntegerSupport) -> bool:
    """Whether an operator of one tensor, that no layer takes in, reads integers and can give them."""
    source = node.args[0] if node.args else None
    if node.target not in support.units and not (node.target in support.shares and moves(node)):
        return False
    if not isinstance(source, Node) or not (_is_float(source) and _is_float(node)):
        return False
    return _natural(source, wanted, support)


def joined(node: Node, support: IntegerSupport) -> list[Node]:
    """The inputs of an addition or concatenation that could run in integers; none for another node."""
    if node.target in support.joins:
        parts = list(node.args[:2])
        if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
            return []
    elif node.target in support.concats:
        parts = list(node.args[0])  # type: ignore[arg-type]
    else:
        return []
    floats = all(isinstance(p, Node) and p.op != "get_attr" and _is_float(p) for p in parts)
    return parts if floats else []  # type: ignore[return-value]


def moves(node: Node) -> bool:
    """Whether a node's values are its input's, or exact zeros: then both have one scale."""
    if node.target not in (_ATEN.pad.default, _ATEN.constant_pad_nd.default):
        return True
    if node.target is _ATEN.constant_pad_nd.default:
        value = node.args[2] if len(node.args) > 2 else 0
        return bool(value == 0)
    mode = node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else None
    return mode != "constant" or value in (None, 0, 0.0)


def _natural(node: Node, wanted: set[Node], support: IntegerSupport) -> bool:
    """Whether a tensor is quantised anyway, itself or before values were only moved."""
    if support.whole and node.op == "placeholder":
        return True
    while node not in wanted:
        if node.target not in support.shares or not moves(node) or not isinstance(node.args[0], Node):
            return False
        node = node.args[0]
    return True


def _shared(order: Sequence[Node], wanted: set[Node], support: IntegerSupport) -> dict[Node, Node]:
    """For each quantised tensor, the first one of those that share its range."""
    first: dict[Node, Node] = {n: n for n in order}
    place = {n: i for i, n in enumerate(order)}

    def find(node: Node) -> Node:
        while first[node] is not node:
            node = first[node]
        return node

    for a, b in _ties(order, wanted, support):
        a, b = sorted((find(a), find(b)), key=place.__getitem__)
        first[b] = a
    return {n: find(n) for n in order}


def _ties(order: Sequence[Node], wanted: set[Node], support: IntegerSupport) -> Iterator[tuple[Node, Node]]:
    for node in order:
        source = node
        while source.target in support.shares and moves(source) and isinstance(source.args[0], Node):
            source = source.args[0]
            if source in wanted:
                yield node, source
                break
        inputs = joined(node, support) if node.target in support.concats else []
        # a range that others widen below 0 would part a relu from its layer: the runtime fuses it at zero point 0 only
        if len({_positive(part, support) for part in inputs}) == 1:
            yield from ((node, part) for part in inputs if part in wanted)


def _positive(node: Node, support: IntegerSupport) -> bool:
    """Whether a tensor is what a relu gave, possibly moved."""
    while node.target in support.shares and isinstance(node.args[0], Node):
        node = node.args[0]
    clipped = node.target in (_ATEN.hardtanh.default, _ATEN.hardtanh_.default)
    return node.target in support.activations and (not clipped or bool(node.args[1:2] and node.args[1] == 0))


def _unfused(
    graph: Graph, wanted: set[Node], layers: Mapping[Node, Weighted], support: IntegerSupport
) -> dict[str, int]:
    """Operators with floating-point work, other than fused ones, by name."""
    counts: dict[str, int] = {}
    fused = {_result(n, support) for n in (*layers, *(n for n in graph.nodes() if joined(n, support)))}
    for node in graph.nodes():
        inside = node in layers or node in fused or node.target in support.shares or node.op != "call_function"
        inside = inside or (support.whole and node in wanted)
        quantised_join = bool(joined(node, support)) and _result(node, support) in wanted
        if not inside and not quantised_join and _is_float(node):
            counts[_plain(node)] = counts.get(_plain(node), 0) + 1
    return counts


def _readers(
    graph: Graph, wanted: set[Node], layers: Mapping[Node, Weighted], support: IntegerSupport
) -> dict[str, tuple[str, ...]]:
    """Who reads the levels of tensors that floating point makes and floating point reads too.

    What an integer kernel makes has only levels: runtimes fuse no kernel whose result is also read before it is
    quantised.
    """
    kernels = {*layers, *(n for n in graph.nodes() if joined(n, support) and _result(n, support) in wanted)}
    made = kernels | {_result(n, support) for n in kernels}
    passing = support.shares | support.units
    made |= {n for n in wanted if n.target in passing and _natural(n.args[0], wanted, support)}  # type: ignore[arg-type]
    found = {}
    for node in graph.net.graph.nodes:
        if node not in wanted or node in made:
            continue
        readers = tuple(u.name for u in node.users if u in kernels or (u in wanted and u.target in passing))
        if len(readers) < len(node.users):
            found[node.name] = readers
    return found
