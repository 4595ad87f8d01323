"""Sessions on a CUDA GPU: torch's compiler under CUDA graphs, and ONNX Runtime with TensorRT. Not run yet."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from trimtab.graph.fuse import for_inference
from trimtab.graph.save import load
from trimtab.graph.signed import is_quantised
from trimtab.hardware.layer import Layer
from trimtab.run.branches import branches
from trimtab.run.export import quiet
from trimtab.run.runtime import Array, Port, check_inputs
from trimtab.run.semi_sparse import put_kernels, semi_sparse_weights

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_REPLAYS = 50


class CudaSession:
    """The graph beside an ONNX file, compiled for a fixed batch and replayed as a CUDA graph.

    Args:
        path: of the ONNX file.
        batch: samples in a call.
        kind: what it computes in: `fp32`, `fp16` or `bf16`.
        sparse: run 2:4 linear layers in the kernel that skips their zeros; in 16 bits only.
    """

    def __init__(self, path: Path, batch: int, kind: str, sparse: bool = False) -> None:
        graph = load(path.parent, path.stem)
        own = graph if is_quantised(graph) else for_inference(graph)
        own = own.to("cuda")
        self._specs, self.outputs = own.inputs, own.outputs
        self._type, self._net = _TYPES[kind], own.net
        if kind != "fp32" and not is_quantised(graph):
            self._net = self._net.to(self._type)
        if sparse:
            put_kernels(self._net, semi_sparse_weights(own))
        self.inputs = tuple(
            Port(s.name, s.at(batch), np.dtype(str(s.dtype).removeprefix("torch."))) for s in own.inputs
        )
        self._call: Any = torch.compile(self._net, mode="reduce-overhead", dynamic=False)  # CUDA graphs

    def _placed(self, inputs: Sequence[Array]) -> list[torch.Tensor]:
        check_inputs(self, inputs)
        tensors = [torch.from_numpy(np.ascontiguousarray(a)).cuda() for a in inputs]
        floats = next(self._net.parameters(), torch.empty(0)).dtype
        return [t.to(floats) if t.is_floating_point() else t for t in tensors]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs of the caller's own, in fp32."""
        with torch.no_grad():
            return [value.float().cpu().numpy() for value in self._call(*self._placed(inputs))]

    def prepared(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """A call on inputs that lie on the GPU, which returns when the GPU has finished."""
        held, call = self._placed(inputs), self._call
        with quiet(), torch.no_grad():
            for _ in range(3):  # compiles, then records the CUDA graph
                call(*held)

        def once() -> None:
            with torch.no_grad():
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                call(*held)
            torch.cuda.synchronize()

        return once

    def close(self) -> None:
        """Free the session."""
        self._call = self._net = None  # type: ignore[assignment]


class OrtGpuSession:
    """An ONNX file in ONNX Runtime's TensorRT provider, with inputs and outputs on the GPU."""

    def __init__(self, path: Path, batch: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_free_dimension_override_by_name("batch", batch)
        providers: list[Any] = [("TensorrtExecutionProvider", {"trt_int8_enable": True, "trt_fp16_enable": True})]
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=[*providers, "CUDAExecutionProvider"]
        )
        kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
        self.inputs = tuple(
            Port(v.name, tuple(n if isinstance(n, int) else batch for n in v.shape), np.dtype(kinds[v.type]))
            for v in self._session.get_inputs()
        )
        self.outputs = tuple(v.name for v in self._session.get_outputs())

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs of the caller's own."""
        check_inputs(self, inputs)
        return [np.asarray(v) for v in self._session.run(None, dict(zip(self._names(), inputs, strict=True)))]

    def _names(self) -> list[str]:
        return [port.name for port in self.inputs]

    def prepared(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """A call on inputs bound on the GPU."""
        import onnxruntime

        check_inputs(self, inputs)
        binding, session = self._session.io_binding(), self._session
        for name, array in zip(self._names(), inputs, strict=True):
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for name in self.outputs:
            binding.bind_output(name, "cuda")

        def once() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return once

    def close(self) -> None:
        """Free the session."""
        self._session = None


def has_semi_sparse(path: Path) -> bool:
    """Whether the graph beside an ONNX file has linear layers for the kernel that skips zeros."""
    graph = load(path.parent, path.stem)
    return not is_quantised(graph) and bool(semi_sparse_weights(graph))


def on_gpu(call: Callable[[], object]) -> float:
    """Median seconds between two CUDA events around a call."""
    times = []
    for _ in range(_REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return float(median(times))


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that torch held on the GPU during a call."""
    torch.cuda.reset_peak_memory_stats()
    call()
    return int(torch.cuda.max_memory_allocated())


def layer_seconds(layer: Layer, integer: bool, batch: int) -> float:
    """Seconds of one layer: in TensorRT in integers, else cuDNN's or cuBLAS's fp32 in a CUDA graph of its own."""
    if integer:
        model, feeds = branches((layer,), "int8", batch)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.onnx"
            path.write_bytes(model.SerializeToString())
            return on_gpu(OrtGpuSession(path, batch).prepared(list(feeds.values())))
    from trimtab.run.alone import Alone, example_of

    net, x = Alone(layer, integer=False, signed=False).cuda().eval(), example_of(layer, batch).cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        for _ in range(3):
            net(x)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            net(x)
    return on_gpu(graph.replay)
