"""OpenVINO on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimtab.core.errors import FileError, InputError, RuntimeMissing
from trimtab.run.runtime import Array, Port, check_inputs, first_line, onnx_files, read_onnx

Precision = Literal["f32", "bf16"]


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's CPU plugin, one stream, tuned for latency, reading the ONNX file itself.

    Args:
        precision: what float layers compute in. OpenVINO would choose bf16 by itself where the processor
            has it; here that is a choice, because it changes results.
    """

    precision: Precision = "f32"
    name: str = "openvino"

    def available(self) -> str | None:
        """None: it can be used, or why not."""
        found = importlib.util.find_spec("openvino") is not None
        return None if found else "openvino is not installed. Install it: pip install 'trimtab[openvino]'"

    def version(self) -> str:
        """Of the installed package."""
        return importlib.metadata.version("openvino")

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The ONNX file itself, and its external data."""
        return onnx_files(file)

    def load(self, path: Path, batch: int | None = None, threads: int = 1) -> OvSession:
        """Optimise and load a file (see `Runtime.load`); a fixed batch becomes a static shape."""
        missing = self.available()
        if missing:
            raise RuntimeMissing("openvino", got="not installed", do=missing.partition(". ")[2] + ".")
        read_onnx(path)
        return OvSession(compiled(path, batch, threads, self.precision))


def compiled(path: Path, batch: int | None, threads: int, precision: Precision) -> Any:
    """The openvino.CompiledModel of an ONNX file."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_CPU_PINNING": False,  # whoever measures pins; two pinned sessions would share a core
    }
    core = openvino.Core()
    try:
        model = core.read_model(str(path))
        if batch is not None:
            model.reshape({port: _static(port.partial_shape, batch) for port in model.inputs})
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise FileError("OpenVINO cannot load", where=path, got=first_line(error)) from error


def _static(shape: Any, batch: int) -> Any:
    import openvino

    return openvino.PartialShape([batch if i == 0 and n.is_dynamic else n for i, n in enumerate(shape)])


class OvSession:
    """A file loaded in OpenVINO."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._request = model.create_infer_request()
        self.inputs = tuple(_port(port) for port in model.inputs)
        self.outputs = tuple(str(port.get_any_name()) for port in model.outputs)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs of the caller's own, for inputs in the order of `inputs`."""
        self.prepared(inputs)()
        return [np.array(self._request.get_output_tensor(i).data) for i in range(len(self.outputs))]

    def prepared(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """A call that runs once on shared input tensors into the request's own outputs."""
        import openvino

        check_inputs(self, inputs)
        held = [np.ascontiguousarray(array) for array in inputs]
        for i, array in enumerate(held):
            self._request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
        request = self._request

        def once(_held: object = held) -> None:
            request.infer(share_outputs=True)  # start_async hands over to another thread: 0.02 ms slower

        return once

    def close(self) -> None:
        """Free the session."""
        self._request = self._model = None


def _port(port: Any) -> Port:
    shape = tuple(None if n.is_dynamic else n.get_length() for n in port.partial_shape)
    try:
        dtype = np.dtype(port.element_type.to_dtype())
    except (TypeError, RuntimeError) as error:
        raise InputError("OpenVINO", where=f"input {port.get_any_name()}", got=port.element_type) from error
    return Port(str(port.get_any_name()), shape, dtype)
