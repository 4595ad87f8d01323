"""Race: distil the candidate plans briefly, halve them, and predict who meets the goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trimtab.compress.order import STRUCTURE
from trimtab.compress.plan import apply_plan, step_of
from trimtab.compress.recover import Distil
from trimtab.core.context import Context
from trimtab.core.metric import Metric
from trimtab.core.plan import Plan
from trimtab.core.trial import Trial
from trimtab.graph.model import Graph
from trimtab.pipeline.candidates import Candidate
from trimtab.pipeline.prepare import Prepared, scored, settled
from trimtab.train.loop import steps_for

EXPONENT = 0.33
"""A drop shrinks about as steps^-EXPONENT until two rungs have shown how it does here (0.33 and 0.35 on ResNet-56)."""
RATE = 0.02
FEATURES = 30.0
"""Highest learning rate and weight of the features: ResNet-56 cut to 0.43 of its multiply-adds was at 82.6 % after 200
steps with 0.05 and no features, 86.8 with 0.02, 85.7 with 0.05 and weight 10, 88.2 with 0.02 and 30."""
SAFETY = 0.7
"""Share of the allowed drop that a prediction may use: the control may gain what the candidate must then make good."""


@dataclass(frozen=True)
class Runner:
    """A candidate in the race.

    Args:
        candidate: what it came from.
        plan: its steps with the training so far.
        steps: training steps so far.
        score: on the validation data, in floating point, or on few bits where the candidate has them.
        drop: how much worse than the original, in the score's unit.
    """

    candidate: Candidate
    plan: Plan
    steps: int
    score: Metric
    drop: float


def training(graph: Graph, context: Context, steps: int, *, brief: bool = False) -> Distil:
    """How fit trains a network: distilled from the original, with precision and layout settled by the clock.

    SGD with Nesterov momentum where there is batch norm, AdamW elsewhere.

    Args:
        graph: the network.
        context: the seed and the training data.
        steps: batches.
        brief: a rung of the race: half the learning rate, so that a longer training can follow.
    """
    normed = any("batch_norm" in str(n.target) for n in graph.nodes())
    half = 0.5 if brief else 1.0
    plain = (
        Distil(steps, lr=RATE * half, features=FEATURES)
        if normed
        else Distil(steps, optimiser="adamw", lr=5e-4 * half, weight_decay=0.01, features=FEATURES)
    )
    return replace(plain, seed=context.seed).resolve(graph, context)


def steps_in(prepared: Prepared, graph: Graph, distil: Distil, seconds: float, name: str) -> int:
    """Steps of a training in a time: measured once, then stored, so that a resumed run does the same."""
    return int(settled(prepared, f"steps {name}", lambda: steps_for(seconds, graph, prepared.context, distil.recipe())))


def structural(plan: Plan) -> Plan:
    """A plan without what comes after the cuts: training and quantisation."""
    return Plan(tuple(s for s in plan.steps if s["technique"] in STRUCTURE))


def quantising(plan: Plan) -> list[dict[str, Any]]:
    """The steps of a plan that quantise."""
    return [dict(s) for s in plan.steps if s["technique"] == "Quantise"]


def coarse(plan: Plan) -> bool:
    """Whether a plan keeps weights of some layers in fewer than 8 bits."""
    return any(step.get("layers") for step in quantising(plan))


def extend(plan: Plan, *steps: dict[str, Any]) -> Plan:
    """A plan with more steps at its end."""
    return Plan((*plan.steps, *steps), plan.model)


def rung(
    prepared: Prepared, candidates: Sequence[Candidate | Runner], seconds: float, original: Metric, name: str
) -> tuple[list[Runner], list[Trial]]:
    """Train each a little more, in the same time each, and score it on the validation data.

    Returns:
        those that went well, and failed trials for the others.
    """
    runners, failed = [], []
    for k, entry in enumerate(candidates):
        candidate = entry.candidate if isinstance(entry, Runner) else entry
        before = entry.plan if isinstance(entry, Runner) else structural(candidate.plan)
        prepared.context.progress(f"race {name}", k, len(candidates))
        try:
            graph = apply_plan(prepared.graph, before, prepared.context)
            distil = training(graph, prepared.context, 1, brief=True)
            steps = steps_in(prepared, graph, distil, seconds, f"{name} {candidate.name}")
            plan = extend(before, step_of(replace(distil, steps=steps)))
            # few bits cost as cuts do: a race without them would find them free
            raced = extend(plan, *quantising(candidate.plan)) if coarse(candidate.plan) else plan
            found = scored(prepared, apply_plan(prepared.graph, raced, prepared.context))
        except RuntimeError as error:  # one network that breaks in training must not end the run
            failed.append(Trial(candidate.name, before, error=f"{type(error).__name__}: {error}", stage=f"race {name}"))
            continue
        if found is not None:
            done = steps + (entry.steps if isinstance(entry, Runner) else 0)
            runners.append(Runner(candidate, plan, done, found, drop(original, found)))
    prepared.context.progress(f"race {name}", len(candidates), len(candidates))
    return runners, failed


def drop(original: Metric, other: Metric) -> float:
    """How much worse another score is, in the score's unit; negative if better."""
    return original.value - other.value if original.direction == "up" else other.value - original.value


def exponent(first: Sequence[Runner], second: Sequence[Runner]) -> float:
    """How fast drops shrink with steps, from candidates that ran both rungs; within 0.2 and 1."""
    found = []
    for late in second:
        early = next((r for r in first if r.candidate.name == late.candidate.name), None)
        if early is not None and early.drop > 1e-4 and late.drop > 1e-4 and late.steps > early.steps:
            found.append(math.log(early.drop / late.drop) / math.log(late.steps / early.steps))
    return min(max(sum(found) / len(found), 0.2), 1.0) if found else EXPONENT


def predict(runner: Runner, more: int, power: float) -> float:
    """The drop after `more` further steps: drop (n / (n + more))^power; a gain stays as it is.

    A power law of the training steps, as learning curves are near their end (Hestness et al. 2017).
    """
    if runner.drop <= 0:
        return runner.drop
    return float(runner.drop * (runner.steps / (runner.steps + more)) ** power)


def winner(runners: Sequence[Runner], drops: Sequence[float], allowed: float | None, cost: str) -> Runner:
    """The cheapest runner whose predicted drop is allowed; where none is, the one that comes nearest."""
    pairs = list(zip(runners, drops, strict=True))
    good = [r for r, d in pairs if allowed is None or d <= SAFETY * allowed]
    if good:
        return min(good, key=lambda r: r.candidate.predicted[cost])
    return min(pairs, key=lambda pair: pair[1])[0]
