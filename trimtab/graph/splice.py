"""Splice: put a module in the place of a part of a network, as nodes like any others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.fx import Node

from trimtab.core.errors import SurgeryError
from trimtab.graph.blocks import counters, erase
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph, place, shaped
from trimtab.graph.rules.ties import shape


def spliced(graph: Graph, module: nn.Module, inputs: Sequence[str], output: str, name: str) -> Graph:
    """A network in which a module computes what a node did; what nothing else needed is gone.

    The module is captured: its parameters become `<name>.<theirs>`, trained, cut, quantised and saved as
    any others. Where `output` is one of `inputs`, the module is put behind that node and nothing goes.

    Args:
        graph: the network, evaluating; it is not changed.
        module: takes the values of `inputs` in order, of any batch, and gives one tensor of the shape of
            `output`; it is not changed.
        inputs: names of nodes that come before `output`.
        output: the name of the node whose readers read the module's result.
        name: for the module's parameters and buffers; none in the network may begin with it and a dot.

    Raises:
        SurgeryError: there is no such node, the name is taken, or the shapes differ.
        CaptureError: the module cannot be captured.
    """
    result = graph.copy()
    nodes: dict[str, Node] = {node.name: node for node in result.net.graph.nodes}
    for each in (*inputs, output):
        if each not in nodes:
            raise SurgeryError("splice", where=each, got="no node of this name in the network")
    if any(key.startswith(f"{name}.") for key in graph.tensors()):
        raise SurgeryError("splice: the name is taken", where=name, expected="a name that no parameter begins with")
    sources, end = [nodes[each] for each in inputs], nodes[output]
    part = capture(module, tuple(_example(node) for node in sources))
    # rows may be more than a batch: a linear layer on a sequence that was flattened
    part = shaped(part, next((shape(n)[0] for n, s in zip(sources, part.inputs, strict=True) if None in s.shape), 1))
    made = _copied(result, part, sources, end, name)
    if _kind(made) != _kind(end):
        raise SurgeryError(
            "splice", where=name, got=f"an output of {_kind(made)}", expected=f"{_kind(end)} of {output}"
        )
    lost = alone(end, sources)
    own = _below(made, sources)  # where the module is put behind a node, it goes on reading that
    end.replace_all_uses_with(made, delete_user_cb=lambda user: user not in own)
    erase(result, lost | counters(lost, list(result.net.graph.nodes)))
    result.net.graph.lint()
    result.net.recompile()
    result = replace(
        result,
        tied=(*result.tied, *((f"{name}.{a}", f"{name}.{b}") for a, b in part.tied)),
        unsaved=(*result.unsaved, *(f"{name}.{each}" for each in part.unsaved)),
    )
    return shaped(result.note(*part.notes))


def _example(node: Node) -> torch.Tensor:
    value = node.meta["val"]
    generator = torch.Generator().manual_seed(0)
    if value.dtype.is_floating_point:
        return torch.randn(shape(node), generator=generator).to(value.dtype)
    return torch.zeros(shape(node), dtype=value.dtype)


def _copied(result: Graph, part: Graph, sources: Sequence[Node], end: Node, name: str) -> Node:
    """The part's nodes put behind `end`, reading from the sources; gives the one that holds its output."""
    nodes, tensors = result.net.graph, part.tensors()
    taken: dict[Node, Node] = {}
    placeholders = iter(sources)
    first, behind = next(iter(nodes.nodes)), end
    for node in part.net.graph.nodes:
        if node.op == "placeholder":
            taken[node] = next(placeholders)
        elif node.op == "get_attr":
            own = f"{name}.{node.target}"
            place(result.net, own, tensors[str(node.target)])
            with nodes.inserting_before(first):
                taken[node] = nodes.get_attr(own)
            taken[node].meta = dict(node.meta)
        elif node.op == "output":
            return taken[node.args[0][0]]
        else:
            with nodes.inserting_after(behind):
                taken[node] = behind = nodes.node_copy(node, lambda n: taken[n])
    raise SurgeryError("splice", where=name, got="a module without an output")


def _kind(node: Node) -> str:
    return f"{tuple(node.meta['val'].shape)} {node.meta['val'].dtype}"


def _below(made: Node, sources: Sequence[Node]) -> set[Node]:
    """The nodes on the ways from the sources to a node, with it."""
    found, queue = set(), [made]
    while queue:
        node = queue.pop()
        if node not in found and node not in sources:
            found.add(node)
            queue += node.all_input_nodes
    return found


def alone(end: Node, sources: Sequence[Node]) -> set[Node]:
    """A node and what only it needs, up to the sources; empty where it is a source itself."""
    if end in sources:
        return set()
    found, queue = {end}, list(end.all_input_nodes)
    while queue:
        node = queue.pop()
        if node in found or node in sources or node.op == "placeholder" or any(u not in found for u in node.users):
            continue
        found.add(node)
        queue += node.all_input_nodes
    return found
