"""Control: the original, given the same training as the winner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.compress.plan import apply_plan
from trimtab.core.metric import Metric
from trimtab.core.plan import Plan
from trimtab.pipeline.prepare import Prepared, scored
from trimtab.pipeline.race import drop
from trimtab.train.evaluate import evaluate


def control_plan(plan: Plan) -> Plan:
    """The training steps of a plan, with the same settings, and nothing else.

    Quantisation-aware training counts as training of as many steps, that of a schedule of cuts once for each round.
    That of exits' heads alone, and of alternatives block by block, counts as none: the network does not learn by it.
    """
    steps: list[Mapping[str, Any]] = []
    for step in plan.steps:
        if step["technique"] == "Distil":
            steps.append(step)
        elif step["technique"] == "Swap" or (step["technique"] == "Exits" and not step.get("joint")):
            continue  # its parts learn, and the network does not
        elif step.get("train"):
            steps += [{"technique": "Distil", **step["train"]}] * step.get("rounds", 1)
    return Plan(tuple(steps))


def train_control(prepared: Prepared, plan: Plan) -> tuple[dict[str, Metric], Metric | None]:
    """Train the original by the training steps of a plan.

    Returns:
        its score on the data to prove on as metrics, and its score on the data to choose on. Without
        training in the plan, or without a score, there is none: the original is its own control.
    """
    alone = control_plan(plan)
    score = prepared.context.score
    if not alone.steps or score is None or not prepared.test:
        return {}, None
    graph = apply_plan(prepared.graph, alone, prepared.context)
    return {"score": evaluate(graph, prepared.test, score, split="test")}, scored(prepared, graph)


def better(original: Metric | None, control: Metric | None) -> Metric | None:
    """The better score of the original and its control: what a drop counts from."""
    if original is None or control is None:
        return original
    return original if drop(original, control) >= 0 else control
