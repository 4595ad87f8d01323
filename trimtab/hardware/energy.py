"""Energy: what computing and moving bytes cost in joules, and the survey's hardware equations as functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.core.errors import InputError

HOROWITZ_45NM: Mapping[str, float] = {
    "add int8": 0.03e-12,
    "add int32": 0.1e-12,
    "add fp16": 0.4e-12,
    "add fp32": 0.9e-12,
    "multiply int8": 0.2e-12,
    "multiply int32": 3.1e-12,
    "multiply fp16": 1.1e-12,
    "multiply fp32": 3.7e-12,
}
"""Joules for one operation in 45 nm at 0.9 V. Source: Horowitz 2014, Computing's energy problem, ISSCC, fig. 1.1.9."""

HOROWITZ_SRAM: Mapping[int, float] = {8 << 10: 10e-12 / 8, 32 << 10: 20e-12 / 8, 1 << 20: 100e-12 / 8}
"""Joules for each byte of a 64-bit access to a cache of so many bytes, in 45 nm. Source: Horowitz 2014, fig. 1.1.9."""

HOROWITZ_DRAM = (1.3e-9 / 8, 2.6e-9 / 8)
"""Joules for each byte of a 64-bit access to DRAM, least and most. Source: Horowitz 2014, fig. 1.1.9."""


@dataclass(frozen=True)
class Energy:
    """Joules of one piece of work, by what they go into.

    Args:
        compute: multiply-adds.
        memory: accesses to the nearest memory of its operands.
        movement: bytes that come to it from the memories behind.
        static: drawn by the whole device while it lasts; eq. 5 leaves this out.
    """

    compute: float
    memory: float
    movement: float
    static: float = 0.0

    @property
    def total(self) -> float:
        """E = compute + memory + data movement (eq. 5), and the static part."""
        return self.compute + self.memory + self.movement + self.static


def mac_energy(precision: str) -> float:
    """Joules of one multiply-add in 45 nm: the product, and its addition to a sum (of 32 bits for int8).

    Source: Horowitz 2014, fig. 1.1.9.

    >>> round(mac_energy("fp32") / mac_energy("int8"), 1)
    15.3
    """
    sums = {"int8": "int32", "int32": "int32", "fp16": "fp16", "fp32": "fp32"}
    if precision not in sums:
        raise InputError("energy: precision", got=repr(precision), expected=f"one of {', '.join(sums)}")
    return HOROWITZ_45NM[f"multiply {precision}"] + HOROWITZ_45NM[f"add {sums[precision]}"]


def edp(joules: float, seconds: float) -> float:
    """Energy-delay product in J s.

    Source: Horowitz, Indermaur and Gonzalez 1994, Low-power digital design.

    >>> edp(joules=2.0, seconds=0.5)
    1.0
    """
    return joules * seconds


def tops_per_watt(macs_per_second: float, watts: float) -> float:
    """TOPS/W: 10^12 operations per second for each watt, a multiply-add being two operations (eq. 32).

    >>> tops_per_watt(macs_per_second=2e12, watts=2.0)
    2.0
    """
    return 2 * macs_per_second / watts / 1e12


def joules_per_mac(tops_watt: float) -> float:
    """Joules of one multiply-add of a device that reaches so many TOPS/W: the inverse of eq. 32.

    >>> joules_per_mac(2.0)
    1e-12
    """
    return 2 / (tops_watt * 1e12)


def multiplier_growth(bits: int, reference: int = 8) -> float:
    """How many times the area (eq. 34) and the energy (eq. 35) of a multiplier of another width: (bits / reference)^2.

    Horowitz's 45 nm multipliers of 32 and 8 bits are 15.5 times apart in energy.

    >>> multiplier_growth(32, reference=8)
    16.0
    """
    return float((bits / reference) ** 2)


def systolic_throughput(rows: int, columns: int, hertz: float, operations: float = 1.0) -> float:
    """Multiply-adds per second of a systolic array at best: array size x frequency x operations per cycle (eq. 30-31).

    Args:
        rows: of processing elements.
        columns: of processing elements.
        hertz: clock.
        operations: multiply-adds of one element in one cycle.

    A TPU v4 has eight arrays of 128 x 128 at 1.05 GHz, sold as 275 TFLOPS (Jouppi et al. 2023):

    >>> round(2 * 8 * systolic_throughput(128, 128, 1.05e9) / 1e12)
    275
    """
    return rows * columns * hertz * operations


def transfer_efficiency(useful: float, moved: float, utilisation: float) -> float:
    """Useful work for each byte moved, times the share of the bandwidth that moving it used (eq. 29).

    Args:
        useful: multiply-adds.
        moved: bytes.
        utilisation: of the bandwidth, 0 to 1.

    Returns:
        multiply-adds per byte.

    >>> transfer_efficiency(useful=1e6, moved=1e5, utilisation=0.5)
    5.0
    """
    return useful / moved * utilisation


def dynamic_energy(joules: float, volt: float, nominal: float) -> float:
    """Joules at another voltage: E (V / V_nominal)^2.

    Source: E = C V^2; Rabaey, Chandrakasan and Nikolic 2003, Digital Integrated Circuits, section 5.5.

    >>> dynamic_energy(4.0, volt=0.5, nominal=1.0)
    1.0
    """
    return joules * (volt / nominal) ** 2
