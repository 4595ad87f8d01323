"""Layer costs: what the quantisation of each layer costs, alone and in the midst of all others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_arg

from trimtab.compress.quantise.calibrate import calibration_inputs
from trimtab.compress.quantise.insert import FakeTensor
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.context import Context
from trimtab.graph.model import Graph
from trimtab.pipeline.switched import Site, Switched, Values
from trimtab.train.data import checked, join, take
from trimtab.train.distil import distillation_loss
from trimtab.train.evaluate import value_of
from trimtab.train.recipe import Distillation

SAMPLES = 256
"""Samples of the choosing data that costs are measured on."""
OTHERS = "(between layers)"
"""The row of what no layer reads: additions, concatenations, pooling."""
_TOGETHER = 32
_BINS = 96
_SETTINGS = Distillation(temperature=1.0)


@dataclass(frozen=True)
class Effect:
    """What a choice of quantised layers does to the outputs.

    Args:
        loss: divergence from the outputs without any quantisation, mean over samples.
        score: the task's score; None without labels.
    """

    loss: float
    score: float | None


@dataclass(frozen=True)
class LayerCost:
    """One layer's part.

    Args:
        name: of the layer; `OTHERS` for what no layer reads.
        kind: of its weight: `int8`, `int4`, `ternary`, ...; empty for the others.
        one: with this layer quantised alone.
        but_one: with all but this layer quantised.
        cost: (loss of one + loss of all - loss of all but one) / 2: the mean of what it adds first and last.
        weight_sqnr: decibel, of its weight; None where it is exact.
        output_sqnr: decibel, of its output with its weight and input quantised; None where it is exact.
        bits: of its input; None where that stays in floating point.
        range: of its input that has levels; None where each batch gives its own.
        seen: of its input on these samples.
        clipped: share of its input's values outside of the range.
    """

    name: str
    kind: str
    one: Effect
    but_one: Effect
    cost: float
    weight_sqnr: float | None = None
    output_sqnr: float | None = None
    bits: int | None = None
    range: tuple[float, float] | None = None
    seen: tuple[float, float] | None = None
    clipped: float = 0.0


@dataclass(frozen=True)
class LayerCosts:
    """All layers of a quantised network, the costliest first.

    Args:
        layers: a row for each, and one for the others.
        none: without any quantisation: loss 0.
        all: with all of it.
        samples: that this is from.
        split: of which data: `validate`, `calibrate`, or `random` where the task has none.
        histogram: counts of the costliest layer's input in equal bins over its `seen` range.
    """

    layers: tuple[LayerCost, ...]
    none: Effect
    all: Effect
    samples: int
    split: str
    histogram: tuple[int, ...]


@dataclass
class _Sums:
    """What one layer adds up over the samples."""

    signal: float = 0.0
    noise: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    outside: int = 0
    count: int = 0
    coarse: Tensor | None = None


@dataclass(frozen=True)
class _Data:
    """Inputs in parts of a few samples, the targets of all (None without labels), and where they are from."""

    parts: tuple[tuple[Tensor, ...], ...]
    targets: Any
    split: str

    @property
    def samples(self) -> int:
        return sum(len(part[0]) for part in self.parts)


def layer_costs(quantise: Quantise, graph: Graph, context: Context, samples: int = SAMPLES) -> LayerCosts:
    """Rank the layers of a network by what their quantisation costs, on data that chooses.

    A row's loss is the divergence of the outputs from those without quantisation (KL divergence of classes, mean
    squared difference of others). Its cost is the mean of what the layer adds to none and to all others: of the
    orders that its Shapley value averages over, the first and the last.

    Args:
        quantise: the technique; its training, if it has one, comes from the store.
        graph: the network before it.
        context: its `validate` batches are used, else `calibrate`.
        samples: at most so many.
    """
    made = quantise.finished(graph, context)
    net = Switched(made.prepared, made.folded.tensors())
    data = _data(made.prepared, context, samples)
    sums = {site.name: _Sums() for site in net.sites}
    ones, rests, full, none = _outputs(net, data, sums, context)
    if quantise.train is None:
        # biases may have been corrected: what nothing was done to is the graph itself
        with torch.no_grad():
            none = [made.folded(*part) for part in data.parts]

    def effect(outputs: list[Any]) -> Effect:
        return _effect(outputs, none, data, context)

    whole = effect(full)
    rows = [_row(net, name, effect(ones[name]), effect(rests[name]), whole, sums.get(name)) for name in ones]
    rows.sort(key=lambda row: -row.cost)
    named = {site.name: site for site in net.sites}
    worst = next((row for row in rows if row.name in named), None)
    counts = _histogram(net, named[worst.name], worst, data) if worst is not None else ()
    return LayerCosts(tuple(rows), effect(none), whole, data.samples, data.split, counts)


def _data(prepared: Graph, context: Context, samples: int) -> _Data:
    batches, split = (context.validate, "validate") if context.validate else (context.calibrate, "calibrate")
    if not batches:
        flat, _ = calibration_inputs(prepared, context)
        return _Data(tuple(flat), None, "random")
    inputs, targets = zip(*(checked(batch, prepared, split) for batch in take(batches, samples)), strict=True)
    parts = tuple(
        tuple(t[start : start + _TOGETHER] for t in flat)
        for flat in inputs
        for start in range(0, len(flat[0]), _TOGETHER)
    )
    return _Data(parts, None if any(t is None for t in targets) else join(targets), split)


def _outputs(
    net: Switched, data: _Data, sums: Mapping[str, _Sums], context: Context
) -> tuple[dict[str, list[Any]], dict[str, list[Any]], list[Any], list[Any]]:
    """The outputs with each layer quantised alone, with all but it, with all, and with none."""
    starts = {site.name: site.start for site in net.sites} | {net.OTHERS: net.first}
    ones: dict[str, list[Any]] = {name: [] for name in starts}
    rests: dict[str, list[Any]] = {name: [] for name in starts}
    full, none = [], []
    for k, inputs in enumerate(data.parts):
        context.progress("explain", k, len(data.parts))
        off, on = net.values(inputs, frozenset()), net.values(inputs, net.everything)
        none.append(net.returned(off))
        full.append(net.returned(on))
        for name, start in starts.items():
            ones[name].append(net.outputs(off, start, frozenset({name})))
            rests[name].append(net.outputs(on, start, net.everything - {name}))
        for site in net.sites:
            _add(net, sums[site.name], site, off, on)
    context.progress("explain", len(data.parts), len(data.parts))
    return ones, rests, full, none


def _effect(outputs: list[Any], expected: list[Any], data: _Data, context: Context) -> Effect:
    found, wanted = join(outputs), join(expected)
    loss = float(distillation_loss(found, wanted, None, _SETTINGS))
    if context.score is None or data.targets is None or data.split != "validate":
        return Effect(loss, None)
    return Effect(loss, value_of(context.score, found, data.targets))


@torch.no_grad()
def _add(net: Switched, sums: _Sums, site: Site, off: Values, on: Values) -> None:
    """Signal and noise of a layer's output with its own weight and input quantised alone; the range of its input."""
    sums.coarse = on[site.rounded]
    for user in site.users:
        values = {**off, **{node: on[node] for node in (site.rounded, *site.between)}}
        args, kwargs = map_arg((user.args, user.kwargs), values.__getitem__)
        rough = user.target(*args, **kwargs)  # type: ignore[operator]
        sums.signal += float(off[user].double().square().sum())
        sums.noise += float((rough.double() - off[user].double()).square().sum())
    for fake in site.inputs[:1]:
        value, bounds = off[fake.source], range_of(net, fake)
        least, most = (float(v) for v in torch.aminmax(value))
        sums.low, sums.high = min(sums.low, least), max(sums.high, most)
        sums.count += value.numel()
        if bounds is not None:
            sums.outside += int(((value < bounds[0]) | (value > bounds[1])).sum())


