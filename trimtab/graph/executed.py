"""Executed: what a device does for a graph once Q/DQ nodes and activations are fused, and in how many bytes."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field, replace

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from trimtab.graph.count import NodeCost, count
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph, shaped

_TAKES_IN = frozenset({"linear", "addmm", "mm", "bmm", "matmul", "add", "add_", "mul", "mul_"})
"""Operators, beside convolutions, that take in the activation behind them."""
_ACTIVATIONS = frozenset({"relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min"})


@dataclass(frozen=True)
class Step:
    """One operator that a device executes.

    Args:
        name: of its layer, such as `layer1.0.conv1`; of its node where it has no parameters.
        kinds: the operator, and those fused behind it, such as `("conv2d", "relu")`.
        macs: multiply-adds.
        weights: bytes of parameters read, as they are stored.
        activations: bytes of activations read and written, as they are stored: a quantised one has one byte a value.
        integer: it computes in integers.
        alive: bytes of all activations that lie in memory while it runs.
    """

    name: str
    kinds: tuple[str, ...]
    macs: int
    weights: int
    activations: int
    integer: bool
    alive: int


@dataclass(frozen=True)
class Executed:
    """What a device does for one pass.

    Args:
        steps: in order.
        weights: bytes of all parameters and buffers as they are stored, each once.
    """

    steps: tuple[Step, ...]
    weights: int

    @property
    def peak(self) -> Step:
        """The step at which the activations take most memory."""
        return max(self.steps, key=lambda step: step.alive)


def executed(graph: Graph, batch: int = 1) -> Executed:
    """What a device executes of a graph, floating-point or quantised.

    In a floating-point graph, batch norm is folded first. Quantise and dequantise nodes are no operators of their
    own where they only say in which form a tensor is stored; an activation behind a convolution, linear layer or
    addition that nothing else reads is fused into it.

    Args:
        graph: evaluating.
        batch: samples in one pass.
    """
    quantised = any(str(n.target).startswith("quantized_decomposed.") for n in graph.nodes())
    graph = graph if quantised else for_inference(graph)
    at = shaped(replace(graph, net=GraphModule(graph.net, copy.deepcopy(graph.net.graph))), batch)
    costs = {cost.name: cost for cost in count(graph, batch)}
    values = _values(at, costs)
    places = _places(values)
    alive = _alive(values, places)
    steps = (_step(n, costs[n.name], places, alive[n]) for n in values if _executes(n, places))
    return Executed(tuple(steps), sum(t.numel() * t.element_size() for t in at.tensors().values()))


@dataclass(frozen=True)
class _Places:
    """Where values lie.

    Args:
        home: for each node the first one whose value lies in the same memory.
        width: bytes of one number there, for memory that holds a quantised tensor.
        fused: the activations taken in by a node.
        inside: nodes that are part of another one.
    """

    home: dict[Node, Node] = field(default_factory=dict)
    width: dict[Node, int] = field(default_factory=dict)
    fused: dict[Node, list[str]] = field(default_factory=dict)
    inside: set[Node] = field(default_factory=set)


def _values(graph: Graph, costs: dict[str, NodeCost]) -> list[Node]:
    """Inputs, and operators whose result depends on them."""
    found: dict[Node, None] = {}
    for node in graph.net.graph.nodes:
        item = node.target is operator.getitem and node.args[0] in found
        if node.op == "placeholder" or item or (node.op == "call_function" and node.name in costs):
            found[node] = None
    return list(found)


def _places(values: list[Node]) -> _Places:
    places = _Places()
    for node in values:
        before = [n for n in node.all_input_nodes if n in places.home]
        source = _shared(node, before) if before else None
        places.home[node] = node if source is None else places.home[source]
        if source is not None and (_named(node, "dequantize", "quantize") or node.target is operator.getitem):
            places.inside.add(node)
        elif source is not None and _takes_in(source, node):
            places.inside.add(node)
            places.fused.setdefault(source, []).append(_kind(node).rstrip("_"))
        if _named(node, "quantize"):
            places.width[places.home[node]] = node.meta["val"].element_size()
    return places


def _shared(node: Node, before: list[Node]) -> Node | None:
    """The node in whose memory a node's value lies; None if it has its own."""
    source = before[0]
    if _named(node, "dequantize") or node.target is operator.getitem or _takes_in(source, node):
        return source
    if _named(node, "quantize"):
        return source if all(_named(user, "quantize") for user in source.users) else None
    held = {_storage(t): n for n in before for t in _tensors(n)}
    return next((held[_storage(t)] for t in _tensors(node) if _storage(t) in held), None)


def _takes_in(source: Node, node: Node) -> bool:
    """Whether an operator takes in the activation behind it."""
    taking = _kind(source).startswith("conv") or _kind(source) in _TAKES_IN
    return taking and _kind(node) in _ACTIVATIONS and node.args[0] is source and len(source.users) == 1


def _alive(values: list[Node], places: _Places) -> dict[Node, int]:
    """Bytes in use while each node runs: an input's from the start, an output's to the end."""
    order = {node: i for i, node in enumerate(values)}
    first: dict[Node, int] = {}
    last: dict[Node, int] = {}
    for node in values:
        home = places.home[node]
        first.setdefault(home, 0 if home.op == "placeholder" else order[home])
        ends = [order.get(user, len(order)) for user in node.users if _holds_tensor(user) or user.op == "output"]
        last[home] = max([last.get(home, 0), order[node], *ends])
    size = {home: _bytes(home, places) for home in first}
    return {node: sum(size[h] for h in first if first[h] <= i <= last[h]) for node, i in order.items()}


def _executes(node: Node, places: _Places) -> bool:
    """Whether a node is work of its own: neither part of another one, nor a mere view."""
    if node.op == "placeholder" or node in places.inside:
        return False
    return places.home[node] is node or node.target._schema.is_mutable  # type: ignore[union-attr]


def _step(node: Node, cost: NodeCost, places: _Places, alive: int) -> Step:
    read: dict[Node, int] = {}
    for source in node.all_input_nodes:
        if source in places.home:
            home = places.home[source]
            read[home] = max(read.get(home, 0), _bytes(source, places))
    constants = [n for n in node.all_input_nodes if n not in places.home]
    integer = bool(read) and all(home in places.width for home in read)
    if cost.macs and constants:
        integer = integer and any(_named(n, "dequantize") for n in constants)
    return Step(
        name=cost.layer or cost.name,
        kinds=(cost.kind.rstrip("_"), *places.fused.get(node, ())),
        macs=cost.macs,
        weights=cost.weight_bytes,
        activations=sum(read.values()) + _bytes(node, places),
        integer=integer,
        alive=alive,
    )


def _bytes(node: Node, places: _Places) -> int:
    """Bytes of a node's value as it is stored; of an expanded one, what is stored."""
    width = places.width.get(places.home[node])
    tensors = {_storage(t): t for t in _tensors(node)}.values()
    return sum(
        min(t.numel(), t.untyped_storage().nbytes() // t.element_size()) * (width or t.element_size()) for t in tensors
    )


def _named(node: Node, *starts: str) -> bool:
    return str(node.target).startswith(tuple(f"quantized_decomposed.{start}_" for start in starts))


def _kind(node: Node) -> str:
    return str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))


def _holds_tensor(node: Node) -> bool:
    return bool(_tensors(node))


def _tensors(node: Node) -> list[torch.Tensor]:
    return [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
