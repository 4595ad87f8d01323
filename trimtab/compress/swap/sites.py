"""Sites: the parts of a network that a cheaper kind could stand in for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch.fx import Node

from trimtab.compress.quantise.units import ACTIVATIONS
from trimtab.compress.swap import kinds
from trimtab.compress.swap.attention import mixers
from trimtab.compress.swap.kinds import Form
from trimtab.graph.blocks import Block, blocks
from trimtab.graph.model import Graph
from trimtab.hardware.layer import Layer
from trimtab.run.shapes import Call, calls

_ATEN = torch.ops.aten
_NORM = _ATEN.batch_norm.default
Part = Literal["convolution", "block", "feedforward", "attention"]


@dataclass(frozen=True)
class Site:
    """A part of a network.

    Args:
        name: of the module that it is.
        part: what it is.
        inputs: names of the nodes that it reads: of attention values, queries and keys.
        layer: the node whose value an alternative gives.
        end: the node behind a norm and an activation that alone read it; what is compared.
        nodes: the operator nodes that an alternative may take the place of.
        parameters: that only these read.
        layers: the shapes of its convolutions and linear layers.
        forms: what may stand in for it, by kind.
        causal: of attention: tokens look back only.
        transposed: of attention: keys come as [..., width, tokens].
    """

    name: str
    part: Part
    inputs: tuple[str, ...]
    layer: str
    end: str
    nodes: tuple[str, ...]
    parameters: tuple[str, ...]
    layers: tuple[Layer, ...]
    forms: Mapping[str, Form]
    causal: bool = False
    transposed: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """What may stand in for it."""
        return tuple(self.forms)

    def reads(self, kind: str) -> tuple[str, ...]:
        """The nodes that an alternative reads."""
        return self.inputs[:1] if kind == "pooling" else self.inputs

    def gives(self, kind: str) -> str:
        """The node whose value an alternative gives."""
        return self.end if self.part == "convolution" and kind == "identity" else self.layer


def sites(graph: Graph, kept: Collection[str] = ()) -> tuple[Site, ...]:
    """The sites of a graph, in graph order; a block's come with those inside of it.

    Args:
        graph: the network.
        kept: names of layers that stay whole: exact, a prefix, or a pattern.
    """
    used = tuple(calls(graph))
    nodes: dict[str, Node] = {n.name: n for n in graph.net.graph.nodes}
    place = {name: i for i, name in enumerate(nodes)}
    found = [
        *_convolutions(graph, used, nodes),
        *_feedforwards(graph, used, nodes),
        *_attentions(graph, used),
        *_blocks(graph, used, nodes),
    ]
    free = [s for s in found if s.forms and not any(_is_kept(p, kept) for p in (s.name, *s.parameters))]
    return tuple(_named(sorted(free, key=lambda s: place[s.layer])))


def conflict(a: Site, b: Site) -> bool:
    """Whether two sites share a part, so that not both can be swapped."""
    return bool(set(a.nodes) & set(b.nodes))


def tail(node: Node) -> tuple[Node, ...]:
    """The norm and the activation function that alone read a node's value, in order."""
    found: list[Node] = []
    while len(node.users) == 1:
        (user,) = node.users
        own = all(n is node or n.op == "get_attr" for n in user.all_input_nodes)
        normed = any(n.target is _NORM for n in found)
        if not own or not (user.target in ACTIVATIONS or (user.target is _NORM and not normed)):
            break
        found.append(user)
        if user.target in ACTIVATIONS:
            break
        node = user
    return tuple(found)


def _is_kept(parameter: str, kept: Collection[str]) -> bool:
    return any(parameter == k or parameter.startswith(f"{k}.") or fnmatchcase(parameter, k) for k in kept)


def _own(graph: Graph, node: Node) -> tuple[str, ...] | None:
    """The parameters of a layer if nothing else reads them; None if something does, or they are computed."""
    weights = [n for n in node.args[1:3] if n is not None]
    alone = all(isinstance(n, Node) and n.op == "get_attr" and len(n.users) == 1 for n in weights)
    return tuple(str(n.target) for n in weights) if alone else None  # type: ignore[union-attr]


def _convolutions(graph: Graph, used: Sequence[Call], nodes: dict[str, Node]) -> Iterator[Site]:
    for call in used:
        layer, node = call.layer, nodes[call.node]
        parameters = _own(graph, node)
        plain = len(layer.kernel) in (1, 2) and layer.groups == 1 and max(layer.kernel) > 1
        if not plain or parameters is None:
            continue
        some = kinds.cheaper({kind: form(layer) for kind, form in kinds.OF_CONVOLUTION.items()}, (layer,))
        behind = tail(node)
        end = behind[-1] if behind else node
        own = tuple(n.name for n in (node, *behind))
        yield Site(call.name, "convolution", _inputs(node), node.name, end.name, own, parameters, (layer,), some)


