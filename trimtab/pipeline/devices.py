"""Devices: what a target names, and the list of all that there are."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trimtab.core.errors import FileError, InputError, RuntimeMissing
from trimtab.core.target import Target
from trimtab.hardware.accelerator import accelerators, describe_accelerator
from trimtab.hardware.description import catalog, describe
from trimtab.hardware.fields import toml
from trimtab.run import KNOWN, runtimes
from trimtab.run.cpu import Cpu
from trimtab.run.cuda import Cuda
from trimtab.run.described import Described
from trimtab.run.device import Device
from trimtab.run.ethos.configuration import read as ethos
from trimtab.run.ethos.configuration import standards
from trimtab.run.ethos.device import EthosU
from trimtab.run.remote.device import Remote, remote
from trimtab.run.zigzag import ZigZag


def devices() -> tuple[Device, ...]:
    """Every device that has a name: this machine's processor with each of its runtimes, and the others."""
    modelled: tuple[Device, ...] = (*(Described(d) for d in catalog()), *(ZigZag(a) for a in accelerators()))
    return (Cpu(), *(Cpu(runtime.name) for runtime in KNOWN), Cuda(), *(EthosU(c) for c in standards()), *modelled)


def name_of(device: Device) -> str:
    """The text that names a device in a target: a runtime of this machine's processor has its own."""
    return device.runtime or device.name if isinstance(device, Cpu) else device.name


def family_of(device: Device) -> str:
    """What kind of device it is: `cpu`, `gpu`, `npu`, `mcu`, ..."""
    if isinstance(device, EthosU):
        return "npu"
    if isinstance(device, Cuda):
        return "gpu"
    if isinstance(device, ZigZag):
        return "accelerator"
    return device.description.family if isinstance(device, Described) else "cpu"


def title_of(device: Device) -> str:
    """One phrase for people."""
    if isinstance(device, Described):
        return device.description.title
    if isinstance(device, EthosU):
        return device.title
    if isinstance(device, ZigZag):
        return device.accelerator.title
    if isinstance(device, Cpu) and device.runtime is None:
        usable = [runtime.name for runtime in runtimes()]
        return f"this machine, in the fastest of {', '.join(usable) or 'none'}, by the clock"
    return "this machine's GPU" if isinstance(device, Cuda) else "this machine"


def device_of(target: Target) -> Device:
    """The device that a target names.

    Raises:
        InputError: there is no such device. RuntimeMissing: what measures or models it is not installed.
    """
    if target.device == "cpu":
        device: Device = Cpu(target.runtime)
    elif target.device.startswith(("http://", "https://")):
        device = remote(target.device, target.runtime)
    elif target.device.endswith(".toml"):
        device = _described(target.device)
    else:
        device = _named(target.device)
    missing = device.available()
    if missing:
        what, _, do = missing.partition(". ")
        raise RuntimeMissing("target", where=target.name, got=what, do=f"{do.rstrip('.')}." if do else None)
    return device


def held_to(device: Device, runtime: str) -> Device:
    """A device in the one of its runtimes that ran a point, where it has a choice of them."""
    return replace(device, runtime=runtime) if isinstance(device, (Cpu, Remote)) else device


def machine_of(device: Device) -> dict[str, Any] | None:
    """What a machine that measures for us says of itself, with its address; None where this one measures or models."""
    return {"address": device.name, **device.machine()} if isinstance(device, Remote) else None


def _described(file: str) -> Device:
    """The device of a user's own file: an accelerator where it tells of an array, else a device by its data sheet."""
    data = toml(Path(file))
    if not {"array", "peak"} & set(data):
        raise FileError(
            "device",
            where=file,
            got=", ".join(data)[:80] or "an empty file",
            expected="[peak] and the rest of a data sheet, or [array] and the rest of an accelerator",
        )
    if "array" in data:
        return ZigZag(describe_accelerator(data, file), path=file)
    return Described(describe(data, file), path=file)


def estimates_of(device: Device) -> tuple[str, ...]:
    """The sections of its description whose figures are estimated."""
    if isinstance(device, Described):
        return device.description.estimates
    return device.accelerator.estimates if isinstance(device, ZigZag) else ()


def _named(name: str) -> Device:
    """A device of the list, by its name."""
    known = {name_of(device): device for device in devices()}
    if name not in known and name.startswith("ethos-"):
        return EthosU(ethos(name))
    if name not in known:
        close = " or ".join(get_close_matches(name, known, n=3, cutoff=0.5))
        raise InputError("target", got=repr(name), expected=close or "a device", do="See `trimtab targets`.")
    return known[name]
