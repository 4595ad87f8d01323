"""Scales: how much of an activation channel's width its weights take over (SmoothQuant, AWQ)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.compress.quantise.layer import Layer, largest
from trimtab.compress.quantise.links import Reader
from trimtab.compress.quantise.ranges import SMALLEST
from trimtab.compress.quantise.watch import watch
from trimtab.graph.model import Graph

_ROWS = 512
"""Rows of a layer's input that AWQ's search is tried on."""
_GRID = 20
_LIMIT = 1e5
_LEAST = 1e-4


@dataclass
class Seen:
    """What a layer read: statistics of each channel of its input.

    Args:
        most: max abs(x): [C].
        total: sum of abs(x): [C].
        count: of values in each channel.
        rows: some of the rows, each [n, C].
    """

    most: Tensor
    total: Tensor
    count: int = 0
    rows: list[Tensor] = field(default_factory=list)

    @property
    def mean(self) -> Tensor:
        """mean abs(x): [C]."""
        return self.total / max(self.count, 1)


def seen(graph: Graph, inputs: Sequence[tuple[Tensor, ...]], layers: Iterable[Layer]) -> dict[str, Seen]:
    """What linear layers read on the inputs, by the name of the node that they read."""
    found: dict[str, Seen] = {}
    quota = -(-_ROWS // max(len(inputs), 1))
    shows = {name: _show(name, found, quota) for name in (source(layer) for layer in layers)}
    watch(graph, inputs, shows)
    return found


def source(layer: Layer) -> str:
    """The name of the node that a layer reads."""
    return str(layer.node.args[layer.data])


def _show(name: str, found: dict[str, Seen], quota: int) -> Callable[[Tensor], None]:
    def show(value: Tensor) -> None:
        rows = value.detach().reshape(-1, value.shape[-1]).float().cpu()
        size, nothing = rows.abs(), torch.zeros(rows.shape[1], dtype=torch.float64)
        one = found.setdefault(name, Seen(nothing, nothing))
        one.most = torch.maximum(one.most, size.amax(0).double())
        one.total = one.total + size.sum(0, dtype=torch.float64)
        one.count += len(rows)
        one.rows.append(rows[:: max(len(rows) // quota, 1)][:quota].clone())

    return show


def _widest(readers: Sequence[Reader], count: int, value: Callable[[Reader], Tensor]) -> Tensor:
    """The largest over readers of a value for each channel that they read, for each made channel: [count]."""
    return torch.stack([reader.widest(value(reader), count) for reader in readers]).amax(0)


def smooth_scale(
    weights: Mapping[str, Tensor], readers: Sequence[Reader], free: Tensor, stats: Mapping[str, Seen], alpha: float
) -> Tensor:
    """s_j = max abs(X_j)^alpha / max abs(W_j)^(1 - alpha), 1 for a channel that is held, or never used: [channels].

    Args:
        weights: by name.
        readers: the layers that share s.
        free: [channels], which may be scaled.
        stats: of what they read.
        alpha: 0 to 1.

    Source: Xiao et al. (2023), eq. 4.
    """
    x = _widest(readers, len(free), lambda r: stats[source(r.layer)].most)
    w = _widest(readers, len(free), lambda r: largest(r.layer, weights[r.layer.weight], made=False))
    alive = free & (x > 0) & (w > 0)
    scale = (x**alpha / w ** (1 - alpha)).clamp(1 / _LIMIT, _LIMIT)
    return torch.where(alive, scale, torch.ones_like(scale))


def awq_scale(
    weights: Mapping[str, Tensor],
    readers: Sequence[Reader],
    free: Tensor,
    stats: Mapping[str, Seen],
    bits: int,
    group: int,
) -> Tensor:
    """s = mean abs(X)^a with the a in 0, 1/20, ..., 1 of the least error of the layers' outputs: [channels].

    As in the authors' code, s is then divided by sqrt(max s min s).

    Args:
        weights: by name.
        readers: the layers that share s.
        free: [channels], which may be scaled.
        stats: of what they read.
        bits: of the weights.
        group: inputs that share a scale.

    Source: Lin et al. (2024), eq. 4 and 5.
    """
    x = _widest(readers, len(free), lambda r: stats[source(r.layer)].mean)
    alive = free & (x > 0)
    best, least = torch.ones_like(x), float("inf")
    if not bool(alive.any()):
        return best
    for step in range(_GRID + 1):
        scale = (x ** (step / _GRID)).clamp_min(_LEAST)
        middle = (scale[alive].amax() * scale[alive].amin()).sqrt()
        scale = torch.where(alive, scale / middle, torch.ones_like(scale))
        error = sum(output_error(r, weights, scale, stats, bits, group) for r in readers)
        if error < least:
            best, least = scale, error
    return best


def output_error(
    reader: Reader, weights: Mapping[str, Tensor], scale: Tensor, stats: Mapping[str, Seen], bits: int, group: int
) -> float:
    """|Q(W diag(s)) diag(s)^-1 X - W X|^2 of one layer over the rows that were kept (AWQ, eq. 5)."""
    layer = reader.layer
    weight = (weights[layer.weight].t() if layer.flipped else weights[layer.weight]).float()  # [out, in]
    factor, rows = reader.taken(scale).float(), torch.cat(stats[source(layer)].rows).float()
    change = grouped(weight * factor, bits, group) / factor - weight
    return float((rows @ change.t()).square().sum(dtype=torch.float64))


def grouped(weight: Tensor, bits: int, group: int) -> Tensor:
    """A weight [out, in] rounded to symmetric levels, with one scale for each `group` inputs of a row.

    Where the inputs are no multiple of the group, a row has one scale.
    """
    top = 2 ** (bits - 1) - 1
    rows = weight.reshape(-1, group) if weight.shape[1] % group == 0 else weight
    scale = (rows.abs().amax(1, keepdim=True) / top).clamp_min(SMALLEST)
    rounded: Tensor = torch.round(rows / scale).clamp(-top, top) * scale
    return rounded.reshape(weight.shape)
