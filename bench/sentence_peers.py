"""What onnxruntime.quantization makes of a transformer's float ONNX file, as its own guides advise and at its best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Inputs = list[dict[str, np.ndarray]]


def dynamic(source: Path, into: Path, inputs: Inputs) -> None:
    """`quantize_dynamic`, signed weights by channel: what its guide advises for transformers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    ready = _ready(source, into)
    quantize_dynamic(str(ready), str(into), per_channel=True, weight_type=QuantType.QInt8)
    ready.unlink()


def static(source: Path, into: Path, inputs: Inputs) -> None:
    """`quantize_static` of every operator that it knows, Q/DQ form, unsigned activations, signed weights by channel."""
    _static(source, into, inputs, {})


def static_products(source: Path, into: Path, inputs: Inputs) -> None:
    """The same of matrix products alone."""
    _static(source, into, inputs, {"op_types_to_quantize": ["MatMul", "Gemm"]})


def four_bits(source: Path, into: Path, inputs: Inputs) -> None:
    """`MatMulNBitsQuantizer`: 4-bit weights in groups of 32, symmetric."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    maker = MatMulNBitsQuantizer(onnx.load(str(source)), block_size=32, is_symmetric=True, accuracy_level=4)
    maker.process()
    maker.model.save_model_to_file(str(into))


def _static(source: Path, into: Path, inputs: Inputs, more: Mapping[str, Any]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, np.ndarray]] = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    ready = _ready(source, into)
    quantize_static(
        str(ready),
        str(into),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        **more,
    )
    ready.unlink()


def _ready(source: Path, into: Path) -> Path:
    """After its own preprocessing."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = into.with_suffix(".pre.onnx")
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    return ready
