"""Accelerator: an array of multipliers with its memories and its dataflow, read from a TOML file with sources."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from trimtab.hardware.fields import estimates, figure, flag, known, section, tables, text, toml, wrong
from trimtab.hardware.layer import Layer

OPERANDS = ("weights", "inputs", "outputs")
LOOPS = ("outputs", "inputs", "groups", "kernel_x", "kernel_y", "x", "y", "batch")
"""Loops of a layer: channels out and in of one group, groups, sides of the kernel, sides of the output, samples."""


@dataclass(frozen=True)
class Buffer:
    """One memory, of which there may be many.

    Args:
        name: such as `global buffer`.
        holds: of `OPERANDS`; what it holds must have room in every farther memory that holds it too.
        shared: sides of the array (1, 2) along which multipliers share one; empty where each has its own.
        capacity: bytes of each.
        read: bytes it gives in a cycle.
        write: bytes it takes in a cycle.
        one_port: reads and writes share `read` bytes in a cycle.
        energy: joules for each byte read or written.
        keeps: inputs and outputs of a layer that fit in it together stay there, and go to no farther memory.
    """

    name: str
    holds: tuple[str, ...]
    shared: tuple[int, ...]
    capacity: float
    read: float
    write: float
    one_port: bool
    energy: float
    keeps: bool = False


@dataclass(frozen=True)
class Accelerator:
    """An array of multipliers for 8-bit integers, with sums of 32 bits.

    Args:
        name: as in a target.
        title: for people.
        hertz: clock.
        sides: multipliers along each side of the array.
        unroll: for each side, the loops that may be spread along it.
        order: loops that the dataflow runs innermost, the first one inside.
        systolic: operands move one multiplier a cycle, so that the last result leaves late.
        energy: joules of one multiply-add.
        buffers: from the nearest to the multipliers to the farthest.
        sources: where each section's figures are from.
        estimates: sections whose figures are estimated or chosen here rather than printed somewhere.
    """

    name: str
    title: str
    hertz: float
    sides: tuple[int, ...]
    unroll: tuple[tuple[str, ...], ...]
    order: tuple[str, ...]
    systolic: bool
    energy: float
    buffers: tuple[Buffer, ...]
    sources: tuple[tuple[str, str], ...]
    estimates: tuple[str, ...] = ()

    def home(self, inputs: float, outputs: float) -> Buffer:
        """Where a layer's inputs and outputs of so many bytes lie between layers.

        Args:
            inputs: bytes.
            outputs: bytes.
        """
        both = [b for b in self.buffers if {"inputs", "outputs"} <= set(b.holds)]
        return next((b for b in both if b.keeps and inputs + outputs <= b.capacity), both[-1])

    def ideal_cycles(self, layer: Layer, batch: int = 1) -> float:
        """The least cycles that a layer can take: multiply-adds over multipliers."""
        return layer.macs * batch / (self.sides[0] * self.sides[1])


def read_accelerator(path: Path) -> Accelerator:
    """Read a description, which may come from a stranger.

    Raises:
        FileError: the file is missing or no TOML, a figure or its source is missing, negative or not finite, or a key
            is unknown; the message names file, key, what was found and what was expected.
    """
    return describe_accelerator(toml(path), str(path))


def describe_accelerator(data: Mapping[str, Any], where: str) -> Accelerator:
    """The accelerator that a parsed TOML file holds; `where` is the file's name for errors.

    Raises:
        FileError: as for `read_accelerator`.
    """
    known(data, where, "", ("name", "title", "clock", "array", "memory"), ())
    sources: dict[str, str] = {}
    clock = section(data, "clock", where, sources, ("hertz",))
    array = section(data, "array", where, sources, ("sides", "unroll", "order", "systolic", "energy"))
    sides = array["sides"]
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(n) is int and 0 < n <= 4096 for n in sides):
        raise wrong(where, "array.sides", repr(sides)[:80], "two whole numbers from 1 to 4096")
    if not isinstance(array["systolic"], bool):
        raise wrong(where, "array.systolic", repr(array["systolic"])[:80], "true or false")
    unroll, order = _dataflow(array, where)
    return Accelerator(
        name=text(data, "name", where),
        title=text(data, "title", where),
        hertz=figure(clock, "hertz", where, "clock."),
        sides=tuple(sides),
        unroll=unroll,
        order=order,
        systolic=array["systolic"],
        energy=figure(array, "energy", where, "array.", zero=True),
        buffers=_buffers(data["memory"], where, sources),
        sources=tuple(sources.items()),
        estimates=estimates(data),
    )


def accelerators() -> tuple[Accelerator, ...]:
    """Those that come with trimtab, by name."""
    folder = files("trimtab.hardware") / "catalog" / "accelerators"
    found = (entry for entry in folder.iterdir() if entry.name.endswith(".toml"))
    made = (describe_accelerator(tomllib.loads(e.read_text(encoding="utf-8")), e.name) for e in found)
    return tuple(sorted(made, key=lambda a: a.name))


def _dataflow(array: Mapping[str, Any], where: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    unroll = array["unroll"]
    if not isinstance(unroll, list) or len(unroll) != 2:
        raise wrong(where, "array.unroll", repr(unroll)[:80], "a list of loops for each side")
    spread = tuple(_names(entry, LOOPS, where, "array.unroll") for entry in unroll)
    order = _names(array["order"], LOOPS, where, "array.order", empty=True)
    both = sorted(set(order) & {loop for entry in spread for loop in entry})
    if both:
        raise wrong(where, "array.order", both[0], "loops that are spread along no side")
    return spread, order


def _buffers(entries: Any, where: str, sources: dict[str, str]) -> tuple[Buffer, ...]:
    found: list[Buffer] = []
    for i, entry in enumerate(tables(entries, "memory", where)):
        key = f"memory[{i}]."
        ports = ("both",) if "both" in entry else ("read", "write")
        wanted = ("name", "holds", "shared", "capacity", *ports, "energy", "source")
        known(entry, where, key, wanted, ("keeps", "estimate"))
        shared, keeps, _ = entry["shared"], flag(entry, "keeps", where, key), flag(entry, "estimate", where, key)
        if shared not in ([], [1], [2], [1, 2]):
            raise wrong(where, f"{key}shared", repr(shared)[:80], "[], [1], [2] or [1, 2]")
        name = text(entry, "name", where, key)
        if name in {b.name for b in found}:
            raise wrong(where, f"{key}name", repr(name[:80]), "another name than the memories before it")
        sources[f"memory.{name}"] = text(entry, "source", where, key)
        widths = [figure(entry, port, where, key) for port in ports]
        if min(widths) < 1:
            raise wrong(where, f"{key}{ports[widths.index(min(widths))]}", str(min(widths)), "at least 1 byte a cycle")
        found.append(
            Buffer(
                name=name,
                holds=_names(entry["holds"], OPERANDS, where, f"{key}holds"),
                shared=tuple(shared),
                capacity=figure(entry, "capacity", where, key),
                read=widths[0],
                write=widths[-1],
                one_port="both" in entry,
                energy=figure(entry, "energy", where, key, zero=True),
                keeps=keeps,
            )
        )
    for operand in OPERANDS:
        if not any(operand in b.holds for b in found):
            raise wrong(where, "memory", f"none that holds {operand}", "at least one")
    if not any({"inputs", "outputs"} <= set(b.holds) for b in found):
        raise wrong(where, "memory", "none that holds inputs and outputs", "one, where they lie between layers")
    return tuple(found)


def _names(value: Any, allowed: tuple[str, ...], where: str, key: str, *, empty: bool = False) -> tuple[str, ...]:
    right = isinstance(value, list) and all(isinstance(v, str) and v in allowed for v in value)
    if not right or len(set(value)) < len(value) or not (value or empty):
        raise wrong(where, key, repr(value)[:80], f"a list of some of {', '.join(allowed)}")
    return tuple(value)
