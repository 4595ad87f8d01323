"""Quantise: weights and activations in integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.compress.quantise.annotate import Annotation, annotate, layer_name
from trimtab.compress.quantise.calibrate import calibration_inputs, histograms
from trimtab.compress.quantise.insert import FAKE, WeightRange, fake_quantised, integers, largest
from trimtab.compress.quantise.ranges import Calibration, activation_range, affine, weight_scales
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.run.fusable import INTEGER, IntegerSupport

_EIGHT = 8


def _weight() -> dict[str, Any]:
    return {"bits": _EIGHT, "per": "channel"}


def _activation() -> dict[str, Any]:
    return {"bits": _EIGHT}


@dataclass(frozen=True)
class Quantise:
    """Static integer quantisation, calibrated after training: no labels needed, and no training.

    q = clamp(round(x / s) + z) (eq. 11); weights symmetric, activations unsigned and asymmetric;
    batch norm is folded first, and what is quantised is exactly what the runtime fuses.

    Args:
        weight: `{"bits": 8, "per": "channel" | "tensor"}`.
        activation: `{"bits": 8}`.
        calibration: how ranges are chosen from calibration data: `minmax`, `percentile` or `mse`.
        skip: names of layers to leave in floating point: exact, a prefix, or a pattern.
        train: settings of `Distil` to train with before the integers are fixed (quantisation-aware
            training, Jacob et al. 2018, section 3), such as `{"steps": 300, "lr": 0.001}`; None for none.

    Raises:
        InputError: a setting is unknown, the graph is quantised already, or the calibration data is wrong.

    Source: Jacob et al. (2018), Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, sections 2 and 3.
    """

    weight: Mapping[str, Any] = field(default_factory=_weight)
    activation: Mapping[str, Any] = field(default_factory=_activation)
    calibration: Calibration = "minmax"
    skip: tuple[str, ...] = ()
    train: Mapping[str, Any] | None = None

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each layer that could run in integers: `int8` or `fp32`."""
        folded = for_inference(set_mode(graph.copy(), False))
        chosen = annotate(folded, support=_support(context)).layers
        names = dict.fromkeys(layer_name(folded, n) for n in folded.nodes() if n.name in chosen)
        return tuple(Axis(f"Quantise:{name}", ("int8", "fp32")) for name in names)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with int8 weights and Q/DQ nodes, calibrated on `context.calibrate`."""
        training = None if self.train is None else _training(self.train)
        prepared = self.prepare(graph, context)
        return self.convert(prepared if training is None else training.apply(prepared, context))

    @staticmethod
    def shorthand(values: list[Any], settings: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """A recipe's `quantise(8)`, `quantise(int8)` and `quantise(bits=8)` as settings."""
        rest = dict(settings)
        bits = values[0] if values else rest.pop("bits", None)
        bits = {"int8": _EIGHT}.get(bits, bits) if isinstance(bits, str) else bits
        if isinstance(bits, Mapping) or bits is None:
            return values, rest
        if "bits" in rest or isinstance(bits, bool) or not isinstance(bits, int):
            raise InputError("Quantise: bits", got=repr(bits), expected="8 or int8")
        both = {"weight": _weight() | {"bits": bits}, "activation": {"bits": bits}}
        twice = [key for key in both if key in rest]
        if twice:
            raise InputError("Quantise", got=f"bits and {twice[0]}", expected="one of the two")
        return values[1:], rest | both

    def prepare(self, graph: Graph, context: Context) -> Graph:
        """The graph with calibrated fake quantisation: it computes what `convert` will give, and trains.

        For quantisation-aware training: prepare, train like any other graph, convert.

        Source: Jacob et al. (2018), section 3; straight-through gradient (eq. 12), Bengio et al. (2013).
        """
        settings = _checked(self)
        refuse_quantised(graph)
        folded = for_inference(set_mode(graph.copy(), False))
        found = annotate(folded, self.skip, _support(context))
        if not found.layers:
            why = "; ".join(f"{k}: {v}" for k, v in list(found.floats.items())[:3]) or "it has no such layer"
            raise InputError("Quantise: no layer can run in integers", got=why)
        inputs, note = calibration_inputs(folded, context)
        context.progress("calibrate", 0, 1)
        counted = histograms(folded, found.tensors, inputs)
        bits = settings["activation"]["bits"]
        how = {k: affine(*activation_range(h, self.calibration, bits), bits) for k, h in counted.items()}
        tensors = {name: how[first] for name, first in found.tensors.items()}
        prepared = fake_quantised(folded, tensors, _weights(folded, found, settings["weight"], self.calibration))
        context.progress("calibrate", 1, 1)
        return prepared.note(*filter(None, [note]), *_left(found))

    def convert(self, prepared: Graph) -> Graph:
        """A prepared graph, trained or not, in integers.

        Raises:
            InputError: the graph does not come from `prepare`.
        """
        if not any(True for _ in prepared.nodes(FAKE)):
            raise InputError("Quantise: convert", got="a graph without fake quantisation", do="Call prepare first.")
        return integers(set_mode(prepared.copy(), False))


