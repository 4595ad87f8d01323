"""What onnxruntime.quantization and NNCF make of a float ONNX file, as their own guides advise for this processor."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.run.overflow import overflows


def onnxruntime_static(source: Path, into: Path, images: list[np.ndarray]) -> None:
    """`quantize_static` after its own preprocessing: unsigned activations, signed weights by channel, Q/DQ form;
    weights of 7 bits where its guide advises them: on processors without VNNI.

    Args:
        source: the float file.
        into: of the quantised one.
        images: batches to calibrate on, [N, 3, 32, 32]; ranges are minima and maxima, its default.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.batches: Iterator[dict[str, np.ndarray]] = iter([{name: batch} for batch in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    ready = into.with_suffix(".pre.onnx")
    with _silent():
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(into),
            Reader(input_name(source)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            reduce_range=overflows("onnxruntime"),
        )
    ready.unlink()


def nncf_onnx(source: Path, into: Path, images: list[np.ndarray]) -> None:
    """`nncf.quantize` of the ONNX model: mixed preset, its fast bias correction, the same calibration images."""
    import nncf
    import onnx

    name = input_name(source)
    data = nncf.Dataset(_singles(images), lambda image: {name: image})
    with _silent():
        model = nncf.quantize(onnx.load(str(source)), data, **_settings(images))
    onnx.save(model, str(into))


def nncf_openvino(source: Path, into: Path, images: list[np.ndarray]) -> None:
    """`nncf.quantize` of the model as OpenVINO reads it, saved as IR: `into` ends in .xml."""
    import nncf
    import openvino

    data = nncf.Dataset(_singles(images), lambda image: image)
    with _silent():
        model = nncf.quantize(openvino.Core().read_model(str(source)), data, **_settings(images))
    openvino.save_model(model, str(into), compress_to_fp16=False)


def input_name(source: Path) -> str:
    """The name of a file's only input."""
    import onnx

    return str(onnx.load(str(source)).graph.input[0].name)


def _settings(images: list[np.ndarray]) -> dict[str, Any]:
    import nncf

    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": sum(len(batch) for batch in images),
    }


def _singles(images: list[np.ndarray]) -> list[np.ndarray]:
    """Images one by one, [1, 3, 32, 32]: NNCF's statistics are means over batches."""
    return [image[None] for batch in images for image in batch]


class _silent(warnings.catch_warnings):
    """Keeps the peers' progress and advice off the terminal."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        return found

    def __exit__(self, *error: object) -> None:
        logging.disable(logging.NOTSET)
        super().__exit__(*error)
