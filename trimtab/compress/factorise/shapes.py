"""Shapes: what a layer becomes at given ranks: a chain of ordinary layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from operator import mul
from typing import Literal, get_args

from trimtab.hardware.layer import Layer

Method = Literal["svd", "spatial", "tucker", "cp", "tt"]
METHODS: tuple[str, ...] = get_args(Method)
Ranks = tuple[int, ...]


def misfit(method: str, shape: Layer) -> str | None:
    """What a method expects in place of such a layer; None if it suits.

    Args:
        method: one of `METHODS`.
        shape: of the layer.
    """
    wide = [k for k in shape.kernel if k > 1]
    if method == "spatial" and (len(shape.kernel) != 2 or len(wide) < 2):
        return "a 2-d convolution whose kernel is above 1 on both sides"
    if method in ("tucker", "cp") and not wide:
        return "a convolution with a kernel above 1"
    if method == "tt" and shape.kernel and not wide:
        return "a linear layer or a convolution with a kernel above 1"
    return None


def kind(shape: Layer) -> str:
    """What such a layer is, for a message."""
    if not shape.kernel:
        return "a linear layer"
    return f"a {len(shape.kernel)}-d convolution with a kernel of {' x '.join(map(str, shape.kernel))}"


def matrices(method: str, shape: Layer) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the matrices whose ranks a method chooses; of `cp`, which has none, its largest rank by 1.

    The rank of a tensor is at most the product of all its sides but the largest (Kolda & Bader 2009, section 3.1).
    """
    inputs, outputs, area = shape.inputs, shape.outputs, math.prod(shape.kernel)
    if method == "svd":
        return ((outputs, inputs * area),)
    if method == "spatial":
        return ((inputs * shape.kernel[0], shape.kernel[1] * outputs),)
    if method == "tucker":
        return ((inputs, outputs * area), (outputs, inputs * area))
    sides = modes(shape)
    whole = math.prod(sides)
    if method == "cp":
        most = whole // max(sides)
        return ((most, most),)
    return tuple((left, whole // left) for left in list(accumulate(sides, mul))[:-1])


def limits(method: str, shape: Layer) -> Ranks:
    """The largest ranks that a method can give a layer."""
    return tuple(min(pair) for pair in matrices(method, shape))


def consistent(method: str, shape: Layer, ranks: Ranks) -> Ranks:
    """Ranks lowered to what the others leave room for: r_k <= r_(k-1) n_k of a train, and the same from behind.

    Of a Tucker core, one side is at most the other times the places of the kernel.
    """
    if method == "tucker":
        area = math.prod(shape.kernel)
        first = min(ranks[0], ranks[1] * area)
        return first, min(ranks[1], first * area)
    if method != "tt":
        return ranks
    sides, inner = modes(shape), [1, *ranks, 1]
    for k in range(1, len(sides)):
        inner[k] = min(inner[k], inner[k - 1] * sides[k - 1])
    for k in range(len(sides) - 1, 0, -1):
        inner[k] = min(inner[k], inner[k + 1] * sides[k])
    return tuple(inner[1:-1])


def modes(shape: Layer) -> tuple[int, ...]:
    """The sides of the tensor that a tensor train splits: I, k..., O; of a linear layer m_1 n_1, m_2 n_2, ...

    Of the linear layer's, m are the factors of its outputs and n those of its inputs (`divided`).
    """
    if shape.kernel:
        return (shape.inputs, *shape.kernel, shape.outputs)
    return tuple(m * n for m, n in zip(divided(shape.outputs), divided(shape.inputs), strict=True))


@functools.cache
def divided(n: int) -> tuple[int, int, int]:
    """Three factors of a number, as near to each other as they come, least first."""
    least = [a for a in range(1, round(n ** (1 / 3)) + 2) if a**3 <= n and n % a == 0]
    pairs = [(a, b, n // a // b) for a in least for b in _divisors(n // a, a)]
    return min(pairs, key=lambda p: p[2] - p[0])


def _divisors(n: int, least: int) -> list[int]:
    """The divisors of n from `least` to its root."""
    return [b for b in range(least, math.isqrt(n) + 1) if n % b == 0]


def parts(method: str, shape: Layer, ranks: Sequence[int]) -> tuple[Layer, ...]:
    """The layers that a layer becomes, in order.

    Args:
        method: that suits the layer.
        shape: of the layer.
        ranks: as many as `limits` gives, none above its limit.
    """
    if not shape.kernel:
        return _linear(method, shape, ranks)
    after = shape.result
    if method == "svd":
        return replace(shape, outputs=ranks[0]), _point(ranks[0], shape.outputs, after)
    if method == "spatial":
        first = _along(shape, 0, shape.spatial, shape.inputs, ranks[0])
        return first, _along(shape, 1, first.result, ranks[0], shape.outputs)
    if method == "tucker":
        core = replace(shape, inputs=ranks[0], outputs=ranks[1])
        return _point(shape.inputs, ranks[0], shape.spatial), core, _point(ranks[1], shape.outputs, after)
    widths = list(ranks) * (len(shape.kernel) + 1) if method == "cp" else list(ranks)
    chain = [_point(shape.inputs, widths[0], shape.spatial)]
    for side in range(len(shape.kernel)):
        groups = widths[0] if method == "cp" else 1
        chain.append(_along(shape, side, chain[-1].result, widths[side], widths[side + 1], groups))
    return *chain, _point(widths[-1], shape.outputs, after)


def macs(method: str, shape: Layer, ranks: Sequence[int]) -> int:
    """Multiply-adds of a layer at given ranks, for one sample."""
    return sum(part.macs for part in parts(method, shape, ranks))


def _linear(method: str, shape: Layer, ranks: Sequence[int]) -> tuple[Layer, ...]:
    if method == "svd":
        return Layer(shape.inputs, ranks[0], spatial=shape.spatial), Layer(
            ranks[0], shape.outputs, spatial=shape.spatial
        )
    ins, outs, inner = divided(shape.inputs), divided(shape.outputs), (1, *ranks, 1)
    chain = []
    for k in range(len(ins) - 1, -1, -1):
        rows = math.prod(shape.spatial) * math.prod(ins[:k]) * math.prod(outs[k + 1 :])
        chain.append(Layer(ins[k] * inner[k + 1], inner[k] * outs[k], spatial=(rows,)))
    return tuple(chain)


def _point(inputs: int, outputs: int, spatial: tuple[int, ...]) -> Layer:
    """A convolution with a kernel of 1."""
    one, none = (1,) * len(spatial), (0,) * len(spatial)
    return Layer(inputs, outputs, one, spatial, one, none, one)


def _along(shape: Layer, side: int, spatial: tuple[int, ...], inputs: int, outputs: int, groups: int = 1) -> Layer:
    """The convolution along one side of a kernel, with its stride, padding and dilation there."""

    def only(values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(v if i == side else other for i, v in enumerate(values))

    return Layer(
        inputs,
        outputs,
        only(shape.kernel, 1),
        spatial,
        only(shape.stride, 1),
        only(shape.padding, 0),
        only(shape.dilation, 1),
        groups,
    )
