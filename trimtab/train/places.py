"""Places: at which nodes two networks are compared, found by themselves or by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.core.errors import InputError
from trimtab.graph.model import EXAMPLE_BATCH, Graph

aten = torch.ops.aten
_JOINS = (aten.add.Tensor, aten.add_.Tensor)
_ACTIVATIONS = (aten.relu.default, aten.relu_.default, aten.silu.default, aten.gelu.default, aten.hardswish.default)
_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm")
_LAST = ("linear", "layer_norm", "rms_norm")
MOST = 8
"""Places that are compared: more cost memory and teach little new."""
_FEW = 4
"""Places in networks that have one stage only, such as transformers."""

T = TypeVar("T")
Pair = tuple[Node, Node]
"""A node of the student and the teacher's that it is compared with."""


def places(student: Graph, teacher: Graph, most: int = MOST) -> tuple[str, ...]:
    """Names of the nodes at which a cut network can be compared with its original as it is, in order.

    They are the results of residual additions, behind their activation, or of activations where there is
    no addition; of those, the ones that have the same name, operator and shape in both, evenly spread, the
    last one always among them.
    """
    theirs = {node.name: node for node in teacher.nodes()}

    def shared(node: Node) -> bool:
        other = theirs.get(node.name)
        return other is not None and other.target == node.target and shape(other) == shape(node)

    joins = [_behind(n) for n in student.nodes(*_JOINS) if all(isinstance(a, Node) for a in n.args[:2])]
    found = [n for n in dict.fromkeys(joins) if len(shape(n)) > 2 and shared(n)]
    if not found:
        found = [n for n in student.nodes(*_ACTIVATIONS) if len(shape(n)) > 2 and shared(n)]
    return tuple(node.name for node in (_spread(found, most) if len(found) > most else found))


def pairs(student: Graph, teacher: Graph) -> tuple[Pair, ...]:
    """Where two networks are compared if nothing is said, from the first to the last.

    One that was made from the other (cut, quantised, with blocks removed) is compared at the nodes both have. Other
    networks at the ends of their stages, which are the runs of additions (or activations) of one spatial size: in
    order where both have as many, else where the sizes agree. In networks of one stage places are evenly spread
    over the depth.

    Raises:
        InputError: there is nothing that could be compared.
    """
    mine, theirs = _candidates(student), _candidates(teacher)
    weights = (_weights(student), _weights(teacher))
    known = {node.name: node for node in teacher.nodes()}
    alike = [(n, known[n.name]) for n in mine if n.name in known and known[n.name].target == n.target]
    last = bool(mine) and bool(theirs) and mine[-1].name == theirs[-1].name  # else a first part of the other
    akin = last and len(alike) == len(mine) and all(_reads(a, weights[0]) & _reads(b, weights[1]) for a, b in alike)
    found = _spread(alike, MOST) if akin and len(alike) > MOST else alike if akin else _matched(mine, theirs)
    found = [(a, b) for a, b in found if len(shape(a)) == len(shape(b))]
    if not found:
        raise InputError(
            "distil: no places were found at which both networks could be compared",
            got=f"{len(mine)} in the student, {len(theirs)} in the teacher",
            do='Name them: places={"student\'s layer": "teacher\'s layer"}.',
        )
    return tuple(found)


def given(student: Graph, teacher: Graph, names: Mapping[str, str]) -> tuple[Pair, ...]:
    """The pairs of places that names stand for.

    Raises:
        InputError: there is no such node or layer, or none is named.
    """
    if not names:
        raise InputError("distil: places", got="none", expected="one pair at least, or places left out")
    return tuple((_named(student, a, "student"), _named(teacher, b, "teacher")) for a, b in names.items())


def embedding(graph: Graph) -> Node:
    """What the last linear layer reads, or the last place of a network without one."""
    for node in reversed(list(graph.nodes(aten.linear.default))):
        source = node.args[0]
        if isinstance(source, Node) and source.op == "call_function" and _comparable(source, 2):
            return source
    found = _candidates(graph)
    if not found:
        raise InputError("distil: the network has no place that could be compared", do="Name one: places={...}.")
    return found[-1]


def shape(node: Node) -> tuple[int, ...]:
    """Of a node's value; empty where it is no tensor."""
    value = node.meta.get("val")
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()


def channels(node: Node) -> int:
    """The dimension of a node's channels: 1 behind convolutions, the last one behind linear layers."""
    last = len(shape(node)) - 1
    seen, ring = {node}, [node]
    while ring and last > 1:
        for each in ring:
            name = str(each.target).removeprefix("aten.")
            if name.startswith(_FIRST):
                return 1
            if name.startswith(_LAST):
                return last
        ring = [a for a in dict.fromkeys(a for n in ring for a in n.all_input_nodes) if a not in seen]
        seen.update(ring)
    return 1 if last != 2 else last


