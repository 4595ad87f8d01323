"""Recover: race the candidate plans, train the winner fully, and quantise it with training where that pays."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trimtab.compress.plan import apply_plan, step_of, technique_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric
from trimtab.core.plan import Plan
from trimtab.core.trial import Trial
from trimtab.pipeline.candidates import Candidate, bounds_of
from trimtab.pipeline.pays import paying
from trimtab.pipeline.points import Point
from trimtab.pipeline.prepare import Prepared, scored, settled
from trimtab.pipeline.race import (
    EXPONENT,
    Runner,
    coarse,
    drop,
    exponent,
    extend,
    predict,
    quantising,
    rung,
    steps_in,
    structural,
    training,
    winner,
)
from trimtab.pipeline.repair import noticed, repaired
from trimtab.pipeline.space import COSTS

PROOF = 0.10
"""Share of what is left of the run that is kept for proof, 60 s at least."""
APART = 0.95
"""A candidate enters if it is predicted to cost at most this share of the one before it."""


@dataclass(frozen=True)
class Shares:
    """How the training time is spent; recovery has what is left.

    Args:
        entries: candidates that enter the race.
        first: share of the first rung, for all together.
        second: share of the second rung.
        aware: share of quantisation-aware training, where quantisation costs something.
    """

    entries: int
    first: float
    second: float
    aware: float = 0.14


OPEN = Shares(entries=4, first=0.16, second=0.12)
"""Nothing is said of the cost: the race finds how deep a cut can be made good."""
BOUNDED = Shares(entries=2, first=0.08, second=0.0)
"""The goal bounds what is minimised: the mildest plan within the bound, and one beyond it."""


@dataclass(frozen=True)
class Recovered:
    """A network that should become a point.

    Args:
        name: of the candidate that it came from.
        plan: with its training.
        dropped: a sentence for each step that did not pay.
        kept: a sentence for each repair of its quantisation that did.
    """

    name: str
    plan: Plan
    dropped: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def recover(
    prepared: Prepared, plans: Sequence[Candidate], original: Point, goal: Goal, failed: list[Trial]
) -> Iterator[Recovered]:
    """Train the candidates; gives each that should become a point.

    The plans' last step quantises, as the candidate says. Trainings are stored when they are done,
    and step counts before they are used: a run that is started again goes on, with the same result.
    """
    shares = BOUNDED if goal.minimise in bounds_of(goal, dict.fromkeys(COSTS, 1.0)) else OPEN
    cost = goal.minimise if goal.minimise in COSTS else "latency"
    entries = _entries(plans, shares.entries, cost)
    if not entries or original.validate is None:
        return
    seconds = float(settled(prepared, "budget", lambda: _for_training(prepared)))
    runners, power = _race(prepared, entries, shares, seconds, original.validate, failed)
    if not runners:
        return
    share = seconds * (1 - shares.first - shares.second - shares.aware)
    drops = [predict(r, int(r.steps * share / _had(r, shares, seconds, len(entries))), power) for r in runners]
    best = winner(runners, drops, goal.max_drop, cost)
    for runner in runners:
        if runner.candidate.name != best.candidate.name:
            yield Recovered(runner.candidate.name, extend(runner.plan, *quantising(runner.candidate.plan)))
    sentences: tuple[str, ...] = ()
    if cost == "latency":
        kept, sentences = _paying(prepared, best.candidate.plan, original, goal)
        if sentences:  # the cut is undone: its training so far is for another network
            best = replace(best, plan=structural(kept))
    aware = shares.aware * seconds if _costs(prepared, best, goal) else 0.0
    left = float(settled(prepared, "left", lambda: max(_for_training(prepared) - aware, 0.5 * share)))
    trained = _train(prepared, best, left)
    made = _quantised(prepared, replace(best, plan=trained), goal, original, aware)
    yield replace(made, dropped=(*sentences, *made.dropped))


def _had(runner: Runner, shares: Shares, seconds: float, entries: int) -> float:
    """Seconds of training that a runner has had: one rung, or both."""
    rungs = sum(s["technique"] == "Distil" for s in runner.plan.steps)
    both = shares.second * seconds / max(entries // 2, 1) if rungs > 1 else 0.0
    return shares.first * seconds / entries + both


def _race(
    prepared: Prepared,
    entries: Sequence[Candidate],
    shares: Shares,
    seconds: float,
    original: Metric,
    failed: list[Trial],
) -> tuple[list[Runner], float]:
    """The candidates after their rungs, and how fast their drops shrink with steps."""
    first, lost = rung(prepared, entries, shares.first * seconds / len(entries), original, "1")
    failed += lost
    if not shares.second or len(first) < 3:
        return first, EXPONENT
    half = sorted(first, key=lambda r: r.drop)[: len(first) // 2]
    second, lost = rung(prepared, half, shares.second * seconds / len(half), original, "2")
    failed += lost
    later = {r.candidate.name: r for r in second}
    return [later.get(r.candidate.name, r) for r in first], exponent(first, second)


def _costs(prepared: Prepared, runner: Runner, goal: Goal) -> bool:
    """Whether quantising costs enough of the allowed drop to be worth training for; settled on the raced network."""
    quantise = quantising(runner.candidate.plan)
    if not quantise:
        return False

    def lost() -> float:
        plain, integer = (
            scored(prepared, apply_plan(prepared.graph, plan, prepared.context))
            for plan in (runner.plan, extend(runner.plan, *quantise))
        )
        return drop(plain, integer) if plain is not None and integer is not None else 0.0

    return noticed(settled(prepared, "quantising costs", lost), goal)


def _paying(prepared: Prepared, plan: Plan, original: Point, goal: Goal) -> tuple[Plan, tuple[str, ...]]:
    def measure() -> dict[str, Any]:
        kept, sentences = paying(prepared, plan, original, goal, ("Factorise", "Prune"))
        return {"plan": kept.json(), "sentences": list(sentences)}

    found = settled(prepared, "pays", measure)
    return Plan.of_json(found["plan"]), tuple(found["sentences"])


def _entries(plans: Sequence[Candidate], most: int, cost: str) -> list[Candidate]:
    """Plans with a cut or few bits, at most so many: from the mildest where bounds ask for that, else from the next."""
    cut: list[Candidate] = []
    for plan in plans:
        changed = structural(plan.plan).steps or coarse(plan.plan)
        if changed and (not cut or plan.predicted[cost] < APART * cut[-1].predicted[cost]):
            cut.append(plan)
    start = 1 if most == OPEN.entries and len(cut) > most else 0
    return cut[start : start + most]


def _for_training(prepared: Prepared) -> float:
    """Seconds of the run that training may use from now on."""
    left = max(prepared.context.seconds_left(), 1.0)
    return max(left - max(60.0, PROOF * left), 0.4 * left)


def _train(prepared: Prepared, runner: Runner, seconds: float) -> Plan:
    graph = apply_plan(prepared.graph, runner.plan, prepared.context)
    distil = training(graph, prepared.context, 1)
    steps = steps_in(prepared, graph, distil, seconds, f"recover {runner.candidate.name}")
    return extend(runner.plan, step_of(replace(distil, steps=steps, seed=prepared.context.seed + 1)))


def _quantised(prepared: Prepared, trained: Runner, goal: Goal, original: Point, seconds: float) -> Recovered:
    """A trained plan quantised: repaired where that costs too much, and trained for where it still does."""
    quantise, name = quantising(trained.candidate.plan), trained.candidate.name
    after = Recovered(name, extend(trained.plan, *quantise))
    if not quantise or seconds <= 0:
        return after
    start = time.monotonic()
    better = repaired(prepared, after.plan, goal, original, seconds / 2)
    after = replace(after, plan=better.plan, dropped=better.dropped, kept=better.kept)
    if not noticed(better.lost, goal):
        return after
    aware = _aware(prepared, trained.plan, quantise[0], max(seconds - (time.monotonic() - start), seconds / 2))
    plain, learnt = (scored(prepared, apply_plan(prepared.graph, p, prepared.context)) for p in (after.plan, aware))
    if plain is None or learnt is None:
        return after
    gained = drop(learnt, plain)
    if gained > 0:
        return Recovered(name, aware, after.dropped)
    steps = aware.steps[-1]["train"]["steps"]
    told = f"Quantisation-aware training of {steps} steps did not raise the score ({gained:+.4f}): dropped."
    return replace(after, dropped=(*after.dropped, told))


def _aware(prepared: Prepared, trained: Plan, quantise: dict[str, Any], seconds: float) -> Plan:
    """The trained plan with quantisation that trains for so long: few bits at a higher rate, for they have farther."""
    graph = apply_plan(prepared.graph, trained, prepared.context)
    # training moves weights and biases itself
    quantise = {name: value for name, value in quantise.items() if name not in ("rounding", "correct")}
    technique = technique_of({**quantise, "train": {"steps": 1}})
    assert isinstance(technique, Quantise)
    fake = technique.prepare(graph, prepared.context)
    distil = training(fake, prepared.context, 1)
    rate = distil.lr / (2 if quantise.get("layers") else 10)
    distil = replace(distil, lr=rate, seed=prepared.context.seed + 2, precision="fp32")
    steps = steps_in(prepared, fake, distil, seconds, "quantisation-aware")
    settings = {k: v for k, v in step_of(replace(distil, steps=steps)).items() if k != "technique"}
    return extend(trained, {**quantise, "train": settings})
