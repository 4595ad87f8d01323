"""Description: a device by its data sheet, read from a TOML file in which every figure names its source."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from trimtab.hardware.energy import dynamic_energy
from trimtab.hardware.fields import estimates, figure, flag, known, section, tables, text, toml, wrong

FAMILIES = ("server cpu", "cpu", "gpu", "tpu", "npu", "mcu", "fpga", "neuromorphic")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int16", "int8", "int4")
HOLDS = ("weights", "activations")
_NAME = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")


@dataclass(frozen=True)
class Memory:
    """One level of memory.

    Args:
        name: such as `sram`.
        capacity: bytes that fit into it.
        bandwidth: byte/s, reads and writes together.
        energy: joules for each byte that is read from it or written to it.
        holds: what may live there, of `HOLDS`.
        clocked: it runs at the clock and voltage of the operating point, rather than at its own.
    """

    name: str
    capacity: float
    bandwidth: float
    energy: float
    holds: tuple[str, ...] = HOLDS
    clocked: bool = False


@dataclass(frozen=True)
class Operating:
    """One operating point: core voltage (V) and clock (Hz)."""

    volt: float
    hertz: float

    @property
    def name(self) -> str:
        """For people: `80 MHz at 1.2 V`."""
        return f"{self.hertz / 1e6:g} MHz at {self.volt:g} V"


@dataclass(frozen=True)
class Description:
    """What a device can do, by its data sheet.

    Args:
        name: as in a target.
        title: for people.
        family: one of `FAMILIES`.
        peak: multiply-adds per second by precision, all cores together, at the first operating point.
        energy: joules for one multiply-add by precision, at the first operating point.
        memory: levels of memory, from the nearest to the farthest.
        static: watts drawn however little is computed.
        overhead: seconds to dispatch one operator, at the first operating point.
        sources: where each section's figures are from, by section: `peak`, `memory.sram`, ...
        sram: bytes for activations; None for no limit of its own.
        flash: bytes for weights; None for no limit of its own.
        operators: short ATen names of those that it runs (`conv2d`, `add`); None for all.
        operating: operating points, the nominal one first; empty where only one is known, and no voltage of it.
        estimates: sections whose figures are estimated rather than printed somewhere; their source says how.
    """

    name: str
    title: str
    family: str
    peak: Mapping[str, float]
    energy: Mapping[str, float]
    memory: tuple[Memory, ...]
    static: float
    overhead: float
    sources: Mapping[str, str]
    sram: float | None = None
    flash: float | None = None
    operators: tuple[str, ...] | None = None
    operating: tuple[Operating, ...] = ()
    estimates: tuple[str, ...] = ()

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of `fp32` and `int8` that it computes in."""
        return tuple(p for p in ("fp32", "int8") if p in self.peak)


def read(path: Path) -> Description:
    """Read a description, which may come from a stranger.

    Raises:
        FileError: the file is missing or no TOML, a figure or its source is missing, negative or not finite, or a key
            is unknown; the message names file, key, what was found and what was expected.
    """
    return describe(toml(path), str(path))


def describe(data: Mapping[str, Any], where: str) -> Description:
    """The description that a parsed TOML file holds; `where` is the file's name for errors.

    Raises:
        FileError: as for `read`.
    """
    wanted = ("name", "title", "family", "peak", "energy", "memory", "static", "overhead")
    known(data, where, "", wanted, ("limits", "operators", "operating"))
    name, family = text(data, "name", where), text(data, "family", where)
    if not _NAME.fullmatch(name):
        raise wrong(where, "name", repr(name[:80]), "small letters, digits and - _ . between them")
    if family not in FAMILIES:
        raise wrong(where, "family", repr(family[:80]), f"one of {', '.join(FAMILIES)}")
    sources: dict[str, str] = {}
    peak = _by_precision(data, "peak", where, sources, zero=False)
    energy = _by_precision(data, "energy", where, sources, zero=True)
    if set(peak) != set(energy):
        odd = sorted(set(peak) ^ set(energy))[0]
        raise wrong(where, f"energy.{odd}" if odd in peak else f"peak.{odd}", "nothing", "a figure for each precision")
    if not {"fp32", "int8"} & set(peak):
        raise wrong(where, "peak", ", ".join(peak), "fp32, int8 or both among them")
    limits = section(data, "limits", where, sources, (), ("sram", "flash")) if "limits" in data else {}
    return Description(
        name=name,
        title=text(data, "title", where),
        family=family,
        peak=peak,
        energy=energy,
        memory=_memory(data["memory"], where, sources),
        static=figure(section(data, "static", where, sources, ("watts",)), "watts", where, "static.", zero=True),
        overhead=figure(
            section(data, "overhead", where, sources, ("seconds",)), "seconds", where, "overhead.", zero=True
        ),
        sources=sources,
        sram=figure(limits, "sram", where, "limits.") if "sram" in limits else None,
        flash=figure(limits, "flash", where, "limits.") if "flash" in limits else None,
        operators=_operators(data, where, sources),
        operating=_operating(data.get("operating", []), where, sources),
        estimates=estimates(data),
    )


