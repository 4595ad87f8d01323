"""Cut channels out of a graph, with every shape that was baked into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import torch
from torch import nn

from trimtab.core.errors import SurgeryError
from trimtab.graph.coupling import Coupling, attribute, couple
from trimtab.graph.masking import masked
from trimtab.graph.model import Graph, shaped
from trimtab.graph.rules import rule
from trimtab.graph.rules.ties import Bools, Kept, Labels, shape


def cut(graph: Graph, keep: Mapping[str, Sequence[int]]) -> Graph:
    """Keep the given units of each named group and remove its others from the network.

    What is computed over a cut dimension (a norm, a mean, a softmax) is computed over what is
    left; the scale 1/sqrt(d) of attention stays as it was.

    Args:
        graph: the network; it is not changed.
        keep: for a group's name, the units to keep, at least one; other groups stay whole.

    Raises:
        SurgeryError: a group is unknown or must stay whole, or a unit is not one of its own.
    """
    coupling = couple(graph)
    stays = _stays(coupling, keep)
    result = graph.copy()
    values = {
        new: coupling.values[old]
        for old, new in zip(graph.net.graph.nodes, result.net.graph.nodes, strict=True)
        if old in coupling.values
    }
    kept = Kept(values, stays)
    _check_left(result, kept)
    _cut_tensors(result, kept)
    for node in list(result.net.graph.nodes):
        known = rule(node.target) if node.op == "call_function" else None
        if known is not None and known.rewrite is not None and node in values:
            known.rewrite(node, kept)
    result.net.graph.lint()
    result.net.recompile()
    try:
        shaped(result)
    except RuntimeError as error:
        raise SurgeryError("cut: the cut network does not run, nothing was changed", got=error) from error
    _agree(graph, result, kept)
    return result


def mask(graph: Graph, keep: Mapping[str, Sequence[int]]) -> Graph:
    """The network in its full size that computes what `cut` gives: removed channels are zero.

    Norms, means and softmaxes over a cut dimension run over what is left of it. Slower than the
    original; it is what surgery is tested against.

    Args:
        graph: the network; it is not changed.
        keep: as for `cut`.

    Raises:
        SurgeryError: as for `cut`.
    """
    coupling = couple(graph)
    return masked(graph, coupling.values, _stays(coupling, keep))


def _stays(coupling: Coupling, keep: Mapping[str, Sequence[int]]) -> Callable[[Labels], Bools]:
    """Which labels stay, as a function of labels."""
    stays = np.ones(len(coupling.ties), dtype=bool)
    known = {group.name: group for group in coupling.groups}
    for name, units in keep.items():
        if name not in known:
            close = get_close_matches(name, known, n=3, cutoff=0) or ["none"]
            raise SurgeryError("cut: there is no such group", got=name, do=f"The nearest names are {', '.join(close)}.")
        group, chosen = known[name], sorted({int(u) for u in units})
        for unit in chosen[:1] + chosen[-1:]:
            if not 0 <= unit < group.size:
                raise SurgeryError("cut", where=name, got=f"unit {unit}", expected=f"0 to {group.size - 1}")
        if not chosen:
            raise SurgeryError("cut", where=name, got="no unit to keep", expected="at least one")
        if group.reason is not None and len(chosen) < group.size:
            raise SurgeryError(
                "cut", where=name, got=f"{len(chosen)} units", expected=f"all {group.size}: {group.reason}"
            )
        gone = np.ones(group.size, dtype=bool)
        gone[chosen] = False
        stays[coupling.units[name][gone]] = False

    def ask(labels: Labels) -> Bools:
        return stays[coupling.ties.find(labels)]

    return ask


def _check_left(graph: Graph, kept: Kept) -> None:
    """A group's last unit is never cut, but a part of a layer (a half that is split off) could lose all of its own."""
    for node in graph.net.graph.nodes:
        for dim, keep in kept.masks(node).items():
            if not keep.any():
                raise SurgeryError(
                    "cut", where=node.name, got=f"none of its {len(keep)} channels left at dimension {dim}"
                )


def _cut_tensors(graph: Graph, kept: Kept) -> None:
    """Give every parameter and buffer what is left of it; tied ones stay one tensor."""
    done: dict[int, torch.Tensor] = {}
    for node in graph.net.graph.nodes:
        masks = kept.masks(node) if node.op == "get_attr" else {}
        if not masks:
            continue
        path, _, leaf = str(node.target).rpartition(".")
        owner = attribute(graph.net, path) if path else graph.net
        tensor = getattr(owner, leaf)
        if id(tensor) not in done:
            left = tensor.detach()
            for dim, keep in masks.items():
                left = left.index_select(dim, torch.from_numpy(np.flatnonzero(keep)).to(left.device))
            done[id(tensor)] = nn.Parameter(left, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else left
            done[id(done[id(tensor)])] = done[id(tensor)]
        setattr(owner, leaf, done[id(tensor)])


def _agree(graph: Graph, result: Graph, kept: Kept) -> None:
    """Every tensor of the cut graph has the shape that its labels say, and no other is changed."""
    before = {node.name: shape(node) for node in graph.net.graph.nodes}
    for node in result.net.graph.nodes:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            continue  # sizes, and several results at once: those are taken apart by nodes of their own
        expected = list(before.get(node.name, shape(node)))
        for dim, keep in kept.masks(node).items():
            expected[dim] = int(keep.sum())
        if list(shape(node)) != expected:
            raise SurgeryError("cut", where=node.name, got=shape(node), expected=tuple(expected))
