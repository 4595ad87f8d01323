"""Cost: the least time and the energy of a piece of work on a described device."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.core.errors import NotRunnable
from trimtab.hardware.description import Description, Memory
from trimtab.hardware.energy import Energy
from trimtab.hardware.roofline import Bound, Side


@dataclass(frozen=True)
class Work:
    """What a layer does once.

    Args:
        macs: multiply-adds.
        weights: bytes of weights read.
        activations: bytes of activations read and written.
        precision: that the multiply-adds are in.
    """

    macs: float
    weights: float
    activations: float
    precision: str


@dataclass(frozen=True)
class Cost:
    """The least time of some work, what says so, and its energy."""

    bound: Bound
    energy: Energy


def cost(description: Description, work: Work, where: str = "a layer") -> Cost:
    """The least time and the energy of a piece of work.

        time = max(macs / peak, max over memories of (bytes / bandwidth), overhead)
        E = macs e_mac + bytes e_near + (bytes from a farther memory) e_far + static power x time     (eq. 5)

    Weights and activations each lie in the nearest memory that may hold them and has room for them, and pass through
    the nearest that may hold them at all. Each memory is a roof of its own, and all of them work at the same time, so
    the time is a lower bound.

    Args:
        description: of the device, at the operating point that is meant.
        work: of one layer.
        where: the layer, for the error.

    Raises:
        NotRunnable: the device does not multiply in that precision.

    Source: Williams, Waterman and Patterson 2009, section 3; one roof per memory after Ilic, Pratas and Sousa 2014.
    """
    if work.macs and work.precision not in description.peak:
        raise NotRunnable(
            f"{description.name} has no {work.precision}",
            where=where,
            got=f"{work.macs:.3g} multiply-adds in {work.precision}",
            expected=f"one of {', '.join(description.peak)}",
            do="Quantise that layer." if work.precision == "fp32" else None,
        )
    moved: dict[Memory, float] = {}
    memory = movement = 0.0
    for kind, amount in (("weights", work.weights), ("activations", work.activations)):
        near, home = _near_and_home(description, kind, amount)
        moved[home] = moved.get(home, 0.0) + amount
        memory += amount * near.energy
        movement += amount * home.energy if home != near else 0.0
    sides: dict[Side, float] = {
        "compute": work.macs / description.peak[work.precision] if work.macs else 0.0,
        "memory": max(amount / level.bandwidth for level, amount in moved.items()),
        "overhead": description.overhead,
    }
    by = max(sides, key=lambda side: sides[side])
    return Cost(
        Bound(sides[by], by),
        Energy(
            compute=work.macs * description.energy[work.precision] if work.macs else 0.0,
            memory=memory,
            movement=movement,
            static=description.static * sides[by],
        ),
    )


def _near_and_home(description: Description, kind: str, amount: float) -> tuple[Memory, Memory]:
    """Of the memories that may hold such bytes, the nearest, and the nearest with room; the farthest if none has."""
    levels = [m for m in description.memory if kind in m.holds]
    return levels[0], next((m for m in levels if amount <= m.capacity), levels[-1])