def moved_by_folding(node: Node, folded: Graph) -> bool:
    """Whether a node has another value, or is gone, once batch norms are folded into the layers before them."""
    left = {n.name for n in folded.nodes()}
    norms = {user.name for user in node.users if user.target is aten.batch_norm.default}
    return node.name not in left or bool(norms - left)


def _candidates(graph: Graph) -> list[Node]:
    """Residual additions behind their activations, or activations; images and sequences before plain vectors."""
    joins = [_behind(n) for n in graph.nodes(*_JOINS) if _adds_alike(n)]
    for least in (3, 2):
        for kind in (joins, graph.nodes(*_ACTIVATIONS)):
            found = [n for n in dict.fromkeys(kind) if _comparable(n, least)]
            spatial = [n for n in found if any(size > 1 for size in _size(n))]
            if found:
                return spatial or found
    return []


def _adds_alike(node: Node) -> bool:
    sizes = {shape(a) if isinstance(a, Node) and a.op != "get_attr" else () for a in node.args[:2]}
    return sizes == {shape(node)}


def _comparable(node: Node, least: int) -> bool:
    value = node.meta.get("val")
    floats = isinstance(value, Tensor) and value.dtype.is_floating_point
    return floats and len(shape(node)) >= least and shape(node)[0] == EXAMPLE_BATCH


def _size(node: Node) -> tuple[int, ...]:
    """The spatial size: the shape without batch and channels."""
    axis = channels(node)
    return tuple(n for i, n in enumerate(shape(node)) if i not in (0, axis))


def _matched(mine: Sequence[Node], theirs: Sequence[Node]) -> list[Pair]:
    a, b = _ends(mine), _ends(theirs)
    if len(a) == len(b) == 1:
        count = min(len(mine), len(theirs), _FEW)
        return list(zip(_spread(mine, count), _spread(theirs, count), strict=True))
    if len(a) == len(b):
        return list(zip(a, b, strict=True))
    match = difflib.SequenceMatcher(None, [_size(n) for n in a], [_size(n) for n in b], autojunk=False)
    found = [(a[m.a + i], b[m.b + i]) for m in match.get_matching_blocks() for i in range(m.size)]
    return found or list(zip(a[-1:], b[-1:], strict=False))


def _ends(found: Sequence[Node]) -> list[Node]:
    """The last one of each run of one spatial size."""
    following = [*found[1:], None]
    return [n for n, after in zip(found, following, strict=True) if after is None or _size(after) != _size(n)]


def _spread(found: Sequence[T], most: int) -> list[T]:
    return [found[round((i + 1) * len(found) / most) - 1] for i in range(most)]


def _weights(graph: Graph) -> set[str]:
    return {name for name, _ in graph.net.named_parameters()}


def _reads(node: Node, weights: set[str]) -> set[str]:
    """The layers whose parameters are nearest before a node."""
    seen, ring = {node}, [node]
    while ring:
        near = {a for n in ring for a in n.all_input_nodes}
        found = {str(a.target).rpartition(".")[0] for a in near if a.op == "get_attr" and str(a.target) in weights}
        if found:
            return found
        ring = list(near - seen)
        seen |= near
    return set()


def _named(graph: Graph, name: str, whose: str) -> Node:
    nodes = [n for n in graph.nodes() if _comparable(n, 2)]
    exact = next((n for n in nodes if n.name == name), None)
    if exact is not None:
        return exact
    layers = _layers(graph)
    within = [n for n in nodes if any(str(a.target).startswith(f"{name}.") for a in _attributes(n))]
    if not within:
        near = difflib.get_close_matches(name, layers, 1)
        raise InputError(
            f"distil: places: the {whose} has no layer or node {name!r}",
            expected=f"one such as {', '.join(layers[:: max(len(layers) // 4, 1)][:5])}",
            do=f"Did you mean {near[0]}?" if near else None,
        )
    node = within[-1]
    while (after := _follows(node)) is not None:
        node = after
    return node


def _layers(graph: Graph) -> list[str]:
    """Names of layers and of the parts that hold them."""
    found: dict[str, None] = {}
    for name, _ in graph.net.named_parameters():
        parts = name.split(".")[:-1]
        found |= {".".join(parts[: i + 1]): None for i in range(len(parts))}
    return list(found)


def _attributes(node: Node) -> Iterable[Node]:
    return (a for a in node.all_input_nodes if a.op == "get_attr")


def _follows(node: Node) -> Node | None:
    """The norm, addition or activation which alone reads a node's value."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) > 1:
        return None
    plain = user.target in (*_JOINS, *_ACTIVATIONS, aten.batch_norm.default)
    return user if plain and shape(user) == shape(node) else None


def _behind(node: Node) -> Node:
    """The activation behind a node where that is all that reads it, else the node."""
    user = next(iter(node.users), None)
    return user if user is not None and len(node.users) == 1 and user.target in _ACTIVATIONS else node