def _support(context: Context) -> IntegerSupport:
    """What the target runs in integers."""
    return INTEGER if context.support is None else context.support


def refuse_quantised(graph: Graph) -> None:
    """InputError if a graph is quantised already, in integers or for training."""
    for node in graph.nodes():
        name = str(node.target)
        if name.startswith(("quantized_decomposed.", "aten.fake_quantize")):
            raise InputError(
                "Quantise: the network is quantised already", where=node.name, do="Start from its floating-point form."
            )


def _weights(
    graph: Graph, found: Annotation, settings: Mapping[str, Any], method: Calibration
) -> dict[str, WeightRange]:
    ranges: dict[str, WeightRange] = {}
    top = 2 ** (settings["bits"] - 1) - 1
    for name, axis in found.weights.items():
        weight = graph.tensors()[name]
        scale = weight_scales(weight, settings["bits"], axis if settings["per"] == "channel" else None, method)
        full = largest(weight, WeightRange(axis, scale, top))
        clip = scale * top / full.where(full > 0, scale * top)
        ranges[name] = WeightRange(axis, clip, top)
    return ranges


def _left(found: Annotation) -> list[str]:
    """What is left in floating point and why, one sentence for each layer and one for the rest."""
    lines = [f"Quantise leaves {name} in floating point: {reason}." for name, reason in found.floats.items()]
    if found.unfused:
        counted = ", ".join(f"{name} ({n})" for name, n in sorted(found.unfused.items()))
        lines.append(f"Quantise leaves operators without a fused integer kernel in floating point: {counted}.")
    return lines


def _training(settings: Mapping[str, Any]) -> Distil:
    """The training of `train`; in fp32, because lower precision rounds what the levels round already."""
    if settings.get("precision", "fp32") != "fp32":
        raise InputError("Quantise: train: precision", got=settings["precision"], expected="fp32")
    training: Distil = made(Distil, {"lr": 0.001, "weight_decay": 0.0, **settings, "precision": "fp32"})
    return training


def _checked(settings: Quantise) -> dict[str, dict[str, Any]]:
    """The settings with defaults filled in."""
    full = {"weight": _weight() | dict(settings.weight), "activation": _activation() | dict(settings.activation)}
    for part, default in (("weight", _weight()), ("activation", _activation())):
        for key, value in full[part].items():
            if key not in default:
                raise InputError(f"Quantise: {part}", got=repr(key), expected=f"only {', '.join(default)}")
            allowed: tuple[Any, ...] = INTEGER.bits if key == "bits" else ("channel", "tensor")
            if value not in allowed or isinstance(value, bool):
                raise InputError(f"Quantise: {part}: {key}", got=repr(value), expected=" or ".join(map(str, allowed)))
    if settings.calibration not in ("minmax", "percentile", "mse"):
        raise InputError("Quantise: calibration", got=repr(settings.calibration), expected="minmax, percentile or mse")
    return full
