"""Recipe: everything that decides how a network is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trimtab.core.errors import InputError
from trimtab.train.rule import Rule

WEIGHTS: Mapping[str, float] = {
    "fitnets": 30.0,
    "attention": 30.0,
    "distance": 25.0,
    "angle": 50.0,
    "rkd": 25.0,
    "similarity": 3000.0,
    "contrastive": 3.0,
}
"""Of each method where no weight is given: the papers' for distances, angles and similarities. With these, and for the
others too, a term's gradient is about as large as that of the answers (T = 4) once a ResNet-20 is trained; with new
weights it is some ten times as large."""


@dataclass(frozen=True)
class Features:
    """Learn from what the teacher computes on the way (`train.features`).

    Args:
        method: `fitnets` compares values through a learned map where widths differ, `attention` compares where in
            an image the networks answer strongly.
        weight: of the term in the loss, 0 or more; None takes `WEIGHTS`.
        places: pairs to compare, the student's place to the teacher's: names of nodes or of layers (`layer2`, for
            the end of that part). None: the networks are compared where one was made from the other, else at the
            ends of their stages.
        project: `differing` maps where widths differ; `always` everywhere.
    """

    method: Literal["fitnets", "attention"]
    weight: float | None = None
    places: Mapping[str, str] | None = None
    project: Literal["differing", "always"] = "differing"

    @property
    def scale(self) -> float:
        """The weight that counts."""
        return WEIGHTS[self.method] if self.weight is None else self.weight


@dataclass(frozen=True)
class Relations:
    """Learn how the teacher sees the samples of a batch relative to each other (`train.relations`).

    Args:
        method: `distance`, `angle`, `rkd` (distance + 2 angle), `similarity` or `contrastive`.
        weight: of the term in the loss, 0 or more; None takes `WEIGHTS`.
        places: pairs to compare, as in `Features`. None: what the last linear layer reads; for `similarity` the
            end of the last stage.
        temperature: tau of `contrastive`, above 0.
    """

    method: Literal["distance", "angle", "rkd", "similarity", "contrastive"]
    weight: float | None = None
    places: Mapping[str, str] | None = None
    temperature: float = 0.1

    @property
    def scale(self) -> float:
        """The weight that counts."""
        return WEIGHTS[self.method] if self.weight is None else self.weight


@dataclass(frozen=True)
class Distillation:
    """Learn from the teacher's outputs beside the labels, and from what it computes on the way to them.

    L = alpha L_task + (1 - alpha) L_outputs + features.weight L_features + relations.weight L_relations

    Args:
        temperature: T, above 0; softens both distributions.
        alpha: share of the task's own loss, 0 to 1; the teacher's outputs have the rest. At 1 the teacher is
            asked only if `features` or `relations` compare something.
        match: `classes` compares distributions (KL), `values` squared distances; `auto` is
            `classes` where the labels are integers, or where there are none and the output is
            [N, classes], and `values` elsewhere. Classes are dimension 1, in [N, length, classes]
            the last.
        features: what is compared on the way; a number is the weight of the squared distance at the places which
            both networks still have in the same shape.
        relations: what is compared between the samples of a batch.
        weights: of the teachers, in the order of the context's; none counts all alike.
        mean: several teachers: the mean of their `losses`, or the loss against the mean of their `probabilities`.
    """

    temperature: float = 4.0
    alpha: float = 0.1
    match: Literal["auto", "classes", "values"] = "auto"
    features: float | Features = 0.0
    relations: Relations | None = None
    weights: tuple[float, ...] = ()
    mean: Literal["losses", "probabilities"] = "losses"

    @property
    def inner(self) -> bool:
        """Whether anything but outputs is compared."""
        weight = self.features.scale if isinstance(self.features, Features) else self.features
        return weight > 0 or (self.relations is not None and self.relations.scale > 0)

    @property
    def asks(self) -> bool:
        """Whether there is anything to learn from a teacher."""
        return self.alpha < 1 or self.inner


@dataclass(frozen=True)
class Recipe:
    """How to train: a step count, an optimiser, a schedule.

    Args:
        steps: batches to train on.
        optimiser: `sgd` with Nesterov momentum 0.9 (Sutskever et al. 2013), or `adamw`
            (Loshchilov & Hutter 2019).
        lr: highest learning rate.
        weight_decay: of weights; norms and biases (at most one dimension) are not decayed.
        schedule: `one_cycle` rises linearly for `warmup` of the steps and falls as a cosine;
            `cosine` only falls.
        warmup: share of the steps in which `one_cycle` rises.
        clip: largest norm of the gradient; None does not clip.
        precision: `fp32`, `bf16` (autocast; weights stay fp32), or `auto`: the faster, measured.
        channels_last: memory layout of images and their kernels; None: the faster, measured.
        distil: learn from `context.teacher` too; None learns from it only if the task has no loss.
        ema: decay of an exponential moving average of the weights, which is then the result
            (0.99 suits a few hundred steps); None keeps the last weights. The average starts with
            decay (1 + t) / (10 + t), so that short trainings do not end near their start.
        seed: of data order, augmentation and dropout.
        rules: what is done beside following the loss, in order.
    """

    steps: int
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    weight_decay: float = 5e-4
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    warmup: float = 0.2
    clip: float | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool | None = None
    distil: Distillation | None = None
    ema: float | None = None
    seed: int = 0
    rules: tuple[Rule, ...] = ()

    def check(self) -> Recipe:
        """The recipe itself, or InputError naming the setting that is out of range."""
        _within("steps", self.steps, 0, math.inf, "a whole number, 0 or more")
        _within("lr", self.lr, 0, math.inf, "0 or more")
        _within("weight_decay", self.weight_decay, 0, math.inf, "0 or more")
        _within("warmup", self.warmup, 0, 1, "a share from 0 to 1")
        _one_of("optimiser", self.optimiser, ("sgd", "adamw"))
        _one_of("schedule", self.schedule, ("one_cycle", "cosine"))
        _one_of("precision", self.precision, ("auto", "fp32", "bf16"))
        if self.clip is not None:
            _within("clip", self.clip, 1e-12, math.inf, "a norm above 0")
        if self.ema is not None:
            _within("ema", self.ema, 0, 1 - 1e-9, "a decay from 0 to below 1")
        if self.distil is not None:
            _check(self.distil)
        return self


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step, counted from 0.

    With t = step / steps: `one_cycle` is lr (0.04 + 0.96 t / w) up to t = w, the warm-up, and then
    lr (1 + cos(pi (t - w) / (1 - w))) / 2; `cosine` is the same with w = 0. After Smith & Topin
    2019 and Loshchilov & Hutter 2017; ours has one rise, one fall and no momentum cycle.
    """
    t = step / max(recipe.steps, 1)
    warm = recipe.warmup if recipe.schedule == "one_cycle" else 0.0
    if t < warm:
        return recipe.lr * (0.04 + 0.96 * t / warm)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (t - warm) / max(1 - warm, 1e-9)))


