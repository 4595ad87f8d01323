"""Fusable: what each runtime runs in integers, and what it fuses, as data over ATen operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class IntegerType:
    """A form of integers that a runtime has fast kernels for.

    Args:
        bits: of one value.
        signed: two's complement, or from 0.
        symmetric: the zero point is 0.
        per_channel: a scale for each output channel, or one for the tensor.
    """

    bits: int
    signed: bool
    symmetric: bool
    per_channel: bool

    @property
    def low(self) -> int:
        """The least level; a symmetric signed type leaves out the one that has no opposite."""
        return int(self.symmetric) - (1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The greatest level."""
        return (1 << (self.bits - int(self.signed))) - 1


@dataclass(frozen=True)
class Weighted:
    """An operator with a weight.

    Args:
        weight: position of the weight among the arguments.
        axis: output-channel dimension of the weight.
        float_output: its integer kernel may give floating point, so that nothing need be quantised behind it.
        source: position of the input.
        bias: position of the bias.
    """

    weight: int = 1
    axis: int = 0
    float_output: bool = False
    source: int = 0
    bias: int = 2


@dataclass(frozen=True)
class IntegerSupport:
    """What a runtime does in integers with quantise and dequantise nodes around each operator.

    Args:
        weighted: convolutions and linear layers with an integer kernel.
        joins: operators of two tensors, integer if both inputs and the output are quantised (residual add).
        shares: operators that move or choose values: their output takes the input's scale and zero point, and
            loses nothing by it. Most then move bytes; padding and pixel shuffle still move floats.
        concats: concatenations; every input and the output quantised, each may have its own scale.
        activations: folded into the weighted operator before them, with nothing quantised between, where the
            quantised range behind them is theirs: lowest level 0 after relu (zero point 0), highest at most 6
            after relu6. Otherwise ONNX Runtime runs the convolution itself in floating point.
        units: element-wise and pooling operators with an integer kernel of their own, input and output quantised.
        whole: it has no floating point at all: units, and what only moves values, are quantised on both sides, and
            so is the input of the network.
        activation: integers of activations.
        weight: integers of weights.
        pairs: the greatest sum of two products of an activation and a weight that its kernels hold; None for no bound.
    """

    weighted: Mapping[Any, Weighted]
    joins: frozenset[Any]
    shares: frozenset[Any]
    concats: frozenset[Any]
    activations: frozenset[Any]
    units: frozenset[Any] = frozenset()
    whole: bool = False
    activation: IntegerType = field(default=IntegerType(8, signed=False, symmetric=False, per_channel=False))
    weight: IntegerType = field(default=IntegerType(8, signed=True, symmetric=True, per_channel=True))
    pairs: int | None = None

    @property
    def bits(self) -> tuple[int, ...]:
        """Widths that have kernels."""
        return tuple(sorted({self.activation.bits, self.weight.bits}))

    @property
    def top(self) -> int:
        """The highest level of a weight whose products, with the greatest activations and in pairs, are held."""
        high = self.weight.high
        return high if self.pairs is None else min(high, self.pairs // (2 * self.activation.high))


_WEIGHTED = {
    _ATEN.conv1d.default: Weighted(),
    _ATEN.conv1d.padding: Weighted(),
    _ATEN.conv2d.default: Weighted(),
    _ATEN.conv2d.padding: Weighted(),
    _ATEN.conv3d.default: Weighted(),
    _ATEN.conv3d.padding: Weighted(),
    _ATEN.linear.default: Weighted(float_output=True),
    _ATEN.addmm.default: Weighted(weight=2, axis=1, float_output=True, source=1, bias=0),
}
_FLAT = {
    op: replace(kind, float_output=False)
    for op, kind in _WEIGHTED.items()
    if op not in (_ATEN.conv3d.default, _ATEN.conv3d.padding, _ATEN.addmm.default)
}
_ADD = frozenset({_ATEN.add.Tensor, _ATEN.add_.Tensor})
_MUL = frozenset({_ATEN.mul.Tensor, _ATEN.mul_.Tensor})
_SUB = frozenset({_ATEN.sub.Tensor, _ATEN.sub_.Tensor})
_SHARES = frozenset(
    {
        _ATEN.max_pool2d.default,
        _ATEN.flatten.using_ints,
        _ATEN.reshape.default,
        _ATEN.view.default,
        _ATEN.permute.default,
        _ATEN.transpose.int,
        _ATEN.unsqueeze.default,
        _ATEN.squeeze.dim,
        _ATEN.slice.Tensor,
        _ATEN.select.int,
        _ATEN.pad.default,
        _ATEN.constant_pad_nd.default,
        _ATEN.pixel_shuffle.default,
        _ATEN.channel_shuffle.default,
        _ATEN.dropout.default,
        _ATEN.dropout_.default,
        _ATEN.feature_dropout.default,
        _ATEN.contiguous.default,
        _ATEN.clone.default,
        _ATEN.alias.default,
        _ATEN.detach.default,
        _ATEN.upsample_nearest2d.vec,
        _ATEN.upsample_nearest2d.default,
    }
)
_FOLDED = frozenset(
    {_ATEN.relu.default, _ATEN.relu_.default, _ATEN.relu6.default, _ATEN.hardtanh.default, _ATEN.hardtanh_.default}
)
_POOLS = frozenset({_ATEN.avg_pool2d.default, _ATEN.adaptive_avg_pool2d.default})
_SMOOTH = frozenset({_ATEN.sigmoid.default, _ATEN.leaky_relu.default, _ATEN.leaky_relu_.default})

ONNXRUNTIME = IntegerSupport(
    weighted=_WEIGHTED,
    joins=_ADD | _MUL,
    shares=_SHARES,
    concats=frozenset({_ATEN.cat.default}),
    activations=_FOLDED,
    units=_POOLS | _SMOOTH | {_ATEN.softmax.int},
)
"""ONNX Runtime 1.31 on x86. Transposed convolutions, subtraction, PReLU, GELU, hard-swish, tanh, padding, bilinear
resizing, pixel shuffle, means over given axes and norms run in floating point between the integer operators, as read
from its optimised models. A linear layer with a floating-point result needs its bias in 32-bit integers at the scale of
input times weight, on sequences too: it becomes a Gemm once its shapes are known. Attention's own products could be
integer; whether quantising what they read pays was not timed."""

OPENVINO = IntegerSupport(
    weighted=_WEIGHTED,
    joins=_ADD | _SUB,
    shares=_SHARES,
    concats=frozenset({_ATEN.cat.default}),
    activations=_FOLDED | _SMOOTH | {_ATEN.gelu.default, _ATEN.hardswish.default, _ATEN.tanh.default},
    units=_POOLS | _SMOOTH | {_ATEN.mean.dim, _ATEN.gelu.default, _ATEN.hardswish.default, _ATEN.tanh.default},
)
"""OpenVINO 2026 on x86: element-wise operators become generated kernels that read and write 8-bit integers and compute
in fp32, and are fused behind the convolution. Multiplication of two tensors, softmax, bilinear resizing, pixel shuffle,
transposed convolutions and norms run in floating point, as read from its runtime model."""

INTEGER = IntegerSupport(
    weighted=_WEIGHTED,
    joins=ONNXRUNTIME.joins & OPENVINO.joins,
    shares=ONNXRUNTIME.shares & OPENVINO.shares,
    concats=ONNXRUNTIME.concats & OPENVINO.concats,
    activations=ONNXRUNTIME.activations & OPENVINO.activations,
    units=ONNXRUNTIME.units & OPENVINO.units,
)
"""What both do, so that one file runs well in either."""

_FLOAT_BETWEEN = frozenset({_ATEN.pixel_shuffle.default, _ATEN.channel_shuffle.default})
_TABLES = frozenset(
    {
        _ATEN.sigmoid.default,
        _ATEN.tanh.default,
        _ATEN.gelu.default,
        _ATEN.silu.default,
        _ATEN.hardswish.default,
        _ATEN.hardswish_.default,
        _ATEN.hardsigmoid.default,
    }
)

ETHOS_U = IntegerSupport(
    weighted=_FLAT,
    joins=_ADD | _MUL | _SUB,
    shares=(_SHARES | _POOLS | _FOLDED | {_ATEN.mean.dim}) - _FLOAT_BETWEEN,
    concats=frozenset({_ATEN.cat.default}),
    activations=_FOLDED,
    units=_TABLES,
    whole=True,
)
"""Arm Ethos-U through ExecuTorch 1.5 and Vela 5.2: everything in integers, or on the processor beside it. Averages,
and clips that no layer takes in, have no scale of their own there, as in Arm's quantiser; element-wise functions are
tables. Softmax, norms, 3-d and transposed convolutions, pixel shuffle, and operations with a number fall back."""

EXECUTORCH = IntegerSupport(
    weighted=_FLAT,
    joins=_ADD | _MUL,
    shares=_SHARES - _FLOAT_BETWEEN,
    concats=frozenset(),
    activations=_FOLDED,
)
"""XNNPACK in ExecuTorch 1.5: a quantised layer needs a quantised output too, concatenation one scale for all. Strided
slices leave XNNPACK and run in floating point."""

SUPPORT: Mapping[str, IntegerSupport] = {"onnxruntime": ONNXRUNTIME, "openvino": OPENVINO, "executorch": EXECUTORCH}
"""By the runtime's name."""
