"""Distil and Recalibrate: give a changed network its accuracy back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from trimtab.compress.settings import made
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.core.task import Batch
from trimtab.graph.model import Graph
from trimtab.train.checkpoint import identity
from trimtab.train.loop import fit_network
from trimtab.train.precision import concrete
from trimtab.train.recalibrate import recalibrate_norms
from trimtab.train.recipe import Distillation, Features, Recipe, Relations
from trimtab.train.rule import Rule
from trimtab.train.step import teachers_of
from trimtab.train.zeros import HoldZeros, has_sparse


@dataclass(frozen=True)
class Distil:
    """Train for some steps on labels and on what a teacher answers, computes on the way, and sees in a batch.

    L = alpha L_task + (1 - alpha) T^2 KL(teacher || student) + features L_features + relations L_relations (eq. 15-19)

    The teacher is the context's: the captured original, or what `trimtab distil` was given; further ones stand
    beside it. `alpha=1` without features and relations is plain training on the labels, and what the control is given.

    Args:
        steps: batches to train on.
        temperature: T, above 0.
        alpha: share of the task's own loss, 0 to 1.
        match: `auto`, `classes` or `values`: what the teacher's outputs are.
        features: weight of the distance between the two networks' features where both still have them (eq. 17); or
            settings of `train.recipe.Features`, such as `{"method": "fitnets", "weight": 10}`.
        relations: settings of `train.recipe.Relations`, such as `{"method": "rkd", "weight": 1}` (eq. 18-19).
        weights: of the teachers, where there are several.
        mean: of several teachers: of their `losses` or of their `probabilities`.
        teachers: hashes of the networks that it must learn from (`train.checkpoint.identity`), in order; none takes
            those of the context whatever they are.
        optimiser: `sgd` (Nesterov momentum 0.9) or `adamw`.
        lr: highest learning rate, on a one-cycle schedule.
        weight_decay: of weights.
        ema: decay of an average of the weights, which is then the result; None for none.
        precision: `fp32`, `bf16`, or `auto`: the faster, measured. A plan that must replay says which.
        channels_last: the same choice of memory layout: true, false, or None for the faster.
        seed: of data order, augmentation and dropout.

    Raises:
        InputError: a setting is out of range, or there is no training data, or neither loss nor teacher.

    Source: Hinton, Vinyals & Dean (2015), Distilling the Knowledge in a Neural Network, section 2;
    Romero et al. (2015), FitNets, equation 3; Zagoruyko & Komodakis (2017), equation 2; Park et al. (2019), section
    3.2; Tung & Mori (2019), equations 1 to 4; Tian et al. (2020), section 3.1.
    """

    steps: int
    temperature: float = 4.0
    alpha: float = 0.1
    match: Literal["auto", "classes", "values"] = "auto"
    features: float | Mapping[str, Any] = 0.0
    relations: Mapping[str, Any] | None = None
    weights: tuple[float, ...] = ()
    mean: Literal["losses", "probabilities"] = "losses"
    teachers: tuple[str, ...] = ()
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    weight_decay: float = 5e-4
    ema: float | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool | None = None
    seed: int = 0

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """None: it chooses nothing about the network's form."""
        return ()

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with trained weights, evaluating; a sparse weight (see `train.zeros`) keeps its zeros."""
        return self.fit(graph, context, (HoldZeros(),) if has_sparse(graph) else ())

    def fit(self, graph: Graph, context: Context, rules: tuple[Rule, ...]) -> Graph:
        """The same under other rules: what a technique that trains does beside following the loss."""
        self._check(context)
        return fit_network(graph, context, replace(self.recipe(), rules=rules))

    def resolve(self, graph: Graph, context: Context) -> Distil:
        """The same with the precision and layout settled, measured where they are open."""
        settled = concrete(graph, context, self.recipe())
        return replace(self, precision=settled.precision, channels_last=settled.channels_last)

    def distillation(self) -> Distillation:
        """What is learnt from the teachers."""
        features = made(Features, self.features) if isinstance(self.features, Mapping) else self.features
        relations = None if self.relations is None else made(Relations, self.relations)
        outputs = (self.temperature, self.alpha, self.match)
        return Distillation(*outputs, features, relations, self.weights, self.mean)

    def _check(self, context: Context) -> None:
        """InputError where the context's teachers are not those that the training was planned with."""
        found = tuple(identity(each) for each in teachers_of(context)) if self.teachers else ()
        if found != self.teachers:
            raise InputError(
                "Distil: other teachers than it was planned with",
                got=", ".join(found) or "none",
                expected=", ".join(self.teachers),
                do="Distil again with `trimtab distil TEACHER STUDENT`, or leave teachers out of the plan.",
            )

    def recipe(self) -> Recipe:
        """The training recipe that these settings stand for."""
        return Recipe(
            steps=self.steps,
            optimiser=self.optimiser,
            lr=self.lr,
            weight_decay=self.weight_decay,
            precision=self.precision,
            channels_last=self.channels_last,
            distil=self.distillation(),
            ema=self.ema,
            seed=self.seed,
        ).check()


@dataclass(frozen=True)
class Recalibrate:
    """Measure the running statistics of batch norms anew, which a cut has made wrong.

    Args:
        batches: of training data to measure on, without labels; of `calibrate` where there is none.

    Raises:
        InputError: there are no data, or batches of one sample only.

    Source: Izmailov et al. (2018), Averaging Weights Leads to Wider Optima, section 3.2 (`update_bn`).
    """

    batches: int = 32

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """None: it chooses nothing about the network's form."""
        return ()

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with new statistics; a network without batch norm comes back as it is."""
        if self.batches < 1:
            raise InputError("Recalibrate: batches", got=self.batches, expected="1 or more")
        data: Iterable[Batch] = context.train if context.train is not None else context.calibrate
        if context.train is None and not context.calibrate:
            raise InputError("Recalibrate: no data", do="Give train= or calibrate= to the Task.")
        return recalibrate_norms(graph, _seeded(data, context.seed, self.batches), context.device)


def _seeded(data: Iterable[Batch], seed: int, count: int) -> Iterable[Batch]:
    """The first batches of the order that the seed gives."""
    from trimtab.train.data import stream

    return [batch for _, _, batch in islice(stream(data, seed), count)]
