"""Weights: which of a network's weights can be made sparse, and how many of each stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.compress.quantise.annotate import fits
from trimtab.compress.quantise.layer import layer_of, some
from trimtab.compress.quantise.links import skipped
from trimtab.compress.sparsify.pattern import POOL, Pattern, masks, pooled, rows_of, units_of
from trimtab.core.errors import InputError
from trimtab.core.store import digest
from trimtab.graph.model import Graph


@dataclass(frozen=True)
class Weight:
    """A weight of convolutions or linear layers, and of nothing else.

    Args:
        name: of the parameter.
        node: the name of the first layer's node that reads it.
        axis: its dimension of outputs.
    """

    name: str
    node: str
    axis: int

    @property
    def layer(self) -> str:
        """The user's name of the layer."""
        return self.name.rpartition(".")[0] or self.name


def weights(graph: Graph) -> tuple[Weight, ...]:
    """The weights that only layers read, in graph order; an embedding that a layer shares is none."""
    tensors, found = graph.tensors(), {}
    read = {str(n.target): {u for g in graph.net.graph.find_nodes(op="get_attr", target=n.target) for u in g.users}
            for n in graph.net.graph.find_nodes(op="get_attr")}  # fmt: skip
    for node in graph.nodes():
        layer = layer_of(node, tensors)
        if layer is None or layer.weight in found or tensors[layer.weight].ndim < 2:
            continue
        others = [layer_of(user, tensors) for user in read[layer.weight]]
        if all(other is not None and other.weight == layer.weight for other in others):
            found[layer.weight] = Weight(layer.weight, node.name, int(layer.flipped))
    return tuple(found.values())


def free(graph: Graph, skip: Sequence[str], keep: Sequence[str]) -> list[Weight]:
    """The weights that may change.

    Args:
        graph: the network.
        skip: names of layers to leave: exact, a prefix, or a pattern; each must name one.
        keep: the same, from the task; they may name none.

    Raises:
        InputError: an entry of `skip` names no layer.
    """
    every = weights(graph)
    left = skipped([w.layer for w in every], skip, "Sparsify")
    return [w for w in every if w.layer not in left and not any(fits(w.layer, n) or fits(w.name, n) for n in keep)]


def chosen(graph: Graph, skip: Sequence[str], keep: Sequence[str], pattern: Pattern) -> tuple[list[Weight], list[str]]:
    """The weights to make sparse, and a sentence for those that the pattern does not fit; see `free`.

    Raises:
        InputError: as for `free`, or nothing is left.
    """
    found, tensors = free(graph, skip, keep), graph.tensors()
    able = [w for w in found if pattern.fits(rows_of(tensors[w.name], w.axis).shape)]
    if not able:
        why = "it has no convolution or linear layer that may change" if not found else "the pattern fits none"
        raise InputError("Sparsify: nothing to make sparse", got=why)
    others = [w.layer for w in found if w not in able]
    told = f"Sparsify leaves {some(others)} dense: the number of inputs is no multiple of {pattern.second}."
    return able, [told] if others else []


def magnitudes(graph: Graph, found: Sequence[Weight]) -> dict[str, Tensor]:
    """abs(w) of each weight, [O, I, K] (eq. 8)."""
    tensors = graph.tensors()
    return {w.name: rows_of(tensors[w.name].detach().abs(), w.axis) for w in found}


def random_scores(graph: Graph, found: Sequence[Weight], seed: int) -> dict[str, Tensor]:
    """Uniform numbers from the seed and each weight's name, [O, I, K]."""
    scores, tensors = {}, graph.tensors()
    for w in found:
        generator = torch.Generator().manual_seed(int(digest("sparsify", seed, w.name)[:8], 16))
        scores[w.name] = torch.rand(rows_of(tensors[w.name], w.axis).shape, generator=generator)
    return scores


