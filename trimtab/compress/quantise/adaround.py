"""AdaRound: whether each weight is rounded up or down, learnt from what the float network computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.compress.quantise.staged import Inputs, Staged
from trimtab.compress.quantise.units import Layer, Unit, channel_dim, settle
from trimtab.core.context import Progress
from trimtab.graph.model import Graph
from trimtab.train.zeros import is_sparse

ZETA, GAMMA = 1.1, -0.1
"""How far the sigmoid is stretched beyond 1 and 0, so that its ends are reached."""


@dataclass(frozen=True)
class Descent:
    """How rounding is learnt.

    Args:
        iterations: steps of Adam for each unit, one chunk of samples each.
        rate: its learning rate.
        weight: of the regulariser. Its lambda is this times the error of rounding to nearest by number of weights,
            so that it does not depend on how large the activations are (in the paper lambda is 0.01).
        warmup: share of the iterations without the regulariser.
        beta: the regulariser's exponent, from the first (flat) to the second (pointed).
        seed: of the order of chunks.
    """

    iterations: int = 500
    rate: float = 0.01
    weight: float = 10.0
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    seed: int = 0


def rectified(v: Tensor) -> Tensor:
    """h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1) (Nagel et al. 2020, equation 23)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def unrectified(h: Tensor) -> Tensor:
    """The V of which `rectified` gives h, for h in [0, 1]."""
    return -torch.log((ZETA - GAMMA) / (h - GAMMA) - 1)


def regulariser(h: Tensor, beta: float) -> Tensor:
    """f_reg = sum(1 - |2 h - 1|^beta) (Nagel et al. 2020, equation 24); 0 where all are 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def exponent(done: float, descent: Descent) -> float:
    """Beta after a share of the iterations: a cosine from the first to the second, once the warm-up is over."""
    first, last = descent.beta
    share = min(max((done - descent.warmup) / (1 - descent.warmup), 0.0), 1.0)
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def reconstructed(
    prepared: Graph, folded: Graph, units: Sequence[Unit], parts: Sequence[Inputs], descent: Descent, progress: Progress
) -> Graph:
    """The prepared graph with its weights rounded so that each unit gives what the float network gives there.

        min over V of || f(W x) - f(W~ x^) ||^2 + lambda f_reg(V),   W~ = s clip(floor(W / s) + h(V), n, p)

    Unit by unit in graph order; x^ is the input of the network with all units before quantised, f the
    activation function, or all that follows inside a block. The squared error is summed over channels
    and averaged over the rest. A unit whose error is not below that of rounding to nearest keeps that.

    Args:
        prepared: fake-quantised, with the scales that stay; copied.
        folded: the same network in floating point.
        units: what is reconstructed together, in graph order.
        parts: calibration inputs in chunks.
        descent: how it is learnt.
        progress: shows a bar.

    Source: Nagel et al. (2020), Up or Down? Adaptive Rounding for Post-Training Quantization, equations 21 to 25.
    """
    result = prepared.copy()
    quantised = Staged(result, parts)
    exact = Staged(folded, parts, [unit.end for unit in units])
    generator = torch.Generator().manual_seed(descent.seed)
    kept = []
    for i, unit in enumerate(units):
        progress("reconstruct", i, len(units))
        quantised.advance(min(quantised.place[quantised.named[layer.node]] for layer in unit.layers))
        if not _reconstruct(unit, quantised, exact.take(unit.end), descent, generator):
            kept += [layer.weight.removesuffix(".weight") for layer in unit.layers]
    progress("reconstruct", len(units), len(units))
    if not kept:
        return result
    return result.note(f"Rounded to nearest, because no other rounding found was better: {', '.join(kept)}.")


def _reconstruct(
    unit: Unit, state: Staged, targets: Sequence[Tensor], descent: Descent, generator: torch.Generator
) -> bool:
    """Settle the weights of one unit; whether the learnt rounding was better than the nearest."""
    tensors = state.graph.tensors()
    weights = [tensors[layer.weight].detach() for layer in unit.layers]
    nodes = state.behind(unit.end, [layer.rounded for layer in unit.layers])
    channels = targets[0].shape[channel_dim(state.named[unit.layers[-1].node])]

    def error(chunk: int, given: Sequence[Tensor]) -> Tensor:
        values = {layer.rounded: value for layer, value in zip(unit.layers, given, strict=True)}
        result = state.run(chunk, nodes, values)
        return functional.mse_loss(result, targets[chunk], reduction="sum") * (channels / result.numel())

    def whole(levels: Sequence[Tensor]) -> float:
        given = [value * layer.step for value, layer in zip(levels, unit.layers, strict=True)]
        with torch.no_grad():
            errors = [float(error(i, given)) * target.numel() for i, target in enumerate(targets)]
        return sum(errors) / sum(target.numel() for target in targets)

    near = [layer.nearest(weight) for layer, weight in zip(unit.layers, weights, strict=True)]
    limit = whole(near)
    learnt = near
    if limit > 0:
        count = sum(weight.numel() for weight in weights)
        descent = replace(descent, weight=descent.weight * limit / count)
        learnt = _learn(unit.layers, weights, error, len(targets), descent, generator)
    better = whole(learnt) < limit
    for layer, levels in zip(unit.layers, learnt if better else near, strict=True):
        state.put(layer.rounded, settle(state.graph, layer, levels))
    return better


def _learn(
    layers: Sequence[Layer],
    weights: Sequence[Tensor],
    error: Callable[[int, Sequence[Tensor]], Tensor],
    chunks: int,
    descent: Descent,
    generator: torch.Generator,
) -> list[Tensor]:
    """The levels of each weight after descent on the error and the regulariser, whose lambda is `descent.weight`."""
    scaled = [weight * (1 / layer.step) for layer, weight in zip(layers, weights, strict=True)]
    floors = [torch.floor(value) for value in scaled]
    variables = [unrectified(value - floor).requires_grad_() for value, floor in zip(scaled, floors, strict=True)]
    kept = [(value != 0) if is_sparse(value) else torch.ones_like(value, dtype=torch.bool) for value in scaled]

    def soft(up: Sequence[Tensor]) -> list[Tensor]:
        every = zip(layers, floors, up, strict=True)
        return [(floor + h).clamp(layer.low, layer.high) * layer.step for layer, floor, h in every]

    with torch.enable_grad():
        adam = torch.optim.Adam(variables, lr=descent.rate, fused=variables[0].device.type in ("cpu", "cuda"))
        for step in range(descent.iterations):
            done = step / descent.iterations
            chunk = int(torch.randint(chunks, (), generator=generator))
            up = [rectified(v) * free for v, free in zip(variables, kept, strict=True)]  # a sparse weight's zeros stay
            loss = error(chunk, soft(up))
            if done >= descent.warmup:
                beta = exponent(done, descent)
                loss = loss + descent.weight * torch.stack([regulariser(h, beta) for h in up]).sum()
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
    return [
        (floor + ((rectified(v.detach()) >= 0.5) & free)).clamp(layer.low, layer.high)
        for layer, floor, v, free in zip(layers, floors, variables, kept, strict=True)
    ]