def _inputs(node: Node) -> tuple[str]:
    source: Any = node.args[0]
    return (source.name,)


def _feedforwards(graph: Graph, used: Sequence[Call], nodes: dict[str, Node]) -> Iterator[Site]:
    by_node = {call.node: call for call in used}
    for call in used:
        path = _two(nodes[call.node]) if not call.layer.kernel else None
        if path is None or path[-1].name not in by_node:
            continue
        second = by_node[path[-1].name]
        first, last = _own(graph, path[0]), _own(graph, path[-1])
        if first is None or last is None:
            continue
        shapes = (call.layer, second.layer)
        some = kinds.cheaper({kind: kinds.narrow(*shapes, kind) for kind in kinds.NARROW}, shapes)
        name = _common((call.name, second.name)) or call.name
        own = tuple(n.name for n in path)
        yield Site(name, "feedforward", _inputs(path[0]), own[-1], own[-1], own, (*first, *last), shapes, some)


def _two(node: Node) -> tuple[Node, ...] | None:
    """A linear layer, the activation function and the linear layer behind it, each alone in reading the one before."""
    path = [node]
    while len(path[-1].users) == 1 and len(path) < 4:
        (user,) = path[-1].users
        if user.target is _ATEN.linear.default:
            activated = len(path) > 1 and path[1].target in ACTIVATIONS and user.args[0] is path[-1]
            return (*path, user) if activated else None
        if user.target not in ACTIVATIONS and user.target is not _ATEN.dropout.default:
            return None
        path.append(user)
    return None


def _attentions(graph: Graph, used: Sequence[Call]) -> Iterator[Site]:
    """With its products of matrices as linear layers, one a head, and what makes queries and keys."""
    for m in mixers(graph):
        shape = m.node.meta["val"].shape
        heads, tokens = (shape[1] if len(shape) == 4 else 1), int(shape[-2])
        before = tuple(c.layer for c in used if c.node in m.nodes)
        layers = (*before, *kinds.attention(heads, tokens, m.width, int(shape[-1])))
        forms = {"pooling": Form((), ())}
        if not m.causal:
            forms |= kinds.cheaper({"linear": kinds.linear(before, heads, tokens, m.width, int(shape[-1]))}, layers)
        name = m.node.name
        yield Site(m.name, "attention", m.inputs, name, name, m.nodes, (), layers, forms, m.causal, m.transposed)


def _blocks(graph: Graph, used: Sequence[Call], nodes: dict[str, Node]) -> Iterator[Site]:
    """The outermost of nested blocks with a convolution or linear layer."""
    taken: set[str] = set()
    found = []
    for block in sorted(blocks(graph), key=lambda b: -len(b.nodes)):
        if not taken & set(block.nodes):
            taken |= set(block.nodes)
            found.append(block)
    for block in found:
        yield from _block(block, [c for c in used if c.node in block.nodes], nodes)


def _block(block: Block, inside: Sequence[Call], nodes: dict[str, Node]) -> Iterator[Site]:
    add = nodes[block.add]
    shape = tuple(add.meta["val"].shape)
    layers = tuple(c.layer for c in inside)
    if not layers:
        return
    forms: dict[str, Form | None] = {"identity": Form((), ())}
    if all(layer.kernel for layer in layers) and len(shape) in (3, 4) and len(layers) > 1:
        forms = {"convolution": kinds.convolution(shape[1], shape[2:]), **forms}
    behind = tail(add)
    end = behind[-1] if behind else add
    yield Site(
        block.name,
        "block",
        (block.source,),
        block.add,
        end.name,
        (*block.nodes, block.add),
        block.parameters,
        layers,
        kinds.cheaper(forms, layers),
    )


def _common(names: Sequence[str]) -> str:
    """The longest name that all of some names begin with."""
    parts = []
    for each in zip(*(name.split(".") for name in names), strict=False):
        if len(set(each)) > 1:
            break
        parts.append(each[0])
    return ".".join(parts)


def _named(found: Sequence[Site]) -> Iterator[Site]:
    """The sites with unique names: a second one of a name is called after its part too."""
    seen: dict[str, int] = {}
    for site in found:
        name = site.name if site.name and site.name not in seen else f"{site.name}/{site.part}".lstrip("/")
        seen[name] = seen.get(name, 0) + 1
        yield replace(site, name=name if seen[name] == 1 else f"{name}/{seen[name]}")