def counts(
    graph: Graph, found: Sequence[Weight], ratio: float, scope: str, layers: Mapping[str, float]
) -> dict[str, int]:
    """How many values of each weight stay; under `POOL`, of all that are ranked together.

    Args:
        graph: the network.
        found: the weights.
        ratio: the share of zeros.
        scope: `layer`: of each; `global`: of all together; `erk`: of all together, by `erdos_renyi`.
        layers: shares of single layers: exact names, prefixes or patterns; later ones win.

    Raises:
        InputError: a layer would be left without weights, or a name fits no layer.
    """
    for name in layers:
        if not any(fits(w.layer, name) for w in found):
            raise InputError("Sparsify: layers: no such layer", got=name)
    own = {w.name: share for w in found for name, share in layers.items() if fits(w.layer, name)}
    sizes = {w.name: graph.tensors()[w.name].numel() for w in found}
    rest = [w for w in found if w.name not in own]
    keep = {name: _count(name, sizes[name], share) for name, share in own.items()}
    total = sum(sizes[w.name] for w in rest)
    if scope == "layer":
        keep |= {w.name: _count(w.name, sizes[w.name], ratio) for w in rest}
    elif scope == "erk" and rest:
        shapes = {w.name: rows_of(graph.tensors()[w.name], w.axis).shape for w in rest}
        keep |= erdos_renyi(shapes, _count("all", total, ratio))
    elif rest:
        keep[POOL] = _count("all", total, ratio)
    return keep


def _count(name: str, size: int, ratio: float) -> int:
    if not 0 <= ratio < 1:
        raise InputError("Sparsify: ratio", where=name, got=ratio, expected="a share from 0 to below 1")
    left = round((1 - ratio) * size)
    if left < 1:
        got = f"{ratio:g} of {size} weights, which leaves none"
        raise InputError("Sparsify: ratio", where=name, got=got, expected=f"at most {1 - 1 / size:.6g}")
    return left


def erdos_renyi(shapes: Mapping[str, Sequence[int]], keep: int) -> dict[str, int]:
    """How many weights of each layer stay, in all `keep`: a share proportional to (O + I + K') / (O I K).

    K' is the sum of a kernel's sides, here K to the power of 1 / 2, twice, where K is above 1. Layers whose share
    would be above 1 stay dense.

    Args:
        shapes: [O, I, K] by name.
        keep: how many stay.

    Source: Evci et al. (2020), Rigging the Lottery, section 3 (Erdos-Renyi-kernel); Mocanu et al. (2018), equation 3.
    """
    size = {name: o * i * k for name, (o, i, k) in shapes.items()}
    raw = {n: (o + i + (2 * k**0.5 if k > 1 else 0)) / size[n] for n, (o, i, k) in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [n for n in shapes if n not in dense]
        left = keep - sum(size[n] for n in dense)
        scale = left / sum(raw[n] * size[n] for n in rest) if rest else 0.0
        over = {n for n in rest if scale * raw[n] > 1}
        if not over:
            break
        dense |= over
    found = {n: size[n] if n in dense else max(round(scale * raw[n] * size[n]), 1) for n in shapes}
    return _exactly(found, size, keep)


def _exactly(found: dict[str, int], size: Mapping[str, int], keep: int) -> dict[str, int]:
    """The same with what rounding has left over given to, or taken from, the largest layer that has room."""
    gap = keep - sum(found.values())
    for name in sorted(found, key=lambda n: -size[n]):
        moved = max(min(gap, size[name] - found[name]), 1 - found[name])
        found[name] += moved
        gap -= moved
    return found


def settled(scores: Mapping[str, Tensor], keep: Mapping[str, int], pattern: Pattern) -> dict[str, int]:
    """Counts with the pool's share of each weight written out, as these scores rank it.

    Raises:
        InputError: a layer would be left without weights.
    """
    if POOL not in keep:
        return dict(keep)
    for name, mask in pooled({n: units_of(v, pattern) for n, v in scores.items()}, keep).items():
        if not bool(mask.any()) and mask.numel() > 1:
            layer = name.rpartition(".")[0]
            do = "Lower ratio, give the layer its own in layers=, or rank within each layer: scope='layer'."
            raise InputError("Sparsify: ratio would empty a layer", where=layer, got=f"{keep[POOL]} left in all", do=do)
    return {name: int(mask.sum()) for name, mask in masks(scores, keep, pattern).items()}
