"""Count what a graph costs: parameters, multiply-accumulates, bytes moved, peak activation memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from trimtab.graph.macs import macs
from trimtab.graph.model import Graph, shaped


@dataclass(frozen=True)
class NodeCost:
    """What one operator costs.

    Args:
        name: the node's name in the graph.
        kind: the operator, such as `conv2d`.
        layer: the module that owns its first parameter, such as `layer1.0.conv1`; empty if it has none.
        parameters: elements of the parameters that it reads.
        macs: multiply-accumulates.
        input_bytes: bytes of activations read.
        weight_bytes: bytes of parameters and buffers read; of an embedding, the rows that are read.
        output_bytes: bytes of activations written; zero for a view.
    """

    name: str
    kind: str
    layer: str
    parameters: int
    macs: int
    input_bytes: int
    weight_bytes: int
    output_bytes: int

    @property
    def bytes(self) -> int:
        """All bytes moved, each operand once."""
        return self.input_bytes + self.weight_bytes + self.output_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, multiply-accumulates per byte moved (EQUATIONS eq. 3-4); zero where nothing moves."""
        return self.macs / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Count:
    """What a whole graph costs at one batch size.

    Args:
        nodes: each operator, in the order of execution.
        parameters: elements of all parameters, each once, quantised weights among them.
        weight_bytes: bytes of all parameters and buffers, each once.
        macs: multiply-accumulates of one pass.
        bytes_moved: bytes read and written by all operators.
        peak_memory: largest sum of bytes of the activations alive at one operator.
    """

    nodes: tuple[NodeCost, ...]
    parameters: int
    weight_bytes: int
    macs: int
    bytes_moved: int
    peak_memory: int


def count(graph: Graph, batch: int = 1) -> tuple[NodeCost, ...]:
    """Cost of each operator, in the order of execution.

    What depends on parameters alone (a transposed weight, a dequantised one) is no row of its own:
    its parameters' bytes stand with the operator that reads it.
    """
    return _costs(_at(graph, batch))


def total(graph: Graph, batch: int = 1) -> Count:
    """Costs of each operator, their sums, and the peak of activation memory."""
    at = _at(graph, batch)
    costs = _costs(at)
    tensors = at.tensors()
    return Count(
        nodes=costs,
        parameters=sum(tensors[name].numel() for name in _learnt(at)),
        weight_bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
        macs=sum(cost.macs for cost in costs),
        bytes_moved=sum(cost.bytes for cost in costs),
        peak_memory=_peak(at),
    )


def peak_memory(graph: Graph, batch: int = 1) -> int:
    """Largest sum of bytes of the activations alive at one operator, when run in the graph's order.

    An input lives from the start to its last reader, an output to the end, everything else from its
    maker to the last reader of it or of a view of it. Weights and what an operator needs inside are
    not counted.
    """
    return _peak(_at(graph, batch))


def _at(graph: Graph, batch: int) -> Graph:
    """Nodes of their own with shapes at a batch size, over the same tensors."""
    return shaped(replace(graph, net=GraphModule(graph.net, copy.deepcopy(graph.net.graph))), batch)


def _costs(graph: Graph) -> tuple[NodeCost, ...]:
    weights, learnt = _weights(graph), _learnt(graph)
    return tuple(
        _cost(graph, node, weights, learnt)
        for node in graph.nodes()
        if isinstance(node.target, torch._ops.OpOverload) and node not in weights and _tensors(node)
    )


def _cost(graph: Graph, node: Node, weights: dict[Node, tuple[str, ...]], learnt: set[str]) -> NodeCost:
    names = tuple(dict.fromkeys(name for source in node.all_input_nodes for name in weights.get(source, ())))
    tensors = graph.tensors()
    read = _distinct(t for source in node.all_input_nodes if source not in weights for t in _tensors(source))
    written = _distinct(_tensors(node))
    held = {_storage(t) for t in read}
    fresh = [t for t in written if _storage(t) not in held]
    writes = fresh or (written if node.target._schema.is_mutable else [])  # type: ignore[union-attr]
    weight_bytes = sum(_size(tensors[name]) for name in names)
    kind = node.target.overloadpacket.__name__  # type: ignore[union-attr]
    output_bytes = sum(_size(t) for t in writes)
    return NodeCost(
        name=node.name,
        kind=kind,
        layer=next((name.rpartition(".")[0] for name in names if "." in name), ""),
        parameters=sum(tensors[name].numel() for name in names if name in learnt),
        macs=macs(node),
        input_bytes=sum(_size(t) for t in read) if writes else 0,
        weight_bytes=min(weight_bytes, output_bytes) if kind.startswith("embedding") else weight_bytes,
        output_bytes=output_bytes,
    )


def _weights(graph: Graph) -> dict[Node, tuple[str, ...]]:
    """The names of parameters and buffers that a node depends on, for nodes that depend on nothing else."""
    found: dict[Node, tuple[str, ...]] = {}
    for node in graph.net.graph.nodes:
        if node.op == "get_attr":
            found[node] = (str(node.target),)
        elif node.op == "call_function" and node.all_input_nodes and all(n in found for n in node.all_input_nodes):
            found[node] = tuple(dict.fromkeys(name for source in node.all_input_nodes for name in found[source]))
    return found


def _learnt(graph: Graph) -> set[str]:
    """Names of parameters, and of quantised weights: buffers that a dequantising operator reads."""
    quantised = {
        str(node.args[0].target)
        for node in graph.nodes()
        if str(node.target).startswith("quantized_decomposed.dequantize")
        and isinstance(node.args[0], Node)
        and node.args[0].op == "get_attr"
    }
    return {name for name, _ in graph.net.named_parameters()} | quantised


def _peak(graph: Graph) -> int:
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    size: dict[int, int] = {}
    nodes, weights = list(graph.net.graph.nodes), _weights(graph)
    for index, node in enumerate(nodes):
        own = [] if node in weights or node.op == "output" else _tensors(node)
        for tensor in own:
            key = _storage(tensor)
            first.setdefault(key, 0 if node.op == "placeholder" else index)
            size[key] = tensor.untyped_storage().nbytes()
        for tensor in (*own, *(t for source in node.all_input_nodes for t in _tensors(source))):
            last[_storage(tensor)] = index
    changes = [0] * (len(nodes) + 1)
    for key, start in first.items():
        changes[start] += size[key]
        changes[last[key] + 1] -= size[key]
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def _tensors(node: Node) -> list[torch.Tensor]:
    return [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, torch.Tensor)]


def _distinct(tensors: Iterable[Any]) -> list[torch.Tensor]:
    return list({_storage(t): t for t in tensors}.values())


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _size(tensor: torch.Tensor) -> int:
    """Bytes that reading the tensor moves: an expanded one is stored, and read, once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
