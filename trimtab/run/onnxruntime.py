"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import FileError, InputError, RuntimeMissing
from trimtab.run.runtime import Array, Port, check_inputs, first_line, onnx_files, read_onnx

_TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int16)": np.int16, "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's CPU execution provider, all graph optimisations on."""

    name: str = "onnxruntime"

    def available(self) -> str | None:
        """None: it can be used, or why not."""
        found = importlib.util.find_spec("onnxruntime") is not None
        return None if found else "onnxruntime is not installed. Install it: pip install onnxruntime"

    def version(self) -> str:
        """Of the installed package."""
        return importlib.metadata.version("onnxruntime")

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The ONNX file itself, and its external data."""
        return onnx_files(file)

    def load(self, path: Path, batch: int | None = None, threads: int = 1, *, fused: bool = True) -> OrtSession:
        """Optimise and load a file (see `Runtime.load`); unfused, integers are multiplied as floats."""
        missing = self.available()
        if missing:
            raise RuntimeMissing("onnxruntime", got="not installed", do=missing.partition(". ")[2] + ".")
        read_onnx(path)
        return OrtSession(_session(path, _options(batch, threads, fused)), batch)


def _options(batch: int | None, threads: int, fused: bool = True) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if batch is not None:
        options.add_free_dimension_override_by_name("batch", batch)
    return options


def optimise(path: Path, into: Path, batch: int | None = 1) -> None:
    """Write the model that ONNX Runtime runs at a batch size once it has optimised a file; for this machine only.

    What it makes of a file depends on it: a product with a bias becomes a Gemm once all its shapes are known.
    """
    options = _options(batch, 1)
    options.optimized_model_filepath = str(into)
    _session(path, options)


def _session(path: Path, options: Any) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        raise FileError("ONNX Runtime cannot load", where=path, got=first_line(error)) from error


class OrtSession:
    """A file loaded in ONNX Runtime."""

    def __init__(self, session: Any, batch: int | None) -> None:
        self._session = session
        self.inputs = tuple(_port(value, batch) for value in session.get_inputs())
        self.outputs = tuple(str(value.name) for value in session.get_outputs())

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs of the caller's own, for inputs in the order of `inputs`."""
        check_inputs(self, inputs)
        feed = {port.name: array for port, array in zip(self.inputs, inputs, strict=True)}
        return [np.asarray(value) for value in self._session.run(None, feed)]

    def prepared(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """A call that runs once on bound inputs into bound outputs."""
        check_inputs(self, inputs)
        binding, held = self._session.io_binding(), [np.ascontiguousarray(array) for array in inputs]
        for port, array in zip(self.inputs, held, strict=True):
            binding.bind_cpu_input(port.name, array)
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        session = self._session

        def once(_held: object = held) -> None:
            session.run_with_iobinding(binding)

        return once

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _port(value: Any, batch: int | None) -> Port:
    if value.type not in _TYPES:
        raise InputError("ONNX Runtime", where=f"input {value.name}", got=value.type, expected="a tensor of numbers")
    shape = tuple(n if isinstance(n, int) else batch if n == "batch" else None for n in value.shape)
    return Port(value.name, shape, np.dtype(_TYPES[value.type]))
