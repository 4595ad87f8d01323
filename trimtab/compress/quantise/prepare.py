"""Prepare: what is quantised and how, from settings and calibration data, put into the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from trimtab.compress.quantise.annotate import Annotation, annotate, moves
from trimtab.compress.quantise.calibrate import Inputs, calibration_inputs, histograms
from trimtab.compress.quantise.dynamic import dynamic_tensors
from trimtab.compress.quantise.insert import WeightRange, fake_quantised
from trimtab.compress.quantise.learned import learned_start, learned_tensor
from trimtab.compress.quantise.low_bits import is_narrow, low_quantised
from trimtab.compress.quantise.norms import live_norms
from trimtab.compress.quantise.ranges import Calibration, activation_range, affine, weight_scales
from trimtab.compress.quantise.scheme import EIGHT, ActivationScheme, WeightScheme, layer_schemes
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.run.fusable import IntegerSupport
from trimtab.run.overflow import support_here


@dataclass(frozen=True)
class Wanted:
    """The settings of `Quantise` that decide the prepared form.

    Args:
        weight: settings of weights.
        layers: those of single layers.
        activation: of activations; None for weights only.
        calibration: how ranges are chosen.
        skip: layers left in floating point.
        learns: it will be trained: batch norm stays alive, and scales start where training likes them.
        data: the inputs are needed even where no range is.
    """

    weight: Mapping[str, Any]
    layers: Mapping[str, Mapping[str, Any]]
    activation: ActivationScheme | None
    calibration: Calibration
    skip: Sequence[str]
    learns: bool
    data: bool


@dataclass(frozen=True)
class Ready:
    """A network ready to be rounded, trained and converted.

    Args:
        prepared: with fake quantisation.
        folded: the same network in floating point, batch norm folded.
        inputs: the calibration inputs; empty where none were needed.
    """

    prepared: Graph
    folded: Graph
    inputs: list[Inputs]


def support_of(context: Context) -> IntegerSupport:
    """What the target runs in integers."""
    return support_here(None) if context.support is None else context.support


def ready(graph: Graph, context: Context, wanted: Wanted) -> Ready:
    """Choose, calibrate and insert.

    Raises:
        InputError: a setting does not fit the network, nothing can be quantised, or the calibration data is wrong.
    """
    support = support_of(context)
    folded = for_inference(set_mode(graph.copy(), False))
    found, schemes, notes = _chosen(folded, wanted, support)
    own, norms = _living(graph, folded, found, schemes) if wanted.learns else (folded, {})
    static = wanted.activation is not None and not wanted.activation.dynamic
    shares = {norms.get(k, k): norms.get(v, v) for k, v in found.tensors.items()} if static else {}
    inputs, note = calibration_inputs(folded, context) if shares or wanted.data else ([], None)
    context.progress("calibrate", 0, 1)
    weights, more = _weights(own, found, schemes, wanted, support)
    low = {name: (scheme.kind, _along(scheme, axis)) for name, axis, scheme in _each(found, schemes, low=True)}
    prepared = fake_quantised(own, shares, _tensors(own, shares, inputs, wanted, support), weights, found.readers)
    prepared = low_quantised(prepared, low) if low else prepared
    if wanted.activation is not None and wanted.activation.dynamic:
        prepared = dynamic_tensors(prepared, _read(folded, found, support), found.layers)
    context.progress("calibrate", 1, 1)
    left = _left(found, wanted.activation is not None)
    return Ready(prepared.note(*filter(None, [note]), *notes, *more, *left), folded, inputs)


def _chosen(
    folded: Graph, wanted: Wanted, support: IntegerSupport
) -> tuple[Annotation, dict[str, WeightScheme], list[str]]:
    """What is quantised, and the scheme of each layer by its name; narrow weights are among them."""
    found = annotate(folded, wanted.skip, support)
    if not found.layers:
        why = "; ".join(f"{k}: {v}" for k, v in list(found.floats.items())[:3]) or "it has no such layer"
        raise InputError("Quantise: no layer can run in integers", got=why)
    schemes, notes = layer_schemes(wanted.weight, wanted.layers, found.names.values())
    if wanted.activation is None:
        return found, schemes, notes
    narrow = [name for name, scheme in schemes.items() if is_narrow(scheme.kind)]
    if len(narrow) == len(schemes):
        kind = schemes[narrow[0]].kind
        raise InputError(
            f"Quantise: weight: kind {kind}", got="integer activations", expected="activation None", do="Leave them."
        )
    left = {name: f"its weight is stored in {schemes[name].kind}" for name in narrow}
    if wanted.activation.dynamic:
        integer = {found.names[_weight_of(folded, n)] for n in found.layers if _gives_floats(folded, n, support)}
        reason = "no runtime has its kernel for ranges that are found as it runs"
        left |= {name: reason for name in found.names.values() if name not in integer and name not in left}
    if not left:
        return found, schemes, notes
    fewer = annotate(folded, wanted.skip, support, left)
    if not fewer.layers:
        raise InputError("Quantise: no layer can run in integers", got="; ".join(sorted(set(left.values()))))
    stored = [w for w, name in found.names.items() if name in narrow]
    weights = {w: axis for w, axis in found.weights.items() if w in fewer.weights or w in stored}
    return replace(fewer, weights=weights, names=found.names), schemes, notes


def _node(graph: Graph, name: str) -> Any:
    return next(n for n in graph.nodes() if n.name == name)


def _weight_of(graph: Graph, layer: str) -> str:
    node = _node(graph, layer)
    return next(str(n.target) for n in node.args[1:] if getattr(n, "op", "") == "get_attr")


def _gives_floats(graph: Graph, layer: str, support: IntegerSupport) -> bool:
    return support.weighted[_node(graph, layer).target].float_output


def _read(graph: Graph, found: Annotation, support: IntegerSupport) -> list[str]:
    """The names of what the quantised layers read."""
    nodes = [_node(graph, layer) for layer in found.layers]
    return list(dict.fromkeys(str(node.args[support.weighted[node.target].source]) for node in nodes))


def _living(
    graph: Graph, folded: Graph, found: Annotation, schemes: Mapping[str, WeightScheme]
) -> tuple[Graph, dict[str, str]]:
    """The network with the batch norms of weights that have a scale for each channel, and those norms by layer node."""
    scaled = {
        name
        for name, axis in found.weights.items()
        if axis == 0 and schemes[found.names[name]].per != "tensor" and not is_narrow(schemes[found.names[name]].kind)
    }
    own = for_inference(set_mode(graph.copy(), False), scaled)
    norms = live_norms(own, scaled)
    return (own, norms) if norms else (folded, {})


def _each(found: Annotation, schemes: Mapping[str, WeightScheme], low: bool) -> list[tuple[str, int, WeightScheme]]:
    """Name, output-channel dimension and scheme of the weights that are low (ternary, narrow), or of the others."""
    every = [(name, axis, schemes[found.names[name]]) for name, axis in found.weights.items()]
    return [each for each in every if (each[2].kind != "int") == low]


def _along(scheme: WeightScheme, axis: int) -> int | None:
    return None if scheme.per == "tensor" else axis


def _tensors(
    graph: Graph, shares: Mapping[str, str], inputs: Sequence[Inputs], wanted: Wanted, support: IntegerSupport
) -> dict[str, Any]:
    """How each activation is quantised, by the name that ranges are shared under."""
    if not shares or wanted.activation is None:
        return {}
    how = {}
    for name, histogram in histograms(graph, shares, inputs).items():
        bits = EIGHT if _is_input(graph, name, support) else wanted.activation.bits
        how[name] = affine(*activation_range(histogram, wanted.calibration, bits), bits)
        if wanted.learns:
            how[name] = learned_tensor(histogram, how[name], bits)
    return how


def _is_input(graph: Graph, name: str, support: IntegerSupport) -> bool:
    """Whether a tensor is an input of the network, its values at most moved."""
    node: Any = next(n for n in graph.net.graph.nodes if n.name == name)
    while node.target in support.shares and moves(node) and node.args:
        node = node.args[0]
    return bool(node.op == "placeholder")


def _weights(
    graph: Graph, found: Annotation, schemes: Mapping[str, WeightScheme], wanted: Wanted, support: IntegerSupport
) -> tuple[dict[str, WeightRange], list[str]]:
    """How each weight in integers is quantised, and a note where it has no groups, or levels that kernels can't add."""
    ranges: dict[str, WeightRange] = {}
    notes = []
    held = support.weight.high if wanted.activation is None else support.top
    for name, axis, scheme in _each(found, schemes, low=False):
        weight = graph.tensors()[name]
        grouped = scheme.per == "group" and _has_groups(weight, axis, scheme.group)
        if scheme.per == "group" and not grouped:
            shape = list(weight.shape)
            notes.append(f"Quantise scales {found.names[name]} by channel: {shape} has no groups of {scheme.group}.")
        along = _along(scheme, axis)
        value = weight.reshape(-1, scheme.group) if grouped else weight
        top = min(scheme.top, held)
        scale = weight_scales(value, top, along, wanted.calibration)
        how = WeightRange(scale, along, -top, top, scheme.group if grouped else 0)
        ranges[name] = learned_start(weight, how) if wanted.learns else how
    if any(how.high < schemes[found.names[name]].top for name, how in ranges.items()):
        notes.append(
            f"Quantise gives 8-bit weights the levels -{held} to {held}: the integer kernels of this processor add two "
            "products in 16 bits, and weights of more levels would give wrong sums."
        )
    return ranges, notes


def _has_groups(weight: Tensor, axis: int, group: int) -> bool:
    return weight.ndim == 2 and axis == 0 and weight.shape[1] % group == 0


def _left(found: Annotation, integers: bool) -> list[str]:
    """What is left in floating point and why, one sentence for each layer and one for the rest."""
    lines = [f"Quantise leaves {name} in floating point: {reason}." for name, reason in found.floats.items()]
    if found.unfused and integers:
        counted = ", ".join(f"{name} ({n})" for name, n in sorted(found.unfused.items()))
        lines.append(f"Quantise leaves operators without a fused integer kernel in floating point: {counted}.")
    return lines
