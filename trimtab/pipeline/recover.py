"""Recover: race the candidate plans, train the winner fully, and quantise it with training where that pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from trimtab.compress.plan import apply_plan, step_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.trial import Trial
from trimtab.pipeline.candidates import Candidate
from trimtab.pipeline.pays import paying
from trimtab.pipeline.points import Point
from trimtab.pipeline.prepare import Prepared, scored, settled
from trimtab.pipeline.race import (
    Runner,
    exponent,
    extend,
    predict,
    rung,
    steps_in,
    structural,
    training,
    winner,
)

ENTRIES = 4
"""Candidates that enter the race."""
FIRST, SECOND, AWARE = 0.16, 0.12, 0.14
"""Shares of the training time: the first rung, the second, and quantisation-aware training; recovery has the rest."""
PROOF = 0.10
"""Share of what is left of the run that is kept for proof, 60 s at least."""


def recover(
    prepared: Prepared, plans: Sequence[Candidate], whole: Point, original: Point, goal: Goal, failed: list[Trial]
) -> Iterator[tuple[str, Plan, tuple[str, ...]]]:
    """Train the candidates; gives `(name, plan, what did not pay)` of each that should become a point.

    The plans' last step quantises, as the candidate says. Trainings are stored when they are done,
    and step counts before they are used: a run that is started again goes on, with the same result.
    """
    entries = _entries(plans)
    if not entries or original.validate is None:
        return
    seconds = _budget(prepared)
    reference = original.validate
    first, lost = rung(prepared, entries, FIRST * seconds / len(entries), reference, "1")
    failed += lost
    if not first:
        return
    better = sorted(first, key=lambda r: r.drop)[: max(len(first) // 2, 1)]
    # the cheaper of two that are equally good may still be good enough: the halves are by cost among the good
    second, lost = rung(prepared, better, SECOND * seconds / len(better), reference, "2")
    failed += lost
    runners = _latest(first, second)
    power = exponent(first, second)
    left = _left(prepared, seconds)
    drops = [predict(r, _estimate(r, left, seconds, len(entries)), power) for r in runners]
    cost = goal.minimise if goal.minimise in ("latency", "size", "macs") else "latency"
    best = winner(runners, drops, goal.max_drop, cost)
    for runner in runners:
        if runner.candidate.name != best.candidate.name:
            yield runner.candidate.name, extend(runner.plan, *_quantise(runner.candidate.plan)), ()
    sentences: tuple[str, ...] = ()
    if cost == "latency":
        kept, sentences = _paying(prepared, best.candidate.plan, original)
        if sentences:  # the cut is undone: its training so far is for another network
            best = replace(best, plan=structural(kept))
    trained = _train(prepared, best, left)
    aware, sentence = _aware(prepared, trained, best.candidate.plan, AWARE * seconds)
    yield best.candidate.name, aware, (*sentences, *sentence)


def _paying(prepared: Prepared, plan: Plan, original: Point) -> tuple[Plan, tuple[str, ...]]:
    def measure() -> dict[str, Any]:
        kept, sentences = paying(prepared, plan, original, ("Prune",))
        return {"plan": kept.json(), "sentences": list(sentences)}

    found = settled(prepared, "pays", measure)
    return Plan.of_json(found["plan"]), tuple(found["sentences"])


def _entries(plans: Sequence[Candidate]) -> list[Candidate]:
    """Plans with a cut, evenly over the budgets, at most ENTRIES."""
    cut = [c for c in plans if structural(c.plan).steps]
    if len(cut) <= ENTRIES:
        return cut
    return [cut[1 + k] for k in range(ENTRIES)]


def _budget(prepared: Prepared) -> float:
    """Seconds of training that the run has, settled once."""
    return float(settled(prepared, "budget", lambda: _for_training(prepared)))


def _for_training(prepared: Prepared) -> float:
    left = max(prepared.context.seconds_left(), 1.0)
    return max(left - max(60.0, PROOF * left), 0.4 * left)


def _left(prepared: Prepared, seconds: float) -> float:
    """Seconds for recovery: what the race has left of the run, settled once; its share at least."""
    aware = AWARE * seconds if _integer(prepared) else 0.0
    share = seconds * (1 - FIRST - SECOND) - aware
    return float(settled(prepared, "left", lambda: max(_for_training(prepared) - aware, share)))


def _latest(first: Sequence[Runner], second: Sequence[Runner]) -> list[Runner]:
    later = {r.candidate.name: r for r in second}
    return [later.get(r.candidate.name, r) for r in first]


def _estimate(runner: Runner, left: float, seconds: float, entries: int) -> int:
    """Steps that a runner would have in the time left, at the pace it has had."""
    had = FIRST * seconds / entries if runner.plan.steps[-1].get("steps") == runner.steps else None
    pace = runner.steps / (had if had else FIRST * seconds / entries + SECOND * seconds / max(entries // 2, 1))
    return int(pace * left)


def _train(prepared: Prepared, runner: Runner, seconds: float) -> Plan:
    graph = apply_plan(prepared.graph, runner.plan, prepared.context)
    distil = training(graph, prepared.context, 1)
    steps = steps_in(prepared, graph, distil, seconds, f"recover {runner.candidate.name}")
    return extend(runner.plan, step_of(replace(distil, steps=steps, seed=prepared.context.seed + 1)))


def _integer(prepared: Prepared) -> bool:
    return prepared.context.target.precision == "int8"


def _quantise(plan: Plan) -> list[dict[str, Any]]:
    return [dict(s) for s in plan.steps if s["technique"] == "Quantise"]


def _aware(prepared: Prepared, trained: Plan, planned: Plan, seconds: float) -> tuple[Plan, tuple[str, ...]]:
    """The trained plan quantised: with training if that scores better on the validation data."""
    quantise = _quantise(planned)
    if not quantise:
        return trained, ()
    after = extend(trained, *quantise)
    graph = apply_plan(prepared.graph, trained, prepared.context)
    fake = Quantise(skip=tuple(quantise[0].get("skip", ()))).prepare(graph, prepared.context)
    distil = training(fake, prepared.context, 1)
    distil = replace(distil, lr=distil.lr / 10, seed=prepared.context.seed + 2, precision="fp32")
    steps = steps_in(prepared, fake, distil, seconds, "quantisation-aware")
    settings = {k: v for k, v in step_of(replace(distil, steps=steps)).items() if k != "technique"}
    aware = extend(trained, {**quantise[0], "train": settings})
    plain = scored(prepared, apply_plan(prepared.graph, after, prepared.context))
    learnt = scored(prepared, apply_plan(prepared.graph, aware, prepared.context))
    if plain is None or learnt is None:
        return after, ()
    gained = (learnt.value - plain.value) * (1 if plain.direction == "up" else -1)
    if gained > 0:
        return aware, ()
    return after, (f"Quantisation-aware training of {steps} steps did not raise the score ({gained:+.4f}): dropped.",)
