"""Translate: operators of quantised graphs that torch's ONNX exporter has no form for, or one that drops the clamp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import torch

# registers torch.ops.quantized_decomposed
import torch.ao.quantization.fx._decomposed
from onnxscript import FLOAT, UINT8
from onnxscript.onnx_opset import opset18 as op
from onnxscript.onnx_types import TensorType

_TYPES: Mapping[int, Any] = {2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32}
"""By ONNX's number of the type."""


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=...)`."""
    ops = torch.ops.quantized_decomposed
    return {
        ops.quantize_per_tensor.default: quantise,
        ops.quantize_per_tensor.tensor: quantise_as_found,
        ops.dequantize_per_tensor.tensor: dequantise_as_found,
        ops.choose_qparams.tensor: find_range,
        ops.dequantize_per_channel_group.default: dequantise_groups,
    }


def quantise(
    input: TensorType, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int
) -> TensorType:
    """QuantizeLinear, which saturates at the ends of its type, and a clip where the levels end before.

    A clip of integers: ONNX Runtime and OpenVINO then run the layers on both sides in integers, as with 8 bits.
    """
    levels = op.QuantizeLinear(input, scale, _scalar(zero_point, dtype))
    return _clipped(levels, quant_min, quant_max, dtype)


def _clipped(levels: Any, low: int, high: int, dtype: int) -> Any:
    ends = np.iinfo(_TYPES[int(dtype)])
    if low <= ends.min and high >= ends.max:
        return levels
    # an end that the type has already need not be given, but torch's own optimiser wants both
    return op.Clip(levels, _scalar(max(low, int(ends.min)), dtype), _scalar(min(high, int(ends.max)), dtype))


def _scalar(value: int, dtype: int) -> Any:
    return op.Constant(value=onnx_ir.tensor(np.array(value, _TYPES[int(dtype)])))


def find_range(input: FLOAT, quant_min: int, quant_max: int, eps: float, dtype: int) -> Any:
    """Scale and zero point of a tensor as it comes; ONNX has this for unsigned 8-bit levels only."""
    if (quant_min, quant_max, int(dtype)) != (0, 255, 2):
        raise NotImplementedError(
            f"dynamic quantisation to {quant_min}..{quant_max}: ONNX has DynamicQuantizeLinear for 0..255 in uint8 only"
        )
    _, scale, zero = op.DynamicQuantizeLinear(input)
    return scale, zero


def quantise_as_found(
    input: FLOAT, scale: FLOAT, zero_point: UINT8, quant_min: int, quant_max: int, dtype: int
) -> TensorType:
    """QuantizeLinear with a scale and zero point that are computed."""
    return op.QuantizeLinear(input, scale, zero_point)


def dequantise_as_found(
    input: UINT8,
    scale: FLOAT,
    zero_point: UINT8,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int = -1,
) -> TensorType:
    """DequantizeLinear with a scale and zero point that are computed."""
    return op.DequantizeLinear(input, scale, zero_point)


def dequantise_groups(
    input: TensorType,
    scales: FLOAT,
    zero_points: TensorType | None,
    quant_min: int,
    quant_max: int,
    dtype: int,
    group_size: int,
    output_dtype: int = 1,
) -> TensorType:
    """DequantizeLinear with a scale for each `group_size` values of a row."""
    from onnxscript.onnx_opset import opset21

    zeros = None if zero_points is None else op.Cast(zero_points, to=dtype)
    return opset21.DequantizeLinear(input, scales, zeros, axis=-1, block_size=group_size)
