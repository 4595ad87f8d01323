"""Time of each kernel of an ONNX file, from the runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.core.errors import InputError


def kernel_times(
    path: Path, runtime: str, inputs: dict[str, npt.NDArray[Any]], *, threads: int = 1, runs: int = 60
) -> dict[str, float]:
    """Median seconds of each node that the runtime executes, by node name.

    A fused node has the name that the runtime gives it: of the convolution or matrix product
    that it was fused around. Conversions that the runtime adds by itself are among the nodes.

    Args:
        path: the ONNX file.
        runtime: `onnxruntime` or `openvino`.
        inputs: by input name; their shapes fix the batch.
        threads: that the runtime may use.
        runs: inferences to take the median of, after a tenth as many to warm up.
    """
    if runtime == "onnxruntime":
        times = _onnxruntime(path, inputs, threads, runs)
    elif runtime == "openvino":
        times = _openvino(path, inputs, threads, runs)
    else:
        raise InputError("kernel times", got=runtime, expected="onnxruntime or openvino")
    return {name: median(values[len(values) // 10 :]) for name, values in times.items()}


def _onnxruntime(path: Path, inputs: dict[str, Any], threads: int, runs: int) -> dict[str, list[float]]:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + runs // 10):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            times.setdefault(name.removesuffix("_kernel_time"), []).append(event["dur"] * 1e-6)
    return times


def _openvino(path: Path, inputs: dict[str, Any], threads: int, runs: int) -> dict[str, list[float]]:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": True,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    times: dict[str, list[float]] = {}
    for _ in range(runs + runs // 10):
        request.infer(inputs)
        for info in request.get_profiling_info():
            if info.status == ov.ProfilingInfo.Status.EXECUTED:
                times.setdefault(info.node_name, []).append(info.real_time.total_seconds())
    return times
