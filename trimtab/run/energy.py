"""Energy: what the processor's own counters say that inferences took (RAPL)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from trimtab.core.errors import FileError
from trimtab.core.metric import Metric, metric
from trimtab.run.measure import median_interval

POWERCAP = Path("/sys/class/powercap")
WINDOWS = 10
"""Stretches that a measurement is divided into; the energy is the median over them."""


@dataclass(frozen=True)
class Counter:
    """A counter of joules that the kernel shows; AMD's processors are under the same name as Intel's.

    Args:
        path: its folder.
        name: `package-0`, `dram`, ...
        highest: microjoules at which it starts again from 0.
    """

    path: Path
    name: str
    highest: int

    def read(self) -> int:
        """Microjoules."""
        return _number(self.path / "energy_uj")

    def since(self, before: int, after: int) -> float:
        """Joules between two readings, if it started again at most once between them."""
        gone = after - before if after >= before else after - before + self.highest
        return gone * 1e-6


def counters(folder: Path = POWERCAP) -> tuple[Counter, ...]:
    """The counters that add up to processor and memory: every package, and dram beside it.

    Cores and graphics are parts of a package and left out, as is what `intel-rapl-mmio` shows once more.
    """
    found = []
    for path in sorted(folder.glob("intel-rapl:*")):
        name = (path / "name").read_text(encoding="ascii").strip() if (path / "name").exists() else ""
        if name.startswith("package") or name == "dram":
            found.append(Counter(path, name, _number(path / "max_energy_range_uj")))
    return tuple(found)


def unavailable(folder: Path = POWERCAP) -> str | None:
    """None if energy can be measured here, else why not."""
    try:
        for counter in (found := counters(folder)):
            counter.read()
    except FileError as error:
        return f"energy: {error}"
    return None if found else "energy: the kernel shows no RAPL counter here"


def measure_energy(call: Callable[[], object], seconds: float = 1.0, folder: Path = POWERCAP) -> Metric:
    """Joules of one call: what the counters gained over calls in a row, divided by their number.

    E = (sum over counters of after - before) / calls

    It is the whole processor's energy with that of everything else which runs on it and of idling, so that
    it is to be compared with another network's of the same minute, not with a data sheet.

    Args:
        call: one inference.
        seconds: to measure for; well below the minute or so after which a counter starts again.
        folder: where the kernel shows its counters.

    Raises:
        FileError: a counter cannot be read.
    """
    known = counters(folder)
    found: list[float] = []
    for _ in range(WINDOWS):
        before, done, end = [c.read() for c in known], 0, time.perf_counter() + seconds / WINDOWS
        while done == 0 or time.perf_counter() < end:
            call()
            done += 1
        gained = sum(c.since(b, c.read()) for c, b in zip(known, before, strict=True))
        found.append(gained / done)
    names = ", ".join(dict.fromkeys(c.name for c in known))
    how = f"RAPL counters of {names}, {WINDOWS} stretches of {seconds / WINDOWS:.2g} s, idling and other work included"
    return metric("energy", median(found), "measured", n=WINDOWS, interval=median_interval(found), how=how)


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except PermissionError as error:
        do = "Its reader needs root: chmod o+r it, or run as root."
        raise FileError("a RAPL counter cannot be read", where=path, got="permission denied", do=do) from error
    except (OSError, ValueError) as error:
        raise FileError("a RAPL counter cannot be read", where=path, got=error) from error
