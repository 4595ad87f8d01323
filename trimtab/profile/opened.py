"""Opened: a network or file made ready to be run by the runtimes' own profilers, and inputs for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.core.errors import FileError
from trimtab.graph.model import Graph
from trimtab.profile.network import Network, read, write
from trimtab.run.export import export_onnx
from trimtab.run.runtime import Array, Session, first_line


@dataclass(frozen=True)
class Opened:
    """A network as read from its file.

    Args:
        network: its operators and shapes.
        marked: a file of the same network whose names tell the operators' positions; it lives as long as the block.
        path: the file that the user knows.
    """

    network: Network
    marked: Path
    path: Path


@contextmanager
def opened(what: Graph | Path | str, batch: int) -> Iterator[Opened]:
    """Read a network, and write its marked form into a folder that goes with the block.

    Args:
        what: a captured network, or the path of an ONNX file, which may come from a stranger.
        batch: put in the place of a free first dimension.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = Path(what) if isinstance(what, (str, Path)) else folder / "network.onnx"
        if isinstance(what, Graph):
            export_onnx(what, path)
        network = read(path, batch)
        marked = folder / "marked.onnx"
        write(network, marked)
        yield Opened(network, marked, path)


def inputs_of(network: Network) -> dict[str, Array]:
    """Normal floats, zero integers, false booleans: what every network takes."""
    from onnx import helper

    rng = np.random.default_rng(0)
    kinds = {value.name: value.type.tensor_type.elem_type for value in network.model.graph.input}
    made: dict[str, Array] = {}
    for name in network.inputs:
        dtype, shape = helper.tensor_dtype_to_np_dtype(kinds[name]), network.values[name].shape
        floating = np.issubdtype(dtype, np.floating)
        made[name] = rng.standard_normal(shape, np.float32).astype(dtype) if floating else np.zeros(shape, dtype)
    return made


def try_once(session: Session, inputs: list[Array], path: Path) -> None:
    """FileError where a loaded file does not run."""
    try:
        session.run(inputs)
    except Exception as error:  # a runtime raises errors of its own, without a common base
        raise FileError("profile: the network does not run", where=path, got=first_line(error)) from error


def renamed(error: FileError, found: Opened) -> FileError:
    """The error with the file that the user knows, where it names our marked copy."""
    got = str(error.got).replace(str(found.marked), str(found.path))
    return FileError(error.what, where=found.path, got=got, expected=error.expected, do=error.do)
