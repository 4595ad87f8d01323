"""Bits: what it costs to round each layer's weights to few bits, by three measures of one signature."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.core.context import Context
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.pipeline.sensitivity import Reference, divergence, reference_of, rounded, rounded_weight, weight_of
from trimtab.train.distil import distillation_loss
from trimtab.train.recipe import Distillation

Measure = Callable[[Graph, Context, Sequence[str], Sequence[int]], dict[str, tuple[float, ...]]]
"""`(graph, context, layers, choices)`: for each layer, by the name of its module, a cost for each number of bits. Costs
of layers add up, and are compared with those of the same measure only."""

PROBES = 32
"""Random vectors of Hutchinson's estimate; HAWQ-V2 finds that 50 of them change little."""
_SAMPLES = 32
"""Calibration samples that one of them sees."""
_SETTINGS = Distillation(temperature=1.0)


def by_loss(
    graph: Graph, context: Context, layers: Sequence[str], choices: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """The measured loss: how far the outputs move from the original's with one layer's weights rounded.

    KL divergence of classes, mean squared difference of other outputs, on `context.calibrate`.

    Args:
        graph: the network in floating point.
        context: its `calibrate` batches are used, nothing else: no labels are needed.
        layers: names of the modules whose `weight` is rounded.
        choices: numbers of bits, 2 to 8.
    """
    reference = reference_of(graph, context, live=False)
    return _each(graph, context, layers, choices, lambda run: divergence(run, reference, reference.outputs))


def by_sqnr(
    graph: Graph, context: Context, layers: Sequence[str], choices: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """The inverse of the outputs' signal to quantisation noise ratio with one layer's weights rounded.

        1 / SQNR = E ||f(x) - f_q(x)||^2 / E ||f(x)||^2,  SQNR in decibel = -10 log10 of it

    Its arguments are those of `by_loss`.

    Source: Pandey et al. (2023), A Practical Mixed Precision Algorithm for Post-Training Quantization, section 3,
    whose list is sorted by decibel; we add up noise, so that the sum over layers is the noise of all of them.
    """
    reference = reference_of(graph, context, live=False)
    return _each(graph, context, layers, choices, lambda run: _noise(run, reference))


def by_hessian(
    graph: Graph, context: Context, layers: Sequence[str], choices: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """The mean trace of the loss's Hessian over a layer's weights, times the squared error of rounding them.

        Omega_i(b) = Tr(H_i) / n_i  ||Q_b(W_i) - W_i||^2

    The loss is the divergence from the original's own outputs: no labels are needed, and its Hessian there is the
    Fisher information, which has no negative trace. Half of Omega is the loss that `by_loss` measures, to second
    order, where rounding errors are random. Its arguments are those of `by_loss`.

    Source: Dong et al. (2020), HAWQ-V2, equations 7 and 8; ours differs in the loss, theirs is the task's.
    """
    own = set_mode(graph.copy(), False)
    weights = [own.tensors()[weight_of(own, name)] for name in layers]
    for tensor in own.tensors().values():
        tensor.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    reference = reference_of(graph, context, live=False)
    samples = _parts(reference)
    traces = [0.0] * len(weights)
    generator = torch.Generator().manual_seed(context.seed)
    for k in range(PROBES):
        context.progress("Hessian trace", k, PROBES)
        inputs, outputs = samples[k % len(samples)]
        found = hutchinson(lambda i=inputs, o=outputs: _loss(own(*i), o), weights, 1, generator)  # type: ignore[misc]
        traces = [a + b / PROBES for a, b in zip(traces, found, strict=True)]
    context.progress("Hessian trace", PROBES, PROBES)
    return {
        name: tuple(max(trace, 0.0) / weight.numel() * _error(weight.detach(), bits) for bits in choices)
        for name, weight, trace in zip(layers, weights, traces, strict=True)
    }


MEASURES: Mapping[str, Measure] = {"loss": by_loss, "sqnr": by_sqnr, "hessian": by_hessian}
"""By the names that `mixed` takes."""


def hutchinson(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], probes: int, generator: torch.Generator
) -> list[float]:
    """The trace of the Hessian of a loss over each parameter, estimated.

        Tr(H_i) = E[v_i^T (H v)_i],  v of independent signs

    All parameters are probed together: what lies off the diagonal blocks has the mean 0.

    Args:
        loss: computes it anew.
        parameters: that it depends on, each requiring gradients.
        probes: random vectors to average over.
        generator: of their signs.

    Source: Dong et al. (2020), HAWQ-V2, section 2.2 (Hutchinson 1989).
    """
    # the fused kernels of attention have no second derivative
    from torch.nn.attention import SDPBackend, sdpa_kernel

    traces = [0.0] * len(parameters)
    with sdpa_kernel(SDPBackend.MATH):
        slopes = torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True)
    for k in range(probes):
        signs = [torch.randint(0, 2, p.shape, generator=generator).to(p.dtype) * 2 - 1 for p in parameters]
        along = torch.stack([(s * v).sum() for s, v in zip(slopes, signs, strict=True)]).sum()
        bent = torch.autograd.grad(along, parameters, retain_graph=k + 1 < probes, materialize_grads=True)
        traces = [t + float((v * b).sum()) / probes for t, v, b in zip(traces, signs, bent, strict=True)]
    return traces


def _each(
    graph: Graph,
    context: Context,
    layers: Sequence[str],
    choices: Sequence[int],
    cost: Callable[[Any], float],
) -> dict[str, tuple[float, ...]]:
    """A cost of the network with each layer's weights rounded alone; fewer bits never cost less than more."""
    own = set_mode(graph.copy(), False)
    found: dict[str, tuple[float, ...]] = {}
    for k, name in enumerate(layers):
        context.progress("sensitivity of bits", k, len(layers))
        costs = {bits: max(cost(rounded(own, weight_of(own, name), bits, activation=False)), 0.0) for bits in choices}
        fine = sorted(choices, reverse=True)
        least = dict(zip(fine, itertools.accumulate((costs[b] for b in fine), max), strict=True))
        found[name] = tuple(least[b] for b in choices)
    context.progress("sensitivity of bits", len(layers), len(layers))
    return found


def _noise(run: Any, reference: Reference) -> float:
    """Power of the difference from the original's outputs over their power."""
    noise = signal = 0.0
    with torch.no_grad():
        for inputs, outputs in zip(reference.inputs, reference.outputs, strict=True):
            for found, expected in zip(_floats(run(*inputs)), _floats(outputs), strict=True):
                noise += float((found.double() - expected.double()).square().sum())
                signal += float(expected.double().square().sum())
    return noise / signal if signal > 0 else 0.0


def _floats(outputs: Any) -> list[Tensor]:
    values = [outputs] if isinstance(outputs, Tensor) else [outputs[name] for name in outputs.keys()]  # noqa: SIM118
    return [v for v in values if v.dtype.is_floating_point]


def _loss(outputs: Any, expected: Any) -> Tensor:
    return distillation_loss(outputs, expected, None, _SETTINGS)


def _error(weight: Tensor, bits: int) -> float:
    """||Q(W) - W||^2."""
    return float((rounded_weight(weight, bits) - weight).double().square().sum())


def _parts(reference: Reference) -> list[tuple[tuple[Tensor, ...], Any]]:
    """The calibration samples in parts of a few, with the original's outputs on them."""
    return list(_cut(reference))


def _cut(reference: Reference) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
    for inputs, outputs in zip(reference.inputs, reference.outputs, strict=True):
        for start in range(0, len(inputs[0]), _SAMPLES):
            part = slice(start, start + _SAMPLES)
            named = (
                outputs[part] if isinstance(outputs, Tensor) else {name: outputs[name][part] for name in outputs.keys()}  # noqa: SIM118
            )
            yield tuple(t[part] for t in inputs), named
