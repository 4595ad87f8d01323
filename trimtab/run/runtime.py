"""Runtime: what can load an ONNX file and run it. Two protocols, and the check of a file before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trimtab.core.errors import FileError, InputError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Port:
    """One input or output of a session. `None` in `shape` is a size that may change."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


class Session(Protocol):
    """A loaded file, ready to run."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs in order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The output names in order."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs of the caller's own, for inputs in the order of `inputs`."""

    def prepared(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """A call that runs once on inputs that already lie in place, and leaves the outputs in place."""

    def close(self) -> None:
        """Free the session; it cannot run any more."""


class Runtime(Protocol):
    """What loads ONNX files."""

    @property
    def name(self) -> str:
        """As in a target: `onnxruntime`, `openvino`."""

    def available(self) -> str | None:
        """None if it can be used, else why not and what to install."""

    def version(self) -> str:
        """Of the installed package."""

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The files that it reads to run a point, made from the graph beside `file` where they are missing."""

    def load(self, path: Path, batch: int | None = None, threads: int = 1) -> Session:
        """Optimise and load a file.

        Args:
            path: the ONNX file; it may come from a stranger.
            batch: fixed batch size, or None for any.
            threads: that one inference may use.

        Raises:
            FileError: the file is missing, damaged, or reaches outside its folder.
            RuntimeMissing: the runtime is not installed.
        """


def read_onnx(path: Path) -> Any:
    """The ModelProto of a file that may come from a stranger, without its external data.

    Raises:
        FileError: it is missing, no ONNX model, or names external data outside its own folder.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise FileError("read ONNX", where=path, got=error.strerror or error) from error
    except DecodeError as error:
        raise FileError("read ONNX", where=path, got="not an ONNX model, or cut short") from error
    if not model.HasField("graph") or not model.opset_import:
        raise FileError("read ONNX", where=path, got="not an ONNX model, or cut short")
    folder = path.resolve().parent
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_location(path, folder, {e.key: e.value for e in tensor.external_data}.get("location", ""))
    return model


def _check_location(path: Path, folder: Path, location: str) -> None:
    target = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
        raise FileError(
            "read ONNX: external data outside the file's folder",
            where=path,
            got=repr(location),
            expected="a file beside it",
        )
    if not target.is_file():
        raise FileError("read ONNX: external data is missing", where=path, got=repr(location))


def onnx_files(path: Path) -> tuple[Path, ...]:
    """An ONNX file with its external data."""
    beside = path.with_name(f"{path.name}.data")
    return (path, beside) if beside.exists() else (path,)


def check_inputs(session: Session, inputs: Sequence[Array]) -> None:
    """InputError where arrays do not fit a session's inputs."""
    if len(inputs) != len(session.inputs):
        raise InputError("run", got=f"{len(inputs)} inputs", expected=", ".join(p.name for p in session.inputs))
    for port, array in zip(session.inputs, inputs, strict=True):
        fits = len(port.shape) == array.ndim and all(
            want is None or want == got for want, got in zip(port.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != port.dtype:
            raise InputError(
                "run",
                where=f"input {port.name}",
                got=f"{array.dtype} {list(array.shape)}",
                expected=f"{port.dtype} {['batch' if n is None else n for n in port.shape]}",
            )


def first_line(error: BaseException) -> str:
    """The first line of what a runtime says, without the prefix that names its source file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines and lines[0].startswith("Exception from") else lines[0] if lines else type(error).__name__
