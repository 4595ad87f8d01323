"""ExecuTorch on the CPU, with XNNPACK."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import FileError, InputError, RuntimeMissing
from trimtab.run.runtime import Array, Port, check_inputs, first_line

_TYPES = {0: np.uint8, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.int64, 6: np.float32, 7: np.float64, 11: np.bool_}
"""By the number that ExecuTorch gives a type, which is torch's."""
_open: weakref.WeakSet[EtSession] = weakref.WeakSet()
"""Sessions that hold the process's one thread pool: it cannot be replaced below them."""


@dataclass(frozen=True)
class ExecuTorch:
    """ExecuTorch's CPU runtime: XNNPACK for what it has kernels for, portable kernels for the rest.

    It runs `model.pte`, lowered from the graph beside the ONNX file, for a fixed batch. A session for any batch
    runs the program for one sample, sample by sample, so that what is scored is the file that is deployed.
    """

    name: str = "executorch"

    def available(self) -> str | None:
        """None: it can be used, or why not."""
        found = importlib.util.find_spec("executorch") is not None
        return None if found else "executorch is not installed. Install it: pip install 'trimtab[executorch]'"

    def version(self) -> str:
        """Of the installed package."""
        return importlib.metadata.version("executorch")

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The program for one sample, made from the graph beside the file where it is missing."""
        self._needed()
        from trimtab.run.pte import made

        return (made(file),)

    def load(self, path: Path, batch: int | None = None, threads: int = 1) -> EtSession:
        """Load the program beside an ONNX file (see `Runtime.load`).

        Raises:
            NotRunnable: an operator has no kernel in ExecuTorch.
            InputError: sessions with another number of threads are open. ExecuTorch has one thread pool in a process.
        """
        self._needed()
        if not path.exists():
            raise FileError("executorch", where=path, got="No such file")
        from trimtab.run.pte import made  # brings torch

        own = made(path, batch or 1)
        set_threads(threads)
        session = EtSession(own, batch, threads)
        _open.add(session)
        return session

    def _needed(self) -> None:
        missing = self.available()
        if missing:
            raise RuntimeMissing("executorch", got="not installed", do=missing.partition(". ")[2] + ".")


def set_threads(threads: int) -> None:
    """Size the process's thread pool; loaded programs keep a pointer to the pool, so that none may be open.

    Raises:
        InputError: one is open.
    """
    from executorch.extension.pybindings import portable_lib

    if portable_lib._threadpool_get_thread_count() == threads:
        return
    if len(_open):
        raise InputError(
            "executorch: threads",
            got=threads,
            expected=f"{portable_lib._threadpool_get_thread_count()}, as the sessions that are open",
            do="Close them first: ExecuTorch has one thread pool in a process.",
        )
    portable_lib._unsafe_reset_threadpool(threads)


class EtSession:
    """A program loaded in ExecuTorch."""

    def __init__(self, path: Path, batch: int | None, threads: int) -> None:
        from trimtab.run.pte import account, program

        self.threads = threads
        self._program = program(path)
        try:
            self._method = self._program.load_method("forward")
        except RuntimeError as error:
            raise FileError("ExecuTorch cannot load", where=path, got=first_line(error)) from error
        said, meta = account(path), self._method.method_meta()
        names = _names(said.get("inputs"), meta.num_inputs())
        self.inputs = tuple(_port(names[i], meta.input_tensor_meta(i), batch) for i in range(meta.num_inputs()))
        self.outputs = _names(said.get("outputs"), meta.num_outputs())
        self._any = batch is None

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs of the caller's own, for inputs in the order of `inputs`."""
        check_inputs(self, inputs)
        if not self._any:
            return self._once(inputs)
        rows = [self._once([array[i : i + 1] for array in inputs]) for i in range(len(inputs[0]))]
        return [np.concatenate(values) if values[0].ndim else values[0] for values in zip(*rows, strict=True)]

    def _once(self, inputs: Sequence[Array]) -> list[Array]:
        return [value.numpy().copy() for value in self._method.call(_tensors(inputs))]

    def prepared(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """A call that copies the inputs into the program's planned memory, where running it overwrites them."""
        check_inputs(self, inputs)
        held, method = _tensors(inputs), self._method

        def once() -> None:
            method.call(held, False)

        return once

    def close(self) -> None:
        """Free the session."""
        self._method = self._program = None
        _open.discard(self)


def _tensors(arrays: Sequence[Array]) -> list[Any]:
    import torch

    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def _names(said: Any, count: int) -> tuple[str, ...]:
    """The names that a program gives, or numbers where it was not made here."""
    fits = isinstance(said, list) and len(said) == count and all(isinstance(name, str) for name in said)
    return tuple(said) if fits else tuple(str(i) for i in range(count))


def _port(name: str, info: Any, batch: int | None) -> Port:
    shape, kind = tuple(info.sizes()), info.dtype()
    if kind not in _TYPES:
        raise InputError("executorch", where=f"input {name}", got=f"type {kind}", expected="a tensor of numbers")
    return Port(name, (None, *shape[1:]) if batch is None and shape else shape, np.dtype(_TYPES[kind]))
