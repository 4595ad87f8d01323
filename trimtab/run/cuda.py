"""Cuda: an NVIDIA GPU, timed with torch's compiler under CUDA graphs, and with TensorRT where it is installed.

Written to the interfaces of torch, ONNX Runtime and NVML, and tested only as far as a machine without a GPU allows:
no figure of it has been seen yet (docs/decisions/0010).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from trimtab.core.errors import NotInteger
from trimtab.core.metric import Metric, Source, metric
from trimtab.core.target import Target
from trimtab.hardware.layer import Layer
from trimtab.run.device import Clocked
from trimtab.run.fusable import INTEGER, IntegerSupport
from trimtab.run.measure import Timing, latency, measure, ratio, throughput
from trimtab.run.runtime import Array, Session, onnx_files
from trimtab.run.turns import depends_on_input

TENSORRT = "tensorrt"
HALVES = ("bf16", "fp16")
"""What torch may compute in beside fp32, where the target allows less than fp32."""


@dataclass(frozen=True)
class Cuda:
    """This machine's first CUDA GPU.

    Latency is by the wall clock, from inputs on the GPU until it has finished, as a caller sees it; a note says how
    much of it CUDA's own events count. Quantise and dequantise nodes run in integers in TensorRT alone: torch's
    compiler computes them in floating point on a GPU, and `check` says so. Scores are computed on the processor.
    """

    name: str = "cuda"
    source: Source = "measured"
    precisions: tuple[str, ...] = ("fp32", "int8")
    minimises: tuple[str, ...] = ("latency",)
    support: IntegerSupport = INTEGER

    def available(self) -> str | None:
        """None, or why there is no GPU to use."""
        import torch

        if torch.version.cuda is None:
            return "this torch was built without CUDA. Install one with it: see pytorch.org"
        return None if torch.cuda.is_available() else "no CUDA GPU that torch can use. See nvidia-smi"

    def version(self) -> str:
        """Of the GPU, its driver's CUDA, and what runs on it."""
        import torch

        found = (torch.cuda.get_device_name(0), torch.version.cuda, torch.__version__)
        return " ".join((*map(str, found), importlib.metadata.version("onnxruntime") if _tensorrt() else ""))

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The ONNX file: TensorRT and torch build from it or from the graph of the same size beside it."""
        return onnx_files(file)

    def clock(
        self,
        baseline: Path,
        files: Mapping[str, Path],
        target: Target,
        inputs: Sequence[Array],
        seconds: float = 3.0,
        turns: Sequence[Sequence[Array]] = (),
    ) -> dict[str, Clocked]:
        """Time files in every precision that the target allows, against the original in fp32 in torch's compiler."""
        from trimtab.run.cuda_session import CudaSession, OrtGpuSession, has_semi_sparse, on_gpu, peak_bytes

        found = {}
        for name, path in files.items():
            with ExitStack() as stack:
                sessions: dict[str, Session] = {"": CudaSession(baseline, target.batch, "fp32")}
                for kind in ("fp32", *(HALVES if target.precision == "int8" else ())):
                    sessions[f"torch-{kind}"] = CudaSession(path, target.batch, kind)
                for kind in HALVES if target.precision == "int8" and has_semi_sparse(path) else ():
                    sessions[f"torch-2:4-{kind}"] = CudaSession(path, target.batch, kind, sparse=True)
                # TensorRT alone would skip work, as one random input asks; torch does all of it for every input
                if _tensorrt() and target.precision == "int8" and not depends_on_input(path):
                    sessions[TENSORRT] = OrtGpuSession(path, target.batch)
                for session in sessions.values():
                    stack.enter_context(closing(session))
                timed = measure(sessions, inputs, seconds, target.threads)
                metrics = {which: _metrics(timed[""], timed[which]) for which in sessions if which}
                best = min(metrics, key=lambda which: metrics[which]["latency"].value)
                call = sessions[best].prepared(inputs)
                more, notes = _energy(call)
                peak = metric(
                    "peak_memory", peak_bytes(call), "measured", n=1, how="tensors that torch held on the GPU"
                )
                notes += (f"CUDA events count {1e3 * on_gpu(call):.3g} ms of the latency on the GPU.",)
                notes += ("The score is computed in fp32 on the processor.",) if best.endswith(HALVES) else ()
            own = {**metrics.pop(best), **more, **({"peak_memory": peak} if best != TENSORRT else {})}
            found[name] = Clocked(best, own, metrics, notes=notes)
        return found

    def layers(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        """Seconds of each layer by CUDA events over replays of its CUDA graph; without TensorRT, int8 gains nothing."""
        from trimtab.run.cuda_session import layer_seconds

        integer = precision == "int8" and _tensorrt()
        return {layer: {"latency": layer_seconds(layer, integer, target.batch)} for layer in shapes}

    def check(self, file: Path, runtime: str) -> None:
        """NotInteger unless TensorRT runs it."""
        if runtime != TENSORRT:
            raise NotInteger(
                "cuda: torch's compiler runs quantised layers in floating point",
                where=file,
                got=runtime,
                expected=TENSORRT,
                do="Install TensorRT with onnxruntime-gpu, or give the target precision=fp32.",
            )


def _tensorrt() -> bool:
    """Whether ONNX Runtime has TensorRT here."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "TensorrtExecutionProvider" in onnxruntime.get_available_providers()


def _metrics(baseline: Timing, timing: Timing) -> dict[str, Metric]:
    return {"latency": latency(timing), "latency_ratio": ratio(baseline, timing), "throughput": throughput(timing)}


def _energy(call: Callable[[], object], seconds: float = 1.0) -> tuple[dict[str, Metric], tuple[str, ...]]:
    """Joules of one call by NVML's counter of the whole board, idling included; a note where it can't be read."""
    import time

    if importlib.util.find_spec("pynvml") is None:
        return {}, ("energy: nvidia-ml-py is not installed: pip install 'trimtab[cuda]'.",)
    import pynvml

    try:
        pynvml.nvmlInit()
        board = pynvml.nvmlDeviceGetHandleByIndex(0)
        before, done, end = pynvml.nvmlDeviceGetTotalEnergyConsumption(board), 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            call()
            done += 1
        joules = (pynvml.nvmlDeviceGetTotalEnergyConsumption(board) - before) * 1e-3 / done
    except pynvml.NVMLError as error:
        return {}, (f"energy: NVML says {error}.",)
    how = f"NVML's counter of the board over {done} inferences in a row, idling included"
    return {"energy": metric("energy", joules, "measured", n=done, how=how)}, ()
