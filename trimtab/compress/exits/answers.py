"""Answers: what exits and the end of a network answer on the data that thresholds are chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.compress.exits.calibration import calibration_error
from trimtab.compress.exits.heads import Head
from trimtab.compress.exits.teach import listening
from trimtab.compress.exits.thresholds import NEVER, Chosen, Value
from trimtab.core.context import Context
from trimtab.core.store import digest
from trimtab.core.task import Batch
from trimtab.graph.chain import Link
from trimtab.graph.model import Graph, Outputs
from trimtab.train.checkpoint import identity
from trimtab.train.data import checked, join
from trimtab.train.evaluate import outputs, value_of


@dataclass(frozen=True)
class Answers:
    """What heads and network answer on the data to choose on.

    Args:
        logits: [N, exits + 1, classes], the network's own last, not calibrated.
        labels: int64 [N]: the data's, or what the network itself answers.
        targets: the data's targets as the score wants them; None without.
        split: the name of the data.
    """

    logits: Tensor
    labels: Tensor
    targets: Any
    split: str


def answered(graph: Graph, links: Sequence[Link], found: Mapping[str, Head], context: Context) -> Answers | None:
    """Of the validation data, else of the calibration data; None without either."""
    batches, split = (context.validate, "validate") if context.validate else (context.calibrate, "calibrate")
    if not batches:
        return None
    logits, targets = _kept(graph, links, found, batches, split, context)
    own = logits[:, -1].argmax(1)
    whole = isinstance(targets, Tensor) and targets.shape == own.shape and not targets.is_floating_point()
    return Answers(logits, targets.long() if whole else own, targets, split)


def _kept(
    graph: Graph,
    links: Sequence[Link],
    found: Mapping[str, Head],
    batches: Sequence[Batch],
    split: str,
    context: Context,
) -> tuple[Tensor, Any]:
    """Logits and targets; the logits come from the store where they are there."""
    form, names = listening(graph, links, found)
    asked = [checked(batch, form, split) for batch in batches]
    targets = None if any(target is None for _, target in asked) else join([target for _, target in asked])

    def run() -> Tensor:
        answers, _ = outputs(form, batches, split, context.device)
        return torch.stack([answers[name].float() for name in names], 1)

    if context.store is None:
        return run(), targets
    name = f"exits-{digest(identity(form), names, *(tensor for inputs, _ in asked for tensor in inputs))}"
    if context.store.get(name) is None:
        context.store.put(name, {"exits": len(links)}, {"logits": run()})
    return context.store.tensors(name)["logits"], targets


def value_on(answers: Answers, graph: Graph, context: Context) -> Value:
    """How good answers are: by the task's score where there are targets, else by agreement with the end's."""
    score = context.score
    if score is None or answers.targets is None:
        own = answers.logits[:, -1].argmax(1)
        return lambda found: float((found.argmax(1) == own).double().mean())
    sign = 1.0 if score.direction == "up" else -1.0

    def value(found: Tensor) -> float:
        return sign * value_of(score, found if graph.bare else Outputs({graph.outputs[0]: found}), answers.targets)

    return value


def told(
    links: Sequence[Link], answers: Answers, degrees: Sequence[float], taus: Sequence[float], chosen: Chosen | None
) -> list[str]:
    """What the report says: calibration of each exit, and what the choice gave."""
    found = []
    for k, (link, degree, tau) in enumerate(zip(links, degrees, taus, strict=True)):
        if tau < NEVER:
            logits = answers.logits[:, k]
            before, after = (calibration_error(z, answers.labels) for z in (logits, logits / degree))
            found.append(f"{link.name} {before:.3f} before, {after:.3f} after (T {degree:g}, threshold {tau:g})")
    if not found or chosen is None:
        return []
    away = [f"{s:.0%} at {link.name}" for link, s, t in zip(links, chosen.shares, taus, strict=False) if t < NEVER]
    return [
        f"Exits: of the {len(answers.logits)} inputs of `{answers.split}` {', '.join(away)} leave when chosen, for a "
        f"mean of {chosen.cost:.0%} of the multiply-adds and a drop of {chosen.drop:.4f} there.",
        f"Expected calibration error of the exits on `{answers.split}`: {'; '.join(found)}.",
    ]
