"""Quantise: weights and activations in integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trimtab.compress.quantise.annotate import Annotation, annotate, layer_name
from trimtab.compress.quantise.calibrate import calibration_inputs, histograms
from trimtab.compress.quantise.convert import integers
from trimtab.compress.quantise.insert import WeightRange, fake_quantised, weights_of
from trimtab.compress.quantise.ranges import Calibration, activation_range, affine, weight_scales
from trimtab.compress.quantise.scheme import (
    BITS,
    EIGHT,
    FLOATS,
    ActivationScheme,
    WeightScheme,
    activation_scheme,
    layer_schemes,
)
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.run.fusable import INTEGER, IntegerSupport

Rounding = Literal["nearest", "adaround", "brecq", "gptq"]


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
        rounding: how weights are rounded to levels: `nearest`, `adaround`, `brecq` or `gptq`.
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
    rounding: Rounding = "nearest"
    correct: bool = False
    skip: tuple[str, ...] = ()
    train: Mapping[str, Any] | None = None

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each layer that could run in integers: `int8` or `fp32`."""
        folded = for_inference(set_mode(graph.copy(), False))
        chosen = annotate(folded, support=_support(context)).layers
        names = dict.fromkeys(layer_name(folded, n) for n in folded.nodes() if n.name in chosen)
        return tuple(Axis(f"Quantise:{name}", ("int8", "fp32")) for name in names)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with integer weights and Q/DQ nodes, calibrated on `context.calibrate`."""
        training = None if self.train is None else training_of(self.train)
        prepared = self.prepare(graph, context)
        return self.convert(prepared if training is None else training.apply(prepared, context))

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
        return values[1:], rest | both

    def prepare(self, graph: Graph, context: Context) -> Graph:
        """The graph with calibrated fake quantisation: it computes what `convert` will give, and trains.

        For quantisation-aware training: prepare, train like any other graph, convert.

        Source: Jacob et al. (2018), section 3; straight-through gradient (eq. 12), Bengio et al. (2013).
        """
        activation = _checked(self)
        refuse_quantised(graph)
        folded = for_inference(set_mode(graph.copy(), False))
        found = annotate(folded, self.skip, _support(context))
        if not found.layers:
            why = "; ".join(f"{k}: {v}" for k, v in list(found.floats.items())[:3]) or "it has no such layer"
            raise InputError("Quantise: no layer can run in integers", got=why)
        schemes = layer_schemes(self.weight, self.layers, found.names.values())
        inputs, note = calibration_inputs(folded, context)
        context.progress("calibrate", 0, 1)
        tensors = {} if activation is None else found.tensors
        counted = histograms(folded, tensors, inputs)
        bits = EIGHT if activation is None else activation.bits
        how = {k: affine(*activation_range(h, self.calibration, bits), bits) for k, h in counted.items()}
        weights, notes = _weights(folded, found, schemes, self.calibration)
        prepared = fake_quantised(folded, tensors, how, weights)
        context.progress("calibrate", 1, 1)
        return prepared.note(*filter(None, [note]), *notes, *_left(found))

    def convert(self, prepared: Graph) -> Graph:
        """A prepared graph, trained or not, in integers.

        Raises:
            InputError: the graph does not come from `prepare`.
        """
        if not weights_of(prepared):
            raise InputError("Quantise: convert", got="a graph without fake quantisation", do="Call prepare first.")
        return integers(set_mode(prepared.copy(), False))


_NAMED: Mapping[str, Mapping[str, Any]] = {
    **{f"int{bits}": {"weight": {"bits": bits, "per": "channel"}} for bits in BITS},
    **{kind: {"weight": {"kind": kind}} for kind in ("ternary", "binary")},
    **{kind: {"weight": {"kind": kind}, "activation": None} for kind in FLOATS},
}
"""What a recipe's bare words stand for."""


def _support(context: Context) -> IntegerSupport:
    """What the target runs in integers."""
    return INTEGER if context.support is None else context.support


def refuse_quantised(graph: Graph, who: str = "Quantise") -> None:
    """InputError if a graph is quantised already, in integers or for training."""
    for node in graph.nodes():
        name = str(node.target)
        if name.startswith(("quantized_decomposed.", "aten.fake_quantize", "aten._fake_quantize")):
            raise InputError(
                f"{who}: the network is quantised already", where=node.name, do="Start from its floating-point form."
            )


def _weights(
    graph: Graph, found: Annotation, schemes: Mapping[str, WeightScheme], method: Calibration
) -> tuple[dict[str, WeightRange], list[str]]:
    """How each weight is quantised, and a note where it has no groups."""
    ranges: dict[str, WeightRange] = {}
    notes = []
    for name, axis in found.weights.items():
        scheme, weight = schemes[found.names[name]], graph.tensors()[name]
        grouped = scheme.per == "group" and weight.ndim == 2 and axis == 0 and weight.shape[1] % scheme.group == 0
        if scheme.per == "group" and not grouped:
            shape = list(weight.shape)
            notes.append(f"Quantise scales {found.names[name]} by channel: {shape} has no groups of {scheme.group}.")
        along = None if scheme.per == "tensor" else axis
        value = weight.reshape(-1, scheme.group) if grouped else weight
        scale = weight_scales(value, scheme.bits, along, method)
        ranges[name] = WeightRange(scale, along, -scheme.top, scheme.top, scheme.group if grouped else 0)
    return ranges, notes


def _left(found: Annotation) -> list[str]:
    """What is left in floating point and why, one sentence for each layer and one for the rest."""
    lines = [f"Quantise leaves {name} in floating point: {reason}." for name, reason in found.floats.items()]
    if found.unfused:
        counted = ", ".join(f"{name} ({n})" for name, n in sorted(found.unfused.items()))
        lines.append(f"Quantise leaves operators without a fused integer kernel in floating point: {counted}.")
    return lines


def training_of(settings: Mapping[str, Any]) -> Distil:
    """The training of `train`; in fp32, because lower precision rounds what the levels round already."""
    if settings.get("precision", "fp32") != "fp32":
        raise InputError("Quantise: train: precision", got=settings["precision"], expected="fp32")
    training: Distil = made(Distil, {"lr": 0.001, "weight_decay": 0.0, **settings, "precision": "fp32"})
    return training


def _checked(settings: Quantise) -> ActivationScheme | None:
    """The scheme of activations, if every setting is known."""
    for name, value, allowed in (
        ("calibration", settings.calibration, get_args(Calibration)),
        ("rounding", settings.rounding, get_args(Rounding)),
        ("correct", settings.correct, (False, True)),
    ):
        if value not in allowed:
            expected = f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"
            raise InputError(f"Quantise: {name}", got=repr(value), expected=expected)
    return activation_scheme(settings.activation)
