"""Alone: seconds of single layers in the runtimes that read no ONNX file, by their own account of each kernel."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from trimtab.core.errors import ExportError
from trimtab.hardware.layer import Layer
from trimtab.run.compiled import threads_of
from trimtab.run.export import quiet
from trimtab.run.pte import lowering, program

RUNS = 66
"""Inferences of each layer; the first tenth warms up."""
_CUT = 1e-6
"""XNNPACK's profile cuts to whole microseconds; what it says is half of one too little on average."""
_KERNELS = ("Convolution", "Fully Connected", "Batch Matrix", "Deconvolution")
"""How XNNPACK's names of what multiplies begin; around it stand conversions and transpositions of the borders."""
_OPERATORS = ("onednn.", "mkldnn.", "mkl.", "aten.convolution", "aten.addmm", "aten.mm", "aten.linear", "aten.bmm")
_FUNCTIONS: Mapping[int, Any] = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}


def alone_times(shapes: Sequence[Layer], precision: str, runtime: str, batch: int, threads: int) -> dict[Layer, float]:
    """Seconds of each layer: its kernel alone, without conversions at its borders.

    In ExecuTorch each layer is a method of one program, and XNNPACK's profile, in whole microseconds, tells what its
    kernel took. In Inductor a convolution or matrix product is one call of
    a oneDNN operator, which is timed where the lowered network calls it.

    Args:
        shapes: without repeats.
        precision: `fp32` or `int8`.
        runtime: `executorch` or `inductor`.
        batch: samples in the inputs.
        threads: that the runtime may use.

    Raises:
        ExportError: the runtime names no kernel for a layer.
    """
    integer = precision == "int8"
    if runtime == "executorch":
        return _executorch(shapes, integer, batch, threads)
    found = {}
    for layer in shapes:
        net, inputs = Alone(layer, integer, signed=False), (example_of(layer, batch),)
        with threads_of(threads), quiet(), torch.no_grad():
            found[layer] = _inductor(layer, net, inputs)
    return found


class Alone(nn.Module):
    """One layer with a relu behind, quantised as `Quantise` does it.

    Args:
        layer: its shape.
        integer: with quantise and dequantise nodes.
        signed: activations are int8, else uint8.
    """

    def __init__(self, layer: Layer, integer: bool, signed: bool) -> None:
        import torch.ao.quantization.fx._decomposed

        super().__init__()
        self.layer, self.integer = layer, integer
        self.levels = (0.02, -128, -128, 127, torch.int8) if signed else (0.02, 0, 0, 255, torch.uint8)
        shape = (layer.outputs, layer.inputs // layer.groups, *layer.kernel)
        levels = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(0))
        self.bias = nn.Parameter(torch.zeros(layer.outputs))
        if integer:
            self.register_buffer("weight", levels.to(torch.int8))
            self.register_buffer("scale", torch.full((layer.outputs,), 1e-3))
            self.register_buffer("zero", torch.zeros(layer.outputs, dtype=torch.int8))
        else:
            self.weight = nn.Parameter(levels.float() * 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes, relu'd."""
        ops, weight = torch.ops.quantized_decomposed, self.weight
        if self.integer:
            x = self._rounded(x)
            weight = ops.dequantize_per_channel(weight, self.scale, self.zero, 0, -127, 127, torch.int8)
        if self.layer.kernel:
            settings = (self.layer.stride, self.layer.padding, self.layer.dilation, self.layer.groups)
            y = _FUNCTIONS[len(self.layer.kernel)](x, weight, self.bias, *settings)
        else:
            y = nn.functional.linear(x, weight, self.bias)
        y = torch.relu(y)
        return self._rounded(y) if self.integer else y

    def _rounded(self, x: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *self.levels), *self.levels)  # type: ignore[no-any-return]


def example_of(layer: Layer, batch: int) -> Tensor:
    """A batch of inputs of a layer."""
    shape = (batch, layer.inputs, *layer.spatial) if layer.kernel else (batch * layer.spatial[0], layer.inputs)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 4


def _executorch(shapes: Sequence[Layer], integer: bool, batch: int, threads: int) -> dict[Layer, float]:
    from executorch.exir import to_edge_transform_and_lower

    from trimtab.run.executorch import set_threads

    inputs = [example_of(layer, batch) for layer in shapes]
    with quiet(), torch.no_grad():
        exported = {
            f"layer{k}": torch.export.export(Alone(layer, integer, signed=True).eval(), (inputs[k],))
            for k, layer in enumerate(shapes)
        }
        data = to_edge_transform_and_lower(exported, **lowering()).to_executorch().buffer
    set_threads(threads)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.pte"
        path.write_bytes(data)
        for k, layer in enumerate(shapes):
            kernels = profiled(path, f"layer{k}", inputs[k], Path(folder) / "etdump")
            own = [seconds for name, seconds in kernels.items() if name.startswith(_KERNELS)]
            if not own:
                raise ExportError("latency table: executorch names no kernel for a layer", where=layer)
            found[layer] = max(own)
    return found


def profiled(path: Path, method: str, x: Tensor, dump: Path) -> dict[str, float]:
    """Mean seconds of each kernel of a method to half a microsecond, as the runtime's own profile names them."""
    loaded = program(path, etdump=True)
    ready = loaded.load_method(method)
    for _ in range(RUNS):
        ready.call([x], False)
    loaded.write_etdump_result_to_file(str(dump), "")
    with quiet():
        from executorch.devtools import Inspector
        from executorch.devtools.inspector import TimeScale

        blocks = Inspector(etdump_path=str(dump), target_time_scale=TimeScale.NS).event_blocks
    found: dict[str, float] = {}
    for event in (e for block in blocks for e in block.events if e.perf_data is not None):
        times = event.perf_data.raw
        if len(times) == RUNS:
            kept = sorted(times[RUNS // 10 :])[: -RUNS // 10]  # the slowest tenth was disturbed
            found[str(event.name)] = mean(kept) * 1e-9 + _CUT / 2
    return found


class _Clock(Interpreter):
    """Runs a lowered network node by node, and times each kernel."""

    def __init__(self, net: Any) -> None:
        super().__init__(net)
        self.seconds: list[float] = []

    def run_node(self, n: Node) -> Any:
        """Time it if it multiplies."""
        if n.op == "call_function" and str(n.target).startswith(_OPERATORS):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            times = []
            for _ in range(RUNS):
                start = time.perf_counter()
                n.target(*args, **kwargs)  # type: ignore[operator]
                times.append(time.perf_counter() - start)
            self.seconds.append(median(times[RUNS // 10 :]))
        return super().run_node(n)


def _inductor(layer: Layer, net: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

    clock = _Clock(lower_pt2e_quantized_to_x86(net.eval(), inputs))
    clock.run(*inputs)
    if not clock.seconds:
        raise ExportError("latency table: inductor names no kernel for a layer", where=layer)
    return float(np.max(clock.seconds))
