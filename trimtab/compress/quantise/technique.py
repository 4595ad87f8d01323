"""Quantise: weights and activations in integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from trimtab.compress.quantise.annotate import annotate, layer_name
from trimtab.compress.quantise.convert import integers
from trimtab.compress.quantise.correct import corrected
from trimtab.compress.quantise.insert import weights_of
from trimtab.compress.quantise.low_bits import low_weights_of
from trimtab.compress.quantise.prepare import Ready, Wanted, ready, support_of
from trimtab.compress.quantise.ranges import Calibration
from trimtab.compress.quantise.rounding import rounded, rounding_of
from trimtab.compress.quantise.scheme import BITS, EIGHT, FLOATS, ActivationScheme, activation_scheme
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode


def _weight() -> dict[str, Any]:
    return {"bits": EIGHT, "per": "channel"}


def _activation() -> dict[str, Any]:
    return {"bits": EIGHT}


@dataclass(frozen=True)
class Quantise:
    """Integer weights and activations, calibrated after training (no labels needed), or trained.

    q = clamp(round(x / s) + z, low, high) (eq. 11); weights symmetric, activations unsigned and asymmetric.
    What is quantised is exactly what the runtime fuses. Widths without a kernel make the file smaller, not faster.

    Args:
        weight: `{"bits": 2 to 8, "per": "channel" | "tensor" | "group"}`; with groups, `{"group": 32}` says how many
            inputs of a linear layer share a scale. `{"kind": "int" | "ternary" | "binary" | "fp16" | "bf16" | "fp8"}`:
            ternary and binary keep the first and last layer at 8 bits unless `layers` names them.
        activation: `{"bits": 2 to 8}`, `{"bits": 8, "dynamic": True}` for ranges of each batch as it comes, or None
            for weights only. The network's inputs have 8 bits.
        calibration: how ranges are chosen from calibration data: `minmax`, `average` (of the batches' least and
            greatest values), `percentile`, `entropy` (least Kullback-Leibler divergence) or `mse`.
        layers: `weight` settings of single layers, over those of `weight`: mixed precision, such as
            `{"conv1": {"bits": 8}, "layer3": {"bits": 4}}`; names as in `skip`, later ones win.
        rounding: how weights are rounded to levels: `nearest`, `adaround`, `brecq` or `gptq`, or an object of
            `Rounding`'s settings, such as `{"method": "brecq", "iterations": 2000}`.
        correct: whether biases are corrected for the mean error that quantisation makes.
        skip: names of layers to leave in floating point: exact, a prefix, or a pattern.
        train: settings of `Distil` to train with before the integers are fixed (quantisation-aware training
            with learned scales), such as `{"steps": 300, "lr": 0.001}`; None for none.

    Raises:
        InputError: a setting is unknown, the graph is quantised already, or the calibration data is wrong.

    Source: Jacob et al. (2018), Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, sections 2 and 3; Esser et al. (2020), Learned Step Size Quantization.
    """

    weight: Mapping[str, Any] = field(default_factory=_weight)
    activation: Mapping[str, Any] | None = field(default_factory=_activation)
    calibration: Calibration = "minmax"
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rounding: str | Mapping[str, Any] = "nearest"
    correct: bool = False
    skip: tuple[str, ...] = ()
    train: Mapping[str, Any] | None = None

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each layer that could run in integers: `int8` or `fp32`."""
        folded = for_inference(set_mode(graph.copy(), False))
        chosen = annotate(folded, support=support_of(context)).layers
        names = dict.fromkeys(layer_name(folded, n) for n in folded.nodes() if n.name in chosen)
        return tuple(Axis(f"Quantise:{name}", ("int8", "fp32")) for name in names)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with integer weights and Q/DQ nodes, calibrated on `context.calibrate`."""
        return self.convert(self.finished(graph, context).prepared)

    def finished(self, graph: Graph, context: Context) -> Ready:
        """What `convert` makes integers of, trained or rounded, beside the network in floating point."""
        training = None if self.train is None else training_of(self.train)
        found = self._ready(graph, context)
        if training is not None:
            trained = training.apply(found.prepared, context)
            return replace(found, prepared=trained, folded=trained)
        prepared = rounded(self.rounding, found.prepared, found.folded, found.inputs, context.progress, context.seed)
        if self.correct:
            prepared = corrected(prepared, found.folded, found.inputs, context.progress, context.seed)
        return replace(found, prepared=prepared)

    @staticmethod
    def shorthand(values: list[Any], settings: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """A recipe's `quantise(8)`, `quantise(bits=4)`, `quantise(int4)` and `quantise(ternary)` as settings.

        A number is the width of weights and activations; `int4` is that of weights, with 8-bit activations;
        `ternary` and `binary` are of weights, as are `fp16`, `bf16` and `fp8`, which leave activations alone.
        """
        rest = dict(settings)
        bits = values[0] if values else rest.pop("bits", None)
        if isinstance(bits, Mapping) or bits is None:
            return values, rest
        named = _NAMED.get(bits) if isinstance(bits, str) else None
        number = not isinstance(bits, bool) and isinstance(bits, int)
        if "bits" in rest or not (number or named is not None):
            raise InputError("Quantise: bits", got=repr(bits), expected=f"2 to 8, {', '.join(_NAMED)}")
        both = {"weight": _weight() | {"bits": bits}, "activation": {"bits": bits}} if named is None else named
        twice = [key for key in both if key in rest]
        if twice:
            raise InputError("Quantise", got=f"bits and {twice[0]}", expected="one of the two")
        return values[1:], {**rest, **both}

    def prepare(self, graph: Graph, context: Context) -> Graph:
        """The graph with calibrated fake quantisation: it computes what `convert` will give, and trains.

        For quantisation-aware training: prepare, train like any other graph, convert. With `train`, batch norm
        stays alive until then, and scales start where learning them likes it.

        Source: Jacob et al. (2018), section 3; straight-through gradient (eq. 12), Bengio et al. (2013).
        """
        return self._ready(graph, context).prepared

    def convert(self, prepared: Graph) -> Graph:
        """A prepared graph, trained or not, in integers.

        Raises:
            InputError: the graph does not come from `prepare`.
        """
        if not weights_of(prepared) and not low_weights_of(prepared):
            raise InputError("Quantise: convert", got="a graph without fake quantisation", do="Call prepare first.")
        return integers(set_mode(prepared.copy(), False))

    def _ready(self, graph: Graph, context: Context) -> Ready:
        activation = _checked(self)
        refuse_quantised(graph)
        rounds = self.correct or self.rounding != "nearest"
        wanted = Wanted(
            self.weight, self.layers, activation, self.calibration, self.skip, self.train is not None, rounds
        )
        return ready(graph, context, wanted)


_NAMED: Mapping[str, Mapping[str, Any]] = {
    **{f"int{bits}": {"weight": {"bits": bits, "per": "channel"}} for bits in BITS},
    **{kind: {"weight": {"kind": kind}} for kind in ("ternary", "binary")},
    **{kind: {"weight": {"kind": kind}, "activation": None} for kind in FLOATS},
}
"""What a recipe's bare words stand for."""


