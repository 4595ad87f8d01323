"""Recipe: everything that decides how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trimtab.core.errors import InputError
from trimtab.train.rule import Rule


@dataclass(frozen=True)
class Distillation:
    """Learn from the teacher's outputs beside the labels.

    Args:
        temperature: T, above 0; softens both distributions.
        alpha: share of the task's own loss, 0 to 1; the teacher has the rest.
        match: `classes` compares distributions (KL), `values` squared distances; `auto` is
            `classes` where the labels are integers, or where there are none and the output is
            [N, classes], and `values` elsewhere. Classes are dimension 1, in [N, length, classes]
            the last.
        features: weight of the distance between features (`train.features`), 0 or more.
    """

    temperature: float = 4.0
    alpha: float = 0.1
    match: Literal["auto", "classes", "values"] = "auto"
    features: float = 0.0


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
            _within("temperature", self.distil.temperature, 1e-6, math.inf, "above 0")
            _within("alpha", self.distil.alpha, 0, 1, "a share from 0 to 1")
            _within("features", self.distil.features, 0, math.inf, "a weight, 0 or more")
            _one_of("match", self.distil.match, ("auto", "classes", "values"))
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


def _within(name: str, value: float, low: float, high: float, expected: str) -> None:
    whole = not isinstance(value, bool) and (isinstance(value, int) or name != "steps")
    if not whole or not low <= value <= high or not math.isfinite(value):
        raise InputError(f"recipe: {name}", got=value, expected=expected)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"recipe: {name}", got=repr(value), expected=f"one of {', '.join(choices)}")
