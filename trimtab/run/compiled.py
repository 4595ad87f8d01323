"""Compiled: a graph as the function that TorchInductor makes of it, and a session that calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from trimtab.graph.model import Graph
from trimtab.run.export import quiet
from trimtab.run.lowered import lowered
from trimtab.run.runtime import Array, Port, check_inputs


def compiled(graph: Graph, batch: int, threads: int) -> Callable[..., Any]:
    """The function that TorchInductor makes of a graph, for a fixed batch and number of threads."""
    import torch._inductor
    import torch._inductor.config as config

    inputs = graph.example(batch)
    with threads_of(threads), quiet(), torch.no_grad(), config.patch(freezing=True, compile_threads=1):
        made: Callable[..., Any] = torch._inductor.compile(lowered(graph, inputs), list(inputs))
        made(*inputs)
    return made


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Let torch use so many threads, and as many as before on leaving."""
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
        with threads_of(self._threads), torch.no_grad():
            return [value.numpy().copy() for value in self._call(*_tensors(inputs))]  # type: ignore[misc]

    def prepared(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """A call that runs once on tensors that lie in place."""
        check_inputs(self, inputs)
        held, call, threads = _tensors(inputs), self._call, self._threads

        def once() -> None:
            with threads_of(threads), torch.no_grad():
                call(*held)  # type: ignore[misc]

        return once

    def close(self) -> None:
        """Free the session."""
        self._call = None


def _tensors(arrays: Sequence[Array]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