def refuse_quantised(graph: Graph, who: str = "Quantise") -> None:
    """InputError if a graph is quantised already, in integers or for training."""
    low = {weight.node for weight in low_weights_of(graph)}
    for node in graph.nodes():
        name = str(node.target)
        if name.startswith(("quantized_decomposed.", "aten.fake_quantize", "aten._fake_quantize")) or node in low:
            raise InputError(
                f"{who}: the network is quantised already", where=node.name, do="Start from its floating-point form."
            )


def training_of(settings: Mapping[str, Any]) -> Distil:
    """The training of `train`; in fp32, because lower precision rounds what the levels round already."""
    if settings.get("precision", "fp32") != "fp32":
        raise InputError("Quantise: train: precision", got=settings["precision"], expected="fp32")
    training: Distil = made(Distil, {"lr": 0.001, "weight_decay": 0.0, **settings, "precision": "fp32"})
    return training


def _checked(settings: Quantise) -> ActivationScheme | None:
    """The scheme of activations, if every setting is known."""
    choices = get_args(Calibration)
    if settings.calibration not in choices:
        expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise InputError("Quantise: calibration", got=repr(settings.calibration), expected=expected)
    if not isinstance(settings.correct, bool):
        raise InputError("Quantise: correct", got=repr(settings.correct), expected="true or false")
    method = rounding_of(settings.rounding).method
    if settings.train is not None and (settings.correct or method != "nearest"):
        got = "correct" if settings.correct else f"rounding {method}"
        raise InputError("Quantise: train", got=f"train and {got}", expected="one of the two: training does their work")
    return activation_scheme(settings.activation)
