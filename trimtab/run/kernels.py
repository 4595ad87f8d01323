"""Time of each kernel of an ONNX file, from the runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy.typing as npt

from trimtab.core.errors import InputError

OWN = ("executorch", "inductor")
"""Runtimes that compile from the graph and read no ONNX file (`run.own_kernels`)."""
Timed = tuple[str, str, float]
"""Name, kind and seconds of one node in one run."""

Covers = dict[str, tuple[str, ...]]
"""What each node of the runtime stands for, by its name."""


@dataclass(frozen=True)
class Kernel:
    """A node that the runtime executes.

    Args:
        name: that the runtime gives it; several may share one (of the layout changes that it adds).
        kind: the operator in ONNX Runtime (`QLinearConv`), the primitive in OpenVINO (`brgconv_avx512_I8`).
        seconds: median over the runs; of all nodes of this name together.
        covers: names of nodes and values of the file that it stands for, as far as the runtime tells: in OpenVINO
            every node fused into it, in ONNX Runtime its own name and those of its outputs. Empty for a
            conversion that OpenVINO added.
    """

    name: str
    kind: str
    seconds: float
    covers: tuple[str, ...] = ()


def kernels(
    path: Path, runtime: str, inputs: dict[str, npt.NDArray[Any]], *, threads: int = 1, runs: int = 60
) -> tuple[Kernel, ...]:
    """The nodes that the runtime executes, in order, with their median times.

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
        timed, covers = _onnxruntime(path, inputs, threads, runs)
    elif runtime == "openvino":
        timed, covers = _openvino(path, inputs, threads, runs)
    else:
        raise InputError("kernel times by ONNX operator", got=runtime, expected="onnxruntime or openvino")
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for name, kind, seconds in timed:
        times.setdefault(name, []).append(seconds)
        kinds.setdefault(name, kind)
    return tuple(Kernel(n, kinds[n], _per_run(values, runs), covers.get(n, ())) for n, values in times.items())


def kernel_times(
    path: Path, runtime: str, inputs: dict[str, npt.NDArray[Any]], *, threads: int = 1, runs: int = 60
) -> dict[str, float]:
    """Median seconds of each node that the runtime executes, by node name; arguments as of `kernels`."""
    return {k.name: k.seconds for k in kernels(path, runtime, inputs, threads=threads, runs=runs)}


def _per_run(values: list[float], runs: int) -> float:
    """Median over the runs, each the sum of the nodes that share a name; the first tenth warms up."""
    share = max(1, len(values) // (runs + runs // 10))
    sums = [sum(values[i : i + share]) for i in range(0, len(values), share)]
    return median(sums[len(sums) // 10 :])


def _onnxruntime(path: Path, inputs: dict[str, Any], threads: int, runs: int) -> tuple[list[Timed], Covers]:
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "constants")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + runs // 10):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimised = onnx.load(Path(folder) / "optimised.onnx", load_external_data=False)
    timed = [
        (event["name"].removesuffix("_kernel_time"), event["args"].get("op_name", ""), event["dur"] * 1e-6)
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    covers: Covers = {}
    for node in optimised.graph.node:
        covers[node.name] = (*covers.get(node.name, (node.name,)), *node.output)
    return timed, covers


def _openvino(path: Path, inputs: dict[str, Any], threads: int, runs: int) -> tuple[list[Timed], Covers]:
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
        "ENABLE_CPU_PINNING": False,  # whoever measures pins
    }
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    timed: list[Timed] = []
    for _ in range(runs + runs // 10):
        request.infer(inputs)
        timed += [
            (info.node_name, info.exec_type, info.real_time.total_seconds())
            for info in request.get_profiling_info()
            if info.status == ov.ProfilingInfo.Status.EXECUTED
        ]
    covers: Covers = {}
    for op in compiled.get_runtime_model().get_ops():
        names = str(op.get_rt_info()["originalLayersNames"].astype(str))
        covers[op.get_friendly_name()] = tuple(name for name in names.split(",") if name)
    return timed, covers
