"""TorchInductor on the CPU: torch's own compiler, over the graph beside the ONNX file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.core.errors import RuntimeMissing
from trimtab.graph.model import Graph
from trimtab.run.export import quiet
from trimtab.run.lowered import graph_beside, lowered
from trimtab.run.runtime import Array, Port, check_inputs


@dataclass(frozen=True)
class Inductor:
    """What torch.compile generates, without the guards that it puts around: fp32, and int8 through oneDNN.

    It compiles with freezing, for a fixed batch, each time a session is loaded: seconds to minutes. A session for
    any batch runs the network compiled for one sample, sample by sample.
    """

    name: str = "inductor"

    def available(self) -> str | None:
        """None: it can be used, or why not."""
        found = any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++"))
        return None if found else "inductor needs a C++ compiler. Install one: apt install g++"

    def version(self) -> str:
        """Of torch."""
        return str(torch.__version__)

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The graph and its weights: what it compiles from."""
        return tuple(file.with_name(f"{file.stem}{end}") for end in (".trim.json", ".safetensors"))

    def load(self, path: Path, batch: int | None = None, threads: int = 1) -> InductorSession:
        """Compile the graph beside an ONNX file (see `Runtime.load`); the generated code holds `threads`.

        Raises:
            NotRunnable: torch cannot lower or compile it.
        """
        missing = self.available()
        if missing:
            raise RuntimeMissing("inductor", got="no C++ compiler", do=missing.partition(". ")[2] + ".")
        return InductorSession(graph_beside(path), batch, threads)


def compiled(graph: Graph, batch: int, threads: int) -> Callable[..., Any]:
    """The function that TorchInductor makes of a graph, for a fixed batch and number of threads."""
    import torch._inductor
    import torch._inductor.config as config

    inputs = graph.example(batch)
    with _threads(threads), quiet(), torch.no_grad(), config.patch(freezing=True, compile_threads=1):
        made: Callable[..., Any] = torch._inductor.compile(lowered(graph, inputs), list(inputs))
        made(*inputs)
    return made


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)


class InductorSession:
    """A compiled graph."""

    def __init__(self, graph: Graph, batch: int | None, threads: int) -> None:
        self._call: Callable[..., Any] | None = compiled(graph, batch or 1, threads)
        self._threads, self._any = threads, batch is None
        self.inputs = tuple(
            Port(
                s.name, tuple(batch if n is None else n for n in s.shape), np.dtype(str(s.dtype).removeprefix("torch."))
            )
            for s in graph.inputs
        )
        self.outputs = graph.outputs

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs of the caller's own, for inputs in the order of `inputs`."""
        check_inputs(self, inputs)
        if not self._any:
            return self._once(inputs)
        rows = [self._once([array[i : i + 1] for array in inputs]) for i in range(len(inputs[0]))]
        return [np.concatenate(values) if values[0].ndim else values[0] for values in zip(*rows, strict=True)]

    def _once(self, inputs: Sequence[Array]) -> list[Array]:
        with _threads(self._threads), torch.no_grad():
            return [value.numpy().copy() for value in self._call(*_tensors(inputs))]  # type: ignore[misc]

    def prepared(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """A call that runs once on tensors that lie in place."""
        check_inputs(self, inputs)
        held, call, threads = _tensors(inputs), self._call, self._threads

        def once() -> None:
            with _threads(threads), torch.no_grad():
                call(*held)  # type: ignore[misc]

        return once

    def close(self) -> None:
        """Free the session."""
        self._call = None


def _tensors(arrays: Sequence[Array]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
