"""Vela: what Arm's compiler says of one network on an Ethos-U: cycles, memory, and each operator's share."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from trimtab.core.errors import NotRunnable, RuntimeMissing
from trimtab.run.ethos.configuration import Configuration

_KIB = 1024
_COLUMNS = 16


@dataclass(frozen=True)
class Operator:
    """One operator as Vela scheduled it.

    Args:
        name: of the tensor that it writes.
        kind: of the operator that Vela made of it, such as `Conv2D`.
        cycles: that it takes.
        macs: multiply-adds.
        sram: bytes of the arena that lie there while it runs.
        on_npu: it runs there, not on the processor beside.
    """

    name: str
    kind: str
    cycles: int
    macs: int
    sram: int
    on_npu: bool


@dataclass(frozen=True)
class Compiled:
    """What Vela says of a network.

    Args:
        cycles: for one inference.
        clock: Hz.
        sram: bytes used at most.
        outside: bytes used in flash or DRAM.
        limit: bytes that the arena may take.
        traffic: bytes read and written for one inference, by memory: `sram`, `dram`, `on_chip_flash`, `off_chip_flash`.
        operators: in the order in which they run.
    """

    cycles: int
    clock: float
    sram: int
    outside: int
    limit: int
    traffic: Mapping[str, int]
    operators: tuple[Operator, ...]

    @property
    def seconds(self) -> float:
        """For one inference: cycles / clock."""
        return self.cycles / self.clock


def available() -> str | None:
    """None if Vela is installed, else what to install."""
    try:
        version("ethos-u-vela")
    except PackageNotFoundError:
        return "ethos-u-vela is not installed. Install it with: pip install 'trimtab[npu]'"
    return None


def compiled(network: bytes, form: Literal["tflite", "tosa"], how: Configuration, where: object = None) -> Compiled:
    """Compile a network and read Vela's own figures.

    Args:
        network: a .tflite or .tosa file.
        form: which of the two.
        how: the processor and its memories.
        where: for messages.

    Raises:
        NotRunnable: Vela refuses it. RuntimeMissing: Vela is not installed.
    """
    try:
        from ethosu.vela import vela
    except ImportError as error:
        raise RuntimeMissing("Ethos-U", got=available() or str(error), do="Install trimtab[npu].") from error
    with tempfile.TemporaryDirectory(prefix="vela") as temporary:
        folder, said = Path(temporary), io.StringIO()
        file = folder / f"network.{form}"
        file.write_bytes(network)
        try:
            with silent(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                vela.main([*_flags(how, form), f"--output-dir={folder}", str(file)])
        except (Exception, SystemExit) as error:  # Vela's errors have no common base, and it exits on bad arguments
            lines = [line.strip() for line in f"{said.getvalue()}\n{error}".splitlines() if line.strip()]
            raise NotRunnable(f"{how.name}: Vela cannot compile it", where=where, got=lines[-1][:200]) from error
        return _read(folder)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep off the terminal what native code prints past Python's streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        for stream, _ in kept:
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, own in kept:
            os.dup2(own, stream)
            os.close(own)
        os.close(nowhere)


def _flags(how: Configuration, form: str) -> list[str]:
    return [
        f"--accelerator-config={how.accelerator}",
        "--config=Arm/vela.ini",
        f"--system-config={how.system_config}",
        f"--memory-mode={how.mode}",
        f"--output-format={'tflite' if form == 'tflite' else 'raw'}",
        "--verbose-performance",
    ]


def _read(folder: Path) -> Compiled:
    with next(folder.glob("*_summary_*.csv")).open(newline="") as file:
        row = next(csv.DictReader(file))
    memories = ("sram", "dram", "on_chip_flash", "off_chip_flash")
    used = {name: round(float(row[f"{name}_memory_used"]) * _KIB) for name in memories}
    return Compiled(
        cycles=round(float(row["cycles_total"])),
        clock=float(row["core_clock"]),
        sram=used["sram"],
        outside=sum(used.values()) - used["sram"],
        limit=round(float(row["arena_cache_size"])),
        traffic={name: round(float(row[f"{name}_total_bytes"])) for name in memories},
        operators=_operators(next(folder.glob("*_per-layer.csv"), None)),
    )


def _operators(file: Path | None) -> tuple[Operator, ...]:
    """The rows of Vela's table. Names stand last and unquoted, and may hold commas."""
    if file is None:
        return ()
    head, *lines = file.read_text(encoding="utf-8").splitlines()
    names = head.split(",")
    rows = [dict(zip(names, line.split(",", _COLUMNS - 1), strict=True)) for line in lines]
    return tuple(
        Operator(
            name=row["Name"].strip(),
            kind=row["NNG Operator"],
            cycles=round(float(row["Op Cycles"])),
            macs=round(float(row["MAC Count"])),
            sram=round(float(row["Staging Usage"])),
            on_npu=row["Target"] == "NPU",
        )
        for row in rows
    )