def range_of(net: Switched, fake: FakeTensor) -> tuple[float, float] | None:
    """The values of an activation's lowest and highest level; None where each batch gives its own."""
    if fake.scale is None or fake.zero is None:
        return None
    tensors = net.graph_of.tensors()
    scale, zero = abs(float(tensors[fake.scale].detach())), round(float(tensors[fake.zero]))
    return (fake.low - zero) * scale, (fake.high - zero) * scale


def _row(net: Switched, name: str, one: Effect, but_one: Effect, whole: Effect, sums: _Sums | None) -> LayerCost:
    cost = (one.loss + whole.loss - but_one.loss) / 2
    site = next((s for s in net.sites if s.name == name), None)
    if site is None or sums is None or sums.coarse is None:
        return LayerCost(OTHERS, "", one, but_one, cost)
    weight = net.weights[site.weight].detach().double()
    noise = float((sums.coarse.double() - weight).square().sum())
    fake = site.inputs[0] if site.inputs else None
    return LayerCost(
        name,
        site.kind,
        one,
        but_one,
        cost,
        weight_sqnr=decibel(float(weight.square().sum()), noise),
        output_sqnr=decibel(sums.signal, sums.noise),
        bits=None if fake is None else (fake.high - fake.low).bit_length(),
        range=None if fake is None else range_of(net, fake),
        seen=None if fake is None else (sums.low, sums.high),
        clipped=sums.outside / max(sums.count, 1),
    )


def decibel(signal: float, noise: float) -> float | None:
    """SQNR = 10 log10(signal / noise); None where there is no noise, or nothing else."""
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def _histogram(net: Switched, site: Site, row: LayerCost, data: _Data) -> tuple[int, ...]:
    if row.seen is None or not row.seen[0] < row.seen[1]:
        return ()
    counts = torch.zeros(_BINS, dtype=torch.float64)
    for inputs in data.parts:
        value = net.values(inputs, frozenset())[site.inputs[0].source]
        counts += torch.histc(value.float(), _BINS, *row.seen).double()
    return tuple(int(n) for n in counts)