def _check(distil: Distillation) -> None:
    _within("temperature", distil.temperature, 1e-6, math.inf, "above 0")
    _within("alpha", distil.alpha, 0, 1, "a share from 0 to 1")
    _one_of("match", distil.match, ("auto", "classes", "values"))
    _one_of("mean", distil.mean, ("losses", "probabilities"))
    features, relations = distil.features, distil.relations
    for weight in distil.weights:
        _within("weights", weight, 0, math.inf, "weights of the teachers, 0 or more")
    if distil.weights and sum(distil.weights) == 0:
        raise InputError("recipe: weights", got=list(distil.weights), expected="one above 0")
    if isinstance(features, Features):
        _one_of("features: method", features.method, ("fitnets", "attention"))
        _one_of("features: project", features.project, ("differing", "always"))
        _within("features: weight", features.scale, 0, math.inf, "a weight, 0 or more")
    else:
        _within("features", features, 0, math.inf, "a weight, 0 or more")
    if relations is not None:
        _one_of("relations: method", relations.method, ("distance", "angle", "rkd", "similarity", "contrastive"))
        _within("relations: weight", relations.scale, 0, math.inf, "a weight, 0 or more")
        _within("relations: temperature", relations.temperature, 1e-6, math.inf, "above 0")


def _within(name: str, value: float, low: float, high: float, expected: str) -> None:
    whole = not isinstance(value, bool) and (isinstance(value, int) or name != "steps")
    if not whole or not low <= value <= high or not math.isfinite(value):
        raise InputError(f"recipe: {name}", got=value, expected=expected)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"recipe: {name}", got=repr(value), expected=f"one of {', '.join(choices)}")
