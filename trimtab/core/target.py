"""Target: the device and runtime that the network must run on."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.core.errors import InputError


@dataclass(frozen=True)
class Target:
    """What it must run on.

    Args:
        device: `cpu` is this machine's processor.
        runtime: `onnxruntime`, `openvino`, or None for the fastest one installed.
        batch: batch size that latency is for.
        threads: threads that latency is for.
        precision: `int8` or `fp32`: the lowest precision that may be used.
    """

    device: str = "cpu"
    runtime: str | None = None
    batch: int = 1
    threads: int = 1
    precision: str = "int8"

    @property
    def name(self) -> str:
        """The text that `parse` reads back, without the settings that have their default."""
        parts = [f"{k}={getattr(self, k)}" for k in _SETTINGS if getattr(self, k) != getattr(Target, k)]
        return ":".join([self.runtime or self.device, *([",".join(parts)] if parts else [])])


_SETTINGS = ("batch", "threads", "precision")
RUNTIMES = ("onnxruntime", "openvino")


def parse(text: str) -> Target:
    """Read `cpu`, `onnxruntime`, `openvino`, each with settings: `openvino:batch=8,threads=2`."""
    name, _, rest = text.partition(":")
    if name != "cpu" and name not in RUNTIMES:
        raise InputError(
            "target", got=repr(text), expected=f"one of cpu, {', '.join(RUNTIMES)}", do="See `trimtab targets`."
        )
    settings: dict[str, int | str] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in _SETTINGS:
            raise InputError("target", where=text, got=repr(key), expected=f"one of {', '.join(_SETTINGS)}")
        if key == "precision":
            if value not in ("fp32", "int8"):
                raise InputError("target: precision", got=repr(value), expected="fp32 or int8")
            settings[key] = value
        elif value.isdigit() and int(value) > 0:
            settings[key] = int(value)
        else:
            raise InputError(f"target: {key}", got=repr(value), expected="a whole number above 0")
    return Target(runtime=None if name == "cpu" else name, **settings)  # type: ignore[arg-type]
