"""Coded: a point's entropy-coded file, and what it takes on disk, in memory and in time."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from trimtab.core.errors import FileError
from trimtab.core.metric import Metric, metric
from trimtab.run.device import MODEL
from trimtab.run.runtime import onnx_files
from trimtab.run.trim_file import CODED, MOST, read_trim, write_trim

_WORTH = 0.9
"""A coded file is kept where it takes at most this share of model.onnx."""
_TIMES = 3


def coded(folder: Path) -> tuple[dict[str, Metric], tuple[str, ...]]:
    """Write model.trim beside model.onnx where it is smaller by a tenth; what it takes, or nothing without one.

    A file that cannot be coded is a sentence for the report: the network is as good without.

    `size` stays what the winning runtime reads: a coded file must be decoded before it is loaded.

    Args:
        folder: of a point.
    """
    file, target = folder / MODEL, folder / CODED
    size = file.stat().st_size
    if len(onnx_files(file)) > 1 or size > MOST:
        return {}, ()
    try:
        return _measured(file, target), ()
    except FileError as error:
        target.unlink(missing_ok=True)
        return {}, (f"{MODEL} was not entropy-coded: {error}",)


def _measured(file: Path, target: Path) -> dict[str, Metric]:
    """What the coded file takes, written where it is not there; nothing where it saves little."""
    if not target.exists():
        write_trim(file, target)
        if target.stat().st_size > _WORTH * file.stat().st_size:
            target.unlink()
            return {}
    times, decoded = [], 0
    for _ in range(_TIMES):
        start = time.perf_counter()
        decoded = len(read_trim(target))
        times.append(time.perf_counter() - start)
    how = f"bytes on disk of {CODED}, entropy-coded"
    return {
        "coded_size": metric("coded_size", target.stat().st_size, "measured", n=1, how=how),
        "decoded_size": metric("decoded_size", decoded, "measured", n=1, how="bytes of the ONNX file it decodes to"),
        "decode_time": metric("decode_time", median(times), "measured", n=_TIMES, how="from file to ONNX bytes"),
    }
