"""Repair: quantisation that costs too much is made good without training, the cheapest way first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.compress.plan import apply_plan, technique_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.errors import TrimtabError
from trimtab.core.goal import Goal
from trimtab.core.metric import metric, show
from trimtab.core.plan import Plan
from trimtab.core.store import digest
from trimtab.graph.model import Graph
from trimtab.pipeline.deploy import onnx_size
from trimtab.pipeline.layer_costs import layer_costs
from trimtab.pipeline.pays import sized
from trimtab.pipeline.points import Point
from trimtab.pipeline.prepare import Prepared, settled
from trimtab.run.score import agreement
from trimtab.train.distil import distillation_loss
from trimtab.train.evaluate import outputs, value_of
from trimtab.train.recipe import Distillation

NOTICED = 0.1
"""Quantisation that costs more than this share of the allowed drop is repaired, or trained for."""
SPARED = (1, 2, 4)
"""How many of the costliest layers are left in higher precision, tried in this order."""
_RANKED = 128
"""Samples that they are found with."""
_SETTINGS = Distillation(temperature=1.0)


@dataclass(frozen=True)
class Repaired:
    """What came of it.

    Args:
        plan: with the repairs that helped.
        lost: what its quantisation costs still: of the score, or without labels the share of changed outputs.
        kept: a sentence for each repair that helped.
        dropped: one for each that did not.
    """

    plan: Plan
    lost: float
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Toll:
    """What a quantised network costs: `cost` to compare, the lower the better, `lost` to hold against the goal."""

    cost: float
    lost: float
    told: str


def repaired(prepared: Prepared, plan: Plan, goal: Goal, original: Point, seconds: float) -> Repaired:
    """A plan with its quantisation repaired, where it costs more than `NOTICED` of the allowed drop.

    Tried in order of their cost: ranges by least squared error, cross-layer equalisation, bias correction,
    learned rounding; then, where the drop would still be more than the goal allows, the costliest layers are left
    in higher precision. Each is kept only if the validation score rises; without labels, only if the outputs come
    nearer to those before quantisation, on calibration data.

    Args:
        prepared: the task.
        plan: its last steps quantise after training.
        goal: of the run.
        original: the original, timed beside.
        seconds: no repair is begun after them.
    """
    if not (prepared.context.validate or prepared.context.calibrate):
        return Repaired(plan, 0.0)

    def work() -> dict[str, Any]:
        found = _Bench(prepared, plan, goal, original).repaired(time.monotonic() + seconds)
        return {"plan": found.plan.json(), "lost": found.lost, "kept": found.kept, "dropped": found.dropped}

    made = settled(prepared, f"repair {digest(plan.json())}", work)
    return Repaired(Plan.of_json(made["plan"]), made["lost"], tuple(made["kept"]), tuple(made["dropped"]))


def noticed(lost: float, goal: Goal) -> bool:
    """Whether quantisation costs enough of the allowed drop to do something about it."""
    return lost > NOTICED * (goal.max_drop or 0.0)


def with_settings(plan: Plan, **settings: Any) -> Plan:
    """A plan whose Quantise steps have other settings."""
    return Plan(tuple({**s, **settings} if s["technique"] == "Quantise" else s for s in plan.steps), plan.model)


def learnt_rounding(plan: Plan) -> Plan:
    """A plan that learns how to round weights of fewer than 8 bits: what stands for training where there is none."""
    few = any(s.get("layers") for s in plan.steps)
    return with_settings(plan, rounding="adaround") if few else plan


def equalised(plan: Plan) -> Plan:
    """A plan that equalises the weights of layers in a row before it quantises."""
    if any(s["technique"] == "Equalise" for s in plan.steps):
        return plan
    place = _place(plan)
    return Plan((*plan.steps[:place], {"technique": "Equalise"}, *plan.steps[place:]), plan.model)


def spared(plan: Plan, names: Sequence[str]) -> Plan:
    """A plan that keeps layers in higher precision: those of few bits in 8, the others in floating point."""
    step = plan.steps[_quantises(plan)]
    few = dict(step.get("layers", {}))
    skip = sorted({*step.get("skip", ()), *(name for name in names if name not in few)})
    left = {name: settings for name, settings in few.items() if name not in names}
    return with_settings(plan, layers=left, skip=skip)


def _quantises(plan: Plan) -> int:
    return next(i for i, s in enumerate(plan.steps) if s["technique"] == "Quantise")


REPAIRS: tuple[tuple[str, Callable[[Plan], Plan]], ...] = (
    ("ranges by least squared error", lambda plan: with_settings(plan, calibration="mse")),
    ("cross-layer equalisation", equalised),
    ("bias correction", lambda plan: with_settings(plan, correct=True)),
    ("learned rounding (AdaRound)", lambda plan: with_settings(plan, rounding="adaround")),
)
"""In order of what they cost."""


def _place(plan: Plan) -> int:
    """Of the first step that quantises, or that prepares for it."""
    return next(i for i, s in enumerate(plan.steps) if s["technique"] in ("Equalise", "Smooth", "Quantise"))


class _Bench:
    """One network on which repairs are tried: its steps before quantisation are carried out once."""

    def __init__(self, prepared: Prepared, plan: Plan, goal: Goal, original: Point) -> None:
        self.prepared, self.plan, self.goal, self.original = prepared, plan, goal, original
        context = prepared.context
        self.place = _place(plan)
        self.plain = apply_plan(prepared.graph, Plan(plan.steps[: self.place]), context)
        labelled = context.score is not None and bool(context.validate)
        self.batches, self.split = (context.validate, "validate") if labelled else (context.calibrate, "calibrate")
        self.batches = self.batches or context.validate
        self.expected, self.targets = outputs(self.plain, self.batches, self.split)
        self.score = context.score if labelled else None

    def repaired(self, end: float) -> Repaired:
        best, least = self.plan, self.toll(self.plan)
        kept: list[str] = []
        dropped: list[str] = []
        for words, changed in REPAIRS:
            if not noticed(least.lost, self.goal) or time.monotonic() > end:
                break
            best, least = self._try(words, changed(best), best, least, kept, dropped)
        if self.goal.max_drop is not None and least.lost > self.goal.max_drop and time.monotonic() < end:
            best, least = self._spare(best, least, kept, dropped)
        return Repaired(best, least.lost, tuple(kept), tuple(dropped))

    def _try(
        self, words: str, candidate: Plan, best: Plan, least: _Toll, kept: list[str], dropped: list[str]
    ) -> tuple[Plan, _Toll]:
        if candidate == best:
            return best, least
        try:
            found = self.toll(candidate)
        except (TrimtabError, RuntimeError) as error:  # one repair that breaks must not end the run
            dropped.append(f"Repair: {words}: {type(error).__name__}: {error}: dropped.")
            return best, least
        if found.cost < least.cost:
            kept.append(f"Repair: {words}: {least.told} became {found.told}.")
            return candidate, found
        dropped.append(f"Repair: {words} did not help ({found.told}, {least.told} without): dropped.")
        return best, least

    def _spare(self, best: Plan, least: _Toll, kept: list[str], dropped: list[str]) -> tuple[Plan, _Toll]:
        """Leave the costliest layers in higher precision while the rest of the goal holds."""
        at = _quantises(best)
        technique = technique_of(best.steps[at])
        assert isinstance(technique, Quantise)
        graph = apply_plan(self.plain, Plan(best.steps[self.place : at]), self.prepared.context)
        ranked = [row.name for row in layer_costs(technique, graph, self.prepared.context, _RANKED).layers if row.kind]
        whole = best
        for count in SPARED:
            if count > len(ranked) or self.goal.max_drop is None or least.lost <= self.goal.max_drop:
                break
            names = ranked[:count]
            candidate = spared(whole, names)
            words = f"{', '.join(names)} left in higher precision"
            if not self.holds(candidate):
                dropped.append(f"Repair: {words}: the rest of the goal no longer holds: dropped.")
                break
            best, least = self._try(words, candidate, best, least, kept, dropped)
        return best, least

    def made(self, plan: Plan) -> Graph:
        return apply_plan(self.plain, Plan(plan.steps[self.place :]), self.prepared.context)

    def toll(self, plan: Plan) -> _Toll:
        found, _ = outputs(self.made(plan), self.batches, self.split)
        if self.score is not None:
            before, after = (value_of(self.score, o, self.targets) for o in (self.expected, found))
            lost = before - after if self.score.direction == "up" else after - before
            return _Toll(lost, lost, f"a score of {show(after, self.score.unit)}")
        apart = float(distillation_loss(found, self.expected, None, _SETTINGS))
        return _Toll(apart, 1 - agreement(self.expected, found).value, f"a divergence of {apart:.3g}")

    def holds(self, plan: Plan) -> bool:
        """Whether the bounds of the goal hold that the score is no part of."""
        if "fp32" not in self.prepared.device.precisions:
            return False
        clocked, size = sized(self.prepared, plan, self.original, 1.5)
        metrics = {"size": size, "size_ratio": onnx_size(self.original.file).value / size}
        found = {name: metric(name, value, "measured") for name, value in metrics.items()}
        return self.goal.missed({**clocked.metrics, **found}, None) == 0.0
