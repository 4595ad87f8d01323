"""Machine: targets, probe and doctor, which look at what there is to run on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from trimtab._version import VERSION
from trimtab.cli.options import Json, TargetName
from trimtab.cli.show import as_json, lines, printed, table
from trimtab.core.metric import show
from trimtab.core.target import parse

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def targets(json: Json = False) -> int:
    """List what a network can be made to run on: what is measured, what is modelled, and what is missing."""
    from trimtab.pipeline.devices import devices, estimates_of, family_of, name_of, title_of

    found = []
    for device in devices():
        missing = device.available()
        state, note = ("missing", missing) if missing else (device.source, title_of(device))
        found.append((name_of(device), family_of(device), state, note, ", ".join(estimates_of(device))))
    if json:
        keys = ("name", "family", "state", "note", "estimated")
        as_json([dict(zip(keys, row, strict=True)) for row in found])
    else:
        table(("target", "family", "figures are", "", "estimated, not printed"), found)
        print("\nA target is also a file that describes a device (./board.toml) or an array (./array.toml).")
        print("Settings follow a colon: openvino:batch=8,threads=2,precision=fp32")
        print("Another machine: run `trimtab device` there, and give its address here: http://board:7070")
    return 0


def probe(
    target: TargetName = "cpu",
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again, whatever was kept.")] = False,
    json: Json = False,
) -> int:
    """Measure what this machine reaches at best."""
    device = parse(target)
    from trimtab.profile.probe import probe as measure
    from trimtab.profile.table import ceilings_table
    from trimtab.run import runtimes

    names = (device.runtime,) if device.runtime else tuple(r.name for r in runtimes())
    found = [measure(name, device.threads, fresh) for name in names]
    if json:
        as_json([one.json() for one in found])
    else:
        printed(ceilings_table(found))
    return 0


def doctor(json: Json = False) -> int:
    """Tell what is installed and what is missing."""
    from trimtab.hardware.machine import machine
    from trimtab.run import OnnxRuntime, OpenVino

    here = machine()
    free = shutil.disk_usage(Path.cwd()).free
    data = Path(os.environ.get("TRIMTAB_DATA") or Path("..") / "shared" / "data")
    governor = _GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else "not readable here"
    found: dict[str, object] = {
        "trimtab": VERSION,
        "python": f"{here.python} ({sys.implementation.name})",
        **{
            name: text for name, text in sorted(here.libraries.items()) if name in ("torch", "torchao", "onnx", "numpy")
        },
        **{r.name: r.available() or r.version() for r in (OnnxRuntime(), OpenVino())},
        "processor": here.processor,
        "cores": f"{here.cores}, of which {here.usable} logical ones may be used",
        "instructions": ", ".join(here.flags) or "none that the runtimes choose their kernels by",
        "int8 in hardware": _integers(here.flags),
        "governor": governor,
        "memory": show(here.memory, "byte"),
        "free disk": f"{show(free, 'byte')} in the working folder",
        "data": f"{data}" if data.is_dir() else f"no folder {data}; set TRIMTAB_DATA to where the examples' data lies",
    }
    if json:
        as_json(found)
    else:
        lines(found.items())
    return 0


def _integers(flags: tuple[str, ...]) -> str:
    """Whether int8 is multiplied and added into int32 in one step, and what follows where it is not."""
    from trimtab.run.overflow import support_here

    if {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(flags):
        return "yes"
    kept = f", and 8-bit weights keep to {support_here(None).top} levels a side" if support_here(None).pairs else ""
    return f"no: int8 will gain less here{kept}"
