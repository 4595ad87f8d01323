"""Sparsify: single weights, groups or blocks of weights that are exactly zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.compress.quantise.calibrate import calibration_inputs
from trimtab.compress.quantise.staged import chunks
from trimtab.compress.quantise.technique import refuse_quantised
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.compress.sparsify.inputs import seen, sparsify
from trimtab.compress.sparsify.pattern import masks, pattern_of, weight_of
from trimtab.compress.sparsify.permute import permuted
from trimtab.compress.sparsify.rules import Gradual, Moving
from trimtab.compress.sparsify.settings import BY_INPUTS, Dynamic, Schedule, check, dynamic_of, schedule_of
from trimtab.compress.sparsify.weights import Weight, chosen, counts, free, magnitudes, random_scores, settled
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.train.rule import Rule
from trimtab.train.zeros import HoldZeros

_SHARES = (0.0, 0.5, 0.75, 0.9, 0.95)


@dataclass(frozen=True)
class Sparsify:
    """Zeros in place of the weights that matter least: a smaller file, and faster only where a runtime has a kernel.

    Which weights go: those with the least score.

    - `magnitude`: abs(w), below a threshold (eq. 8);
    - `movement`: the sum of -w dL/dw over a training;
    - `wanda`: abs(w) times the norm of the inputs that it meets, in each row; no training;
    - `sparsegpt`: least change of the layer's outputs, the others adjusted; no training;
    - `random`: the baseline.

    Args:
        ratio: the share of zeros, 0 to below 1; N:M says it by itself.
        method: which weights go.
        pattern: where zeros may lie: `free`; `2:4` (two of each four inputs stay), any N:M; `block 4x1` (outputs x
            inputs), any size.
        scope: `global` ranks all weights together, `layer` gives each layer the ratio, `erk` gives wide layers more
            of it. By default `global` for magnitude and movement, else `layer`.
        keep: how many values of each weight stay, by the weight's name, in place of `ratio`; under `*`, of all others.
        layers: ratios of single layers, over `ratio`: names as in `skip`, later ones win.
        permute: put channels into an order in which N:M loses less.
        schedule: `{"kind": "oneshot"}`, or `{"kind": "cubic", "first": 0, "last": 300, "every": 10}` for zeros that
            come during the training, by the cube; steps are chosen where they are not given.
        dynamic: `set` or `rigl`, or an object such as `{"kind": "rigl", "every": 100, "fraction": 0.3, "last": 900}`:
            zeros move during the training.
        train: settings of `Distil` to train with, such as `{"steps": 500}`; None for none. Zeros stay exact.
        samples: calibration samples that `wanda` and `sparsegpt` look at, at most.
        skip: names of layers to leave dense beside the task's `keep`: exact, a prefix, or a pattern.

    Raises:
        InputError: a setting is wrong, a layer would be left without weights, or data is needed that is not there.

    Source: Han et al. (2015), Learning Both Weights and Connections, section 3; Sanh, Wolf & Rush (2020), Movement
    Pruning, section 4; Sun et al. (2023), Wanda, section 3; Frantar & Alistarh (2023), SparseGPT, section 3; Pool & Yu
    (2021), Channel Permutations for N:M Sparsity; Zhu & Gupta (2017); Mocanu et al. (2018), SET; Evci et al. (2020),
    Rigging the Lottery.
    """

    ratio: float | None = None
    method: Literal["magnitude", "movement", "wanda", "sparsegpt", "random"] = "magnitude"
    pattern: str = "free"
    scope: Literal["global", "layer", "erk"] | None = None
    keep: Mapping[str, int] | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    permute: bool = False
    schedule: Mapping[str, Any] | None = None
    dynamic: str | Mapping[str, Any] | None = None
    train: Mapping[str, Any] | None = None
    samples: int = 512
    skip: tuple[str, ...] = ()

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each layer whose weight can be sparse: the share of its zeros."""
        found = free(graph, self.skip, context.task.keep)
        return tuple(Axis(f"Sparsify:{w.layer}", _SHARES, ordered=True) for w in found)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph, evaluating, with its zeros; trained where `train` says so."""
        own, found, notes = self._start(graph, context)
        pattern, training = pattern_of(self.pattern), self._training()
        if self.permute:
            own = permuted(own, found, pattern, context.task.keep, context.seed, context.progress)
        keep = self._counts(own, found, context)
        rule = self._rule(found, keep)
        if not isinstance(rule, Gradual):
            notes += self._at_once(own, found, keep, context)
        if training is not None:
            own = training.fit(own, context, (rule,))
        return own.note(*notes, _summary(own, found, self))

    def resolve(self, graph: Graph, context: Context) -> Sparsify:
        """The same with counts in place of ratios, the schedule in steps, and the training's precision settled."""
        own, found, _ = self._start(graph, context)
        keep = None if pattern_of(self.pattern).kind == "n:m" else self._counts(own, found, context)
        steps, plan, moves = self._steps(), self.schedule, self.dynamic
        if steps:
            plan = asdict(schedule_of(self.schedule, self.method, steps)) if self._gradual() else plan
            moves = asdict(dynamic_of(self.dynamic, steps)) if self.dynamic is not None else None
        train = self.train
        if self.train is not None:
            done = self._training().resolve(own, context)  # type: ignore[union-attr]
            train = {**self.train, "precision": done.precision, "channels_last": done.channels_last}
        return replace(self, ratio=None, keep=keep, layers={}, scope=None, schedule=plan, dynamic=moves, train=train)

    def _start(self, graph: Graph, context: Context) -> tuple[Graph, list[Weight], list[str]]:
        """An evaluating copy, the weights to make sparse, and what is to be said of the others."""
        check(self)
        refuse_quantised(graph, "Sparsify")
        own = set_mode(graph.copy(), False)
        found, notes = chosen(own, self.skip, context.task.keep, pattern_of(self.pattern))
        if self.method in BY_INPUTS:
            able = seen(own, found)
            names = ", ".join(w.layer for w in found if w not in able)
            notes += [f"Sparsify leaves {names} dense: {self.method} has no form for its operator."] if names else []
            found = able
        return own, found, notes

    def _counts(self, graph: Graph, found: list[Weight], context: Context) -> dict[str, int]:
        """How many values of each weight stay; of all together where a training ranks them."""
        pattern = pattern_of(self.pattern)
        if pattern.kind == "n:m":
            return {}
        if self.keep is not None:
            return _checked(self.keep, graph, found)
        scope = self.scope or ("global" if self.method in ("magnitude", "movement") else "layer")
        keep = counts(graph, found, float(self.ratio or 0.0), scope, self.layers)
        # a layer that is left without weights is refused; where a training ranks them, its best weight stays
        whole = settled(self._scores(graph, found, context), keep, pattern)
        return keep if self._gradual() else whole

    def _scores(self, graph: Graph, found: list[Weight], context: Context) -> dict[str, Tensor]:
        return random_scores(graph, found, context.seed) if self.method == "random" else magnitudes(graph, found)

    def _at_once(self, graph: Graph, found: list[Weight], keep: Mapping[str, int], context: Context) -> list[str]:
        """Zeros, in place; what is to be said of the data."""
        pattern = pattern_of(self.pattern)
        if self.method in BY_INPUTS:
            if not context.calibrate and not context.validate:
                do = "Give calibrate= or train= to the Task, or use magnitude."
                raise InputError(f"Sparsify: {self.method} needs data", got="none", do=do)
            inputs, note = calibration_inputs(graph, context, "Sparsify")
            parts = chunks(graph, inputs, self.samples, context.seed)
            sparsify(graph, found, keep, pattern, self.method, parts, context.progress)
            return [note] if note else []
        tensors = graph.tensors()
        for name, mask in masks(self._scores(graph, found, context), keep, pattern).items():
            axis = next(w.axis for w in found if w.name == name)
            with torch.no_grad():
                tensors[name].masked_fill_(~weight_of(mask, tensors[name], axis), 0.0)
        return []

    def _rule(self, found: list[Weight], keep: Mapping[str, int]) -> Rule:
        """What the training does about zeros."""
        names, steps = tuple(w.name for w in found), self._steps()
        if self.dynamic is not None:
            moves: Dynamic = dynamic_of(self.dynamic, steps)
            return Moving(moves.kind, names, int(moves.every or 1), int(moves.last or 0), moves.fraction)
        if not self._gradual():
            return HoldZeros(least=0.0)
        plan: Schedule = schedule_of(self.schedule, self.method, steps)
        at = int(plan.first or 0), int(plan.last or 1), int(plan.every or 1)
        score: Literal["magnitude", "movement"] = "movement" if self.method == "movement" else "magnitude"
        return Gradual(dict(keep), {w.name: w.axis for w in found}, self.pattern, *at, score)

    def _gradual(self) -> bool:
        kind = (self.schedule or {}).get("kind", "cubic" if self.method == "movement" else "oneshot")
        return bool(kind == "cubic")

    def _steps(self) -> int:
        training = self._training()
        return 0 if training is None else training.steps

    def _training(self) -> Distil | None:
        if self.train is None:
            return None
        training: Distil = made(Distil, self.train)
        return training


