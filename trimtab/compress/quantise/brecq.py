"""BRECQ: the rounding of all weights of a block learnt together, from what the block gives."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from trimtab.compress.quantise.units import ACTIVATIONS, Layer, Unit, layer_units
from trimtab.graph.model import Graph

MOST = 12
"""Layers of one block at most; where the network narrows to one tensor more rarely, layers are taken singly."""


def block_units(prepared: Graph, layers: Sequence[Layer]) -> tuple[Unit, ...]:
    """The blocks of a network: what lies between places that a single tensor crosses.

    Of the values that cross, those count that some quantised layer has touched (an attention mask does
    not). Residual branches, with their shortcut and the activation function behind the sum, come out as
    one block each, and layers outside of them as blocks of their own.

    BRECQ weighs the squared error of a block by the diagonal of the Fisher information of its output;
    here each value counts the same.

    Source: Li et al. (2021), BRECQ: Pushing the Limit of Post-Training Quantization by Block
    Reconstruction, section 3.2 and equation 10 (there with Fisher weights).
    """
    nodes = list(prepared.net.graph.nodes)
    by_node = {layer.node: layer for layer in layers}
    touched = _touched(nodes, by_node)
    last = {source: i for i, node in enumerate(nodes) for source in node.all_input_nodes}
    live: set[Node] = set()
    units: list[Unit] = []
    waiting: list[Layer] = []
    for i, node in enumerate(nodes):
        if node.name in by_node:
            waiting.append(by_node[node.name])
        if node in touched and last.get(node, i) > i:
            live.add(node)
        live = {n for n in live if last[n] > i}
        if waiting and len(live) == 1 and not _goes_on(live):
            units += _split(prepared, waiting, next(iter(live)).name)
            waiting = []
    return (*units, *layer_units(prepared, tuple(waiting)))


def _split(prepared: Graph, layers: Sequence[Layer], end: str) -> tuple[Unit, ...]:
    whole = (Unit(tuple(layers), end),)
    return whole if len(layers) <= MOST else layer_units(prepared, tuple(layers))


def _touched(nodes: Sequence[Node], layers: dict[str, Layer]) -> set[Node]:
    """The nodes whose values depend on a quantised layer's."""
    found: set[Node] = set()
    for node in nodes:
        if node.name in layers or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _goes_on(live: set[Node]) -> bool:
    """Whether the one tensor that crosses is only what an activation function reads."""
    (node,) = live
    return len(node.users) == 1 and next(iter(node.users)).target in ACTIVATIONS
