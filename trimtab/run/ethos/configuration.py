"""Configuration: which Ethos-U, with which memories, by the name that a target gives it."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.core.errors import InputError

MACS = {"u55": (32, 64, 128, 256), "u65": (256, 512), "u85": (128, 256, 512, 1024, 2048)}
"""Multiply-adds per cycle that each family comes with."""
SYSTEMS = {
    "u55": ("High_End_Embedded", "Deep_Embedded"),
    "u65": ("Client_Server", "High_End", "Mid_End", "Embedded"),
    "u85": ("SYS_DRAM_Mid", "SYS_DRAM_Low", "SYS_DRAM_High", "SYS_Flash_Low", "SYS_Flash_High"),
}
"""System configurations of Vela 5.2 (clock, bandwidths and latencies); the first of a family is Vela's default."""
_BY_FLASH = ("Shared_Sram", "Sram_Only")
_BY_DRAM = ("Dedicated_Sram_384KB", "Dedicated_Sram", "Dedicated_Sram_256KB", "Dedicated_Sram_512KB", *_BY_FLASH)
_FLASH = ("u55", "Embedded", "SYS_Flash_Low", "SYS_Flash_High")
"""Family and systems with flash behind the second port: feature maps can't lie there, so none has a dedicated SRAM."""


@dataclass(frozen=True)
class Configuration:
    """One Ethos-U in one system.

    Args:
        family: `u55`, `u65` or `u85`.
        macs: multiply-adds per cycle.
        mode: memory mode as Vela spells it: where weights and feature maps lie.
        system: system configuration as Vela spells it, without the family: clock, bandwidths, latencies.
    """

    family: str
    macs: int
    mode: str
    system: str

    @property
    def accelerator(self) -> str:
        """As Vela and ExecuTorch name it."""
        return f"ethos-{self.family}-{self.macs}"

    @property
    def name(self) -> str:
        """As in a target: the accelerator, then the memory mode and the system where they are not the default."""
        default = standard(self.family, self.macs)
        parts = [self.mode] if self.mode != modes(self.family, self.system)[0] else []
        parts += [self.system] if self.system != default.system else []
        return "-".join([self.accelerator, *(part.lower() for part in parts)])

    @property
    def system_config(self) -> str:
        """The full name of the system."""
        return f"Ethos_{self.family.upper()}_{self.system}"


def modes(family: str, system: str) -> tuple[str, ...]:
    """The memory modes of a system, its default first."""
    return _BY_FLASH if family in _FLASH or system in _FLASH else _BY_DRAM


def standard(family: str, macs: int) -> Configuration:
    """The configuration that Vela takes where it is told no system and no memory mode."""
    system = SYSTEMS[family][0]
    return Configuration(family, macs, modes(family, system)[0], system)


def standards() -> tuple[Configuration, ...]:
    """Every size of every family, each with its default memories."""
    return tuple(standard(family, macs) for family, sizes in MACS.items() for macs in sizes)


def read(name: str) -> Configuration:
    """The configuration of a name: `ethos-u55-128`, `ethos-u55-128-sram_only`, `ethos-u65-512-shared_sram-mid_end`.

    Behind the accelerator come the memory mode and the system, in any order, in lower case; each may be left out.

    Raises:
        InputError: there is none of that name.
    """
    known = {c.accelerator: c for c in standards()}
    found = known.get("-".join(name.split("-")[:3]))
    if found is None:
        raise InputError("target", got=repr(name), expected=f"one of {', '.join(known)}")
    rest = name.split("-")[3:]
    systems = {s.lower(): s for s in SYSTEMS[found.family]}
    system = next((systems[part] for part in rest if part in systems), found.system)
    allowed = {m.lower(): m for m in modes(found.family, system)}
    mode = next((allowed[part] for part in rest if part in allowed), modes(found.family, system)[0])
    if len(set(rest) - {system.lower(), mode.lower()}) or len(rest) != len(set(rest)):
        wrong = next((part for part in rest if part not in (system.lower(), mode.lower())), rest[-1])
        options = ", ".join([*allowed, *systems])
        raise InputError(
            f"target: {found.accelerator}", got=repr(wrong), expected=f"a memory mode or system: {options}"
        )
    return Configuration(found.family, found.macs, mode, system)