def _checked(keep: Mapping[str, int], graph: Graph, found: list[Weight]) -> dict[str, int]:
    """Counts of a plan; InputError where they fit no weight of this network."""
    sizes = {w.name: graph.tensors()[w.name].numel() for w in found}
    pool = sum(n for name, n in sizes.items() if name not in keep)
    for name, count in keep.items():
        most = pool if name == "*" else sizes.get(name, 0)
        if not 1 <= count <= most:
            expected = f"1 to {most}" if most else f"one of {', '.join(list(sizes)[:6])}"
            raise InputError("Sparsify: keep", where=name, got=count, expected=expected)
    if pool and "*" not in keep:
        raise InputError("Sparsify: keep", got=", ".join(list(keep)[:6]), expected="every weight, or *", do="Use skip.")
    return dict(keep)


def _summary(graph: Graph, found: list[Weight], settings: Sparsify) -> str:
    tensors = [graph.tensors()[w.name] for w in found]
    total = sum(t.numel() for t in tensors)
    zeros = total - sum(int(torch.count_nonzero(t)) for t in tensors)
    form = "" if settings.pattern == "free" else f" in the pattern {settings.pattern}"
    return f"Sparsify: {100 * zeros / total:.1f} % of {total:,} weights in {len(found)} layers are zero{form}."