def catalog() -> tuple[Description, ...]:
    """The descriptions that come with trimtab, by name."""
    folder = files("trimtab.hardware") / "catalog"
    found = (entry for entry in folder.iterdir() if entry.name.endswith(".toml"))
    made = (describe(tomllib.loads(entry.read_text(encoding="utf-8")), entry.name) for entry in found)
    return tuple(sorted(made, key=lambda d: d.name))


def at(description: Description, point: Operating) -> Description:
    """The device at another operating point.

    peak ~ f,  overhead ~ 1 / f,  joules per multiply-add and per byte of a clocked memory ~ V^2

    Static power is left as it is: what leaks at a lower voltage no data sheet here tells, so a slow point is not
    flattered.
    """
    nominal = description.operating[0]
    speed = point.hertz / nominal.hertz

    def scaled(joules: float) -> float:
        return dynamic_energy(joules, point.volt, nominal.volt)

    memory = tuple(
        replace(m, bandwidth=m.bandwidth * speed, energy=scaled(m.energy)) if m.clocked else m
        for m in description.memory
    )
    return replace(
        description,
        peak={p: value * speed for p, value in description.peak.items()},
        energy={p: scaled(value) for p, value in description.energy.items()},
        memory=memory,
        overhead=description.overhead / speed,
    )


def _memory(entries: Any, where: str, sources: dict[str, str]) -> tuple[Memory, ...]:
    found: list[Memory] = []
    for i, entry in enumerate(tables(entries, "memory", where)):
        key = f"memory[{i}]."
        wanted = ("name", "capacity", "bandwidth", "energy", "source")
        known(entry, where, key, wanted, ("holds", "clocked", "estimate"))
        name = text(entry, "name", where, key)
        if name in {m.name for m in found}:
            raise wrong(where, f"{key}name", repr(name[:80]), "another name than the levels before it")
        holds = entry.get("holds", list(HOLDS))
        if not isinstance(holds, list) or not holds or any(h not in HOLDS for h in holds):
            raise wrong(where, f"{key}holds", repr(holds)[:80], f"a list of {' and '.join(HOLDS)}")
        clocked, _ = flag(entry, "clocked", where, key), flag(entry, "estimate", where, key)
        sources[f"memory.{name}"] = text(entry, "source", where, key)
        capacity, bandwidth = (figure(entry, k, where, key) for k in ("capacity", "bandwidth"))
        energy = figure(entry, "energy", where, key, zero=True)
        found.append(Memory(name, capacity, bandwidth, energy, tuple(holds), clocked))
    for kind in HOLDS:
        if not any(kind in m.holds for m in found):
            raise wrong(where, "memory", f"no level that holds {kind}", "at least one")
    return tuple(found)


def _operating(entries: Any, where: str, sources: dict[str, str]) -> tuple[Operating, ...]:
    found = []
    for i, entry in enumerate(tables(entries, "operating", where)):
        key = f"operating[{i}]."
        known(entry, where, key, ("volt", "hertz", "source"), ())
        point = Operating(figure(entry, "volt", where, key), figure(entry, "hertz", where, key))
        if point in found:
            raise wrong(where, key.rstrip("."), point.name, "another point than those before it")
        sources[f"operating.{point.name}"] = text(entry, "source", where, key)
        found.append(point)
    return tuple(found)


def _operators(data: Mapping[str, Any], where: str, sources: dict[str, str]) -> tuple[str, ...] | None:
    if "operators" not in data:
        return None
    names = section(data, "operators", where, sources, ("names",))["names"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise wrong(where, "operators.names", repr(names)[:80], "a list of names such as conv2d")
    return tuple(names)


def _by_precision(
    data: Mapping[str, Any], key: str, where: str, sources: dict[str, str], *, zero: bool
) -> dict[str, float]:
    given = section(data, key, where, sources, (), PRECISIONS)
    found = {p: figure(given, p, where, f"{key}.", zero=zero) for p in PRECISIONS if p in given}
    if not found:
        raise wrong(where, key, "no precision", f"at least one of {', '.join(PRECISIONS)}")
    return found
