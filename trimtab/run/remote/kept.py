"""Kept: the files that a serving machine was sent, by their SHA-256, bounded, in a folder of their own."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtab.core.errors import FileError
from trimtab.run.runtime import first_line, read_onnx

MODELS, INPUTS = "models", "inputs"
_NAMES = {MODELS: "model.onnx", INPUTS: "inputs.safetensors"}
_ARRAYS = 64
"""Inputs that a network may have."""


class Kept:
    """Files of one folder; the one that was used longest ago goes first.

    Args:
        folder: empty, and nobody else's.
        limit: bytes of all together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._sizes: dict[tuple[str, str], int] = {}

    def path(self, kind: str, digest: str) -> Path | None:
        """Where a file lies, or None."""
        size = self._sizes.pop((kind, digest), None)
        if size is None:
            return None
        self._sizes[kind, digest] = size  # used last
        return self._folder / kind / digest / _NAMES[kind]

    def put(self, kind: str, digest: str, data: bytes) -> None:
        """Keep a file, if it is what it is said to be.

        Raises:
            FileError: its SHA-256 is another one, or it is no such file.
        """
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise FileError("file", got=f"SHA-256 {found[:12]}...", expected=f"{digest[:12]}...")
        own = self._folder / kind / digest
        own.mkdir(parents=True, exist_ok=True)
        path = own / _NAMES[kind]
        try:
            path.write_bytes(data)
            _CHECKS[kind](path)
        except (OSError, FileError):
            shutil.rmtree(own)
            raise
        self._sizes[kind, digest] = len(data)
        while sum(self._sizes.values()) > self._limit and len(self._sizes) > 1:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest]
            shutil.rmtree(self._folder / oldest[0] / oldest[1])


def _check_model(path: Path) -> None:
    """An ONNX model that holds all its data itself."""
    from onnx import TensorProto

    for tensor in _tensors(read_onnx(path)):
        if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
            raise FileError("model", got="external data", expected="an ONNX file that holds all its data")


def _tensors(message: Any) -> Any:
    """Every tensor in a model, wherever it hangs."""
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def _check_inputs(path: Path) -> None:
    """Arrays named 0, 1, ... in the order of the model's inputs."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise FileError("inputs", got=first_line(error), expected="a safetensors file") from error
    if not 0 < len(arrays) <= _ARRAYS or set(arrays) != {str(i) for i in range(len(arrays))}:
        raise FileError("inputs", got=f"{len(arrays)} arrays", expected=f"1 to {_ARRAYS}, named 0, 1, ...")


_CHECKS: dict[str, Callable[[Path], None]] = {MODELS: _check_model, INPUTS: _check_inputs}
