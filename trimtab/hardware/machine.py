"""Machine: which processor, memory, system and library versions a measurement is of."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trimtab.core.store import digest

FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""The x86 instruction sets that the runtimes choose their kernels by."""

ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve")
"""The same on 64-bit Arm."""

LIBRARIES = ("numpy", "onnx", "onnxruntime", "openvino", "torch", "torchao", "trimtab")

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Machine:
    """What a timing depends on.

    Args:
        processor: its model, with family and stepping where the system tells them.
        cores: physical cores; logical ones where the system doesn't tell.
        usable: logical cores that this process may run on.
        flags: the instruction sets of `FLAGS` and `ARM_FLAGS` that it has.
        caches: bytes of each level of data cache of one core, by `L1`, `L2`, `L3`; empty where the system doesn't tell.
        memory: bytes.
        system: operating system and its release.
        python: version.
        libraries: versions of those installed.
    """

    processor: str
    cores: int
    usable: int
    flags: tuple[str, ...]
    caches: Mapping[str, int]
    memory: int
    system: str
    python: str
    libraries: Mapping[str, str]

    def json(self) -> dict[str, Any]:
        """The form of report.json."""
        return asdict(self)

    def key(self) -> str:
        """A hash of what timings depend on; memory to the GiB, as the amount that a kernel keeps varies."""
        return digest({**asdict(self), "memory": round(self.memory / 2**30)})


def machine() -> Machine:
    """This machine."""
    import psutil

    info = _cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.exists() else "")
    present = set(info.get("flags", info.get("Features", "")).split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        processor=_processor(info),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        usable=usable,
        flags=tuple(flag for flag in (*FLAGS, *ARM_FLAGS) if flag in present),
        caches=_caches(_CACHES),
        memory=int(psutil.virtual_memory().total),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        libraries={name: found for name in LIBRARIES if (found := _version(name)) is not None},
    )


def _cpuinfo(text: str) -> dict[str, str]:
    """The fields of the first processor."""
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _processor(info: Mapping[str, str]) -> str:
    name = info.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in info:
        return name
    return f"{name} (family {info['cpu family']}, model {info.get('model', '?')}, stepping {info.get('stepping', '?')})"


def _caches(folder: Path) -> dict[str, int]:
    """Bytes of each data or unified cache of the first core, as Linux lists them."""
    found: dict[str, int] = {}
    for entry in sorted(folder.glob("index*")):
        if (entry / "type").read_text().strip() == "Instruction":
            continue
        size = (entry / "size").read_text().strip()
        scale = {"K": 2**10, "M": 2**20}.get(size[-1:], 1)
        digits = size.rstrip("KM")
        if digits.isdigit():
            found[f"L{(entry / 'level').read_text().strip()}"] = int(digits) * scale
    return dict(sorted(found.items()))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
