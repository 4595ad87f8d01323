"""Which operators a runtime runs in integers, and what it fuses with them, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Weighted:
    """An operator with a weight.

    Args:
        weight: the position of the weight among the arguments; its input is the first argument.
        axis: the output-channel dimension of the weight.
        float_output: it may give floating point without leaving its integer kernel.
    """

    weight: int = 1
    axis: int = 0
    float_output: bool = False


@dataclass(frozen=True)
class IntegerSupport:
    """What a runtime can do in integers.

    Args:
        weighted: convolutions and linear layers with an integer kernel.
        joins: operators of two tensors that need both and their result in integers (residual add).
        shares: operators that only move or choose values: their result has their input's scale.
        concats: operators of several tensors that must all have one scale.
        activations: what is fused behind an integer operator, so that nothing is quantised between.
        bits: widths of weights and activations that have kernels.
    """

    weighted: Mapping[Any, Weighted]
    joins: frozenset[Any]
    shares: frozenset[Any]
    concats: frozenset[Any]
    activations: frozenset[Any]
    bits: tuple[int, ...] = (8,)


INTEGER = IntegerSupport(
    weighted={
        _ATEN.conv1d.default: Weighted(),
        _ATEN.conv1d.padding: Weighted(),
        _ATEN.conv2d.default: Weighted(),
        _ATEN.conv2d.padding: Weighted(),
        _ATEN.linear.default: Weighted(float_output=True),
    },
    joins=frozenset({_ATEN.add.Tensor, _ATEN.add_.Tensor}),
    shares=frozenset(
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
            _ATEN.dropout.default,
            _ATEN.dropout_.default,
            _ATEN.feature_dropout.default,
            _ATEN.contiguous.default,
            _ATEN.clone.default,
            _ATEN.alias.default,
            _ATEN.detach.default,
            _ATEN.pixel_shuffle.default,
            _ATEN.channel_shuffle.default,
            _ATEN.upsample_nearest2d.vec,
            _ATEN.upsample_nearest2d.default,
        }
    ),
    concats=frozenset({_ATEN.cat.default}),
    activations=frozenset(
        {_ATEN.relu.default, _ATEN.relu_.default, _ATEN.relu6.default, _ATEN.hardtanh.default, _ATEN.hardtanh_.default}
    ),
)
"""What ONNX Runtime and OpenVINO both fuse on a processor."""
