"""Own kernels: what a runtime that compiles from the graph executes of a whole network, by its own profiler."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import ExportError
from trimtab.graph.model import Graph
from trimtab.run.compiled import compiled, threads_of
from trimtab.run.export import quiet
from trimtab.run.kernels import Kernel
from trimtab.run.lowered import lowered as lowered_for_inductor
from trimtab.run.lowered import multiplications
from trimtab.run.pte import account, lowered, program

_CUT = 1e-6
"""XNNPACK's profile cuts to whole microseconds; what it says is half of one too little on average."""
_AROUND = ("DELEGATE_CALL", "OPERATOR_CALL", "Method::", "Program::")
"""Events of ExecuTorch that stand around others."""
_KERNELS = ("Convolution", "Fully Connected", "Deconvolution")
_PRODUCTS = (
    "onednn::",
    "mkldnn::",
    "mkl::",
    "aten::convolution",
    "aten::addmm",
    "aten::mm",
    "aten::linear",
    "aten::bmm",
)

_PROLOGUE = "AOTDispatcher"
"""Of the events of torch's compiler, what stands beside each call."""


def own_kernels(graph: Graph, runtime: str, batch: int = 1, threads: int = 1, runs: int = 60) -> tuple[Kernel, ...]:
    """The kernels that a runtime executes of a network, in order, with their median times.

    A kernel that multiplies covers the user's layer where the runtime's kernels stand in the order of the layers.

    Args:
        graph: floating point or quantised, in evaluation mode.
        runtime: `executorch` or `inductor`.
        batch: samples.
        threads: that the runtime may use.
        runs: inferences to take the median of, after a tenth as many to warm up.

    Raises:
        NotRunnable: the runtime cannot be given this network. ExportError: its profile cannot be read.
    """
    inputs = tuple(graph.example(batch))
    if runtime == "executorch":
        return _executorch(graph, inputs, batch, threads, runs)
    return _inductor(graph, inputs, batch, threads, runs)


def _executorch(graph: Graph, inputs: Sequence[Tensor], batch: int, threads: int, runs: int) -> tuple[Kernel, ...]:
    from trimtab.run.executorch import set_threads

    data = lowered(graph, batch, {})
    set_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        path, dump = Path(folder) / "network.pte", Path(folder) / "etdump"
        path.write_bytes(data)
        layers = [str(name) for name in account(path).get("sequence", [])]
        loaded = program(path, etdump=True)
        method = loaded.load_method("forward")
        for _ in range(runs + runs // 10):
            method.call(list(inputs), False)
        loaded.write_etdump_result_to_file(str(dump), "")
        events = [(name, times) for name, times in _events(dump) if not name.startswith(_AROUND)]
    products = [name for name, _ in events if name.startswith(_KERNELS)]
    left = iter(layers if len(layers) == len(products) else [""] * len(products))
    found = []
    for name, times in events:
        inside = not name.startswith("native_call_")
        seconds = median(times[runs // 10 :]) * 1e-9 + (_CUT / 2 if inside else 0.0)
        layer = next(left) if name.startswith(_KERNELS) else ""
        kind = "XNNPACK" if inside else "portable"
        found.append(Kernel(name.removeprefix("native_call_"), kind, seconds, (layer,) if layer else ()))
    return tuple(found)


def _events(dump: Path) -> Iterator[tuple[str, list[float]]]:
    """Name and nanoseconds in each run of what ExecuTorch's profile holds of the execution, in order."""
    with quiet():
        from executorch.devtools import Inspector
        from executorch.devtools.inspector import TimeScale

        blocks = Inspector(etdump_path=str(dump), target_time_scale=TimeScale.NS).event_blocks
    for event in (e for block in blocks if block.name == "Execute" for e in block.events):
        if event.perf_data is not None:
            yield str(event.name), [float(t) for t in event.perf_data.raw]


def _inductor(graph: Graph, inputs: Sequence[Tensor], batch: int, threads: int, runs: int) -> tuple[Kernel, ...]:
    import torch._inductor.config as config
    from torch.profiler import ProfilerActivity, profile

    with config.patch({"cpp.enable_kernel_profile": True}):
        call = compiled(graph, batch, threads)
    with threads_of(threads), torch.no_grad(), quiet():
        for _ in range(1 + runs // 10):
            call(*inputs)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as told:
            for _ in range(runs):
                call(*inputs)
    events = _innermost_calls(list(told.events()), runs)
    count, rest = divmod(len(events), runs)
    if not count or rest:
        raise ExportError(
            "profile: inductor's runs differ", got=f"{len(events)} events", expected=f"{runs} times as many"
        )
    layers = iter(_layers(graph, inputs, events[:count]))
    found = []
    for k, event in enumerate(events[:count]):
        seconds = median(float(e.time_range.elapsed_us()) for e in events[k::count]) * 1e-6
        layer = next(layers) if event.name.startswith(_PRODUCTS) else ""
        kind = "C++" if "cpp_fused" in event.name else "oneDNN" if event.name.startswith(_PRODUCTS) else "torch"
        found.append(Kernel(event.name, kind, seconds, (layer,) if layer else ()))
    return tuple(found)


def _innermost_calls(events: Sequence[Any], runs: int) -> list[Any]:
    """What the compiled function calls, in order: the outermost events, or what stands in the one of each run."""
    level = [e for e in events if e.cpu_parent is None and not e.name.startswith(_PROLOGUE)]
    while len(level) == runs and all(e.cpu_children for e in level):
        level = [child for e in level for child in e.cpu_children]
    return sorted(level, key=lambda e: float(e.time_range.start))


def _layers(graph: Graph, inputs: tuple[Tensor, ...] | Sequence[Tensor], events: Sequence[Any]) -> list[str]:
    """The user's layer of each product of one run; all empty where their order or inputs are not those of the graph."""
    products = [e for e in events if e.name.startswith(_PRODUCTS)]
    names, shapes = [], []
    for node, _ in multiplications(lowered_for_inductor(graph, tuple(inputs))):
        stored = [str(n.target).removesuffix("_scale") for n in node.all_input_nodes if n.op == "get_attr"]
        names.append(next((n.removesuffix(".weight") for n in stored if n.endswith(".weight")), ""))
        value = node.all_input_nodes[0].meta.get("val")
        shapes.append(list(value.shape) if isinstance(value, Tensor) else None)
    ran = [list(e.input_shapes[0]) if e.input_shapes else None for e in products]
    same = len(names) == len(products) and all(a is None or a == b for a, b in zip(shapes, ran, strict=True))
    return names if same else [""] * len(products)
