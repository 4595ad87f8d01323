"""Control: the original, given the same training as the winner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.compress.plan import apply_plan
from trimtab.core.metric import Metric
from trimtab.core.plan import Plan
from trimtab.pipeline.prepare import Prepared
from trimtab.train.evaluate import evaluate


def control_plan(plan: Plan) -> Plan:
    """The training steps of a plan, with the same settings, and nothing else.

    Quantisation-aware training counts as training of as many steps.
    """
    steps: list[Mapping[str, Any]] = []
    for step in plan.steps:
        if step["technique"] == "Distil":
            steps.append(step)
        elif step.get("train"):
            steps.append({"technique": "Distil", **step["train"]})
    return Plan(tuple(steps))


def train_control(prepared: Prepared, plan: Plan) -> dict[str, Metric]:
    """Train the original by the training steps of a plan; gives its score on the data to prove on.

    Empty where the plan has no training, or the task no score or no data to prove on: then the
    original is its own control.
    """
    alone = control_plan(plan)
    score = prepared.context.score
    if not alone.steps or score is None or not prepared.test:
        return {}
    graph = apply_plan(prepared.graph, alone, prepared.context)
    return {"score": evaluate(graph, prepared.test, score, split="test")}
