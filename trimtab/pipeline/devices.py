"""Devices: what a target names, and the list of all that there are."""

from __future__ import annotations

from trimtab.core.errors import InputError, RuntimeMissing
from trimtab.core.target import RUNTIMES, Target
from trimtab.run.cpu import Cpu
from trimtab.run.device import Device


def devices() -> tuple[Device, ...]:
    """Every device that has a name: this machine's processor with each of its runtimes, and the others."""
    return (Cpu(), *(Cpu(name) for name in RUNTIMES))


def device_of(target: Target) -> Device:
    """The device that a target names.

    Raises:
        InputError: there is no such device. RuntimeMissing: what measures or models it is not installed.
    """
    if target.device == "cpu":
        device: Device = Cpu(target.runtime)
    else:
        raise InputError(
            "target", got=repr(target.device), expected="a device of `trimtab targets`", do="See `trimtab targets`."
        )
    missing = device.available()
    if missing:
        what, _, do = missing.partition(". ")
        raise RuntimeMissing("target", where=target.name, got=what, do=f"{do.rstrip('.')}." if do else None)
    return device
