"""Run: export a graph, load it in a runtime, time it, and check what it computes in."""

from trimtab.core.errors import InputError
from trimtab.run.executorch import ExecuTorch
from trimtab.run.inductor import Inductor
from trimtab.run.onnxruntime import OnnxRuntime
from trimtab.run.openvino import OpenVino
from trimtab.run.runtime import Runtime, Session

__all__ = ["ExecuTorch", "Inductor", "OnnxRuntime", "OpenVino", "Runtime", "Session", "runtime", "runtimes"]

KNOWN: tuple[Runtime, ...] = (OnnxRuntime(), OpenVino(), ExecuTorch(), Inductor())
"""Every runtime of this machine's processor; the first is the default."""
QUICK = ("onnxruntime", "openvino")
"""Those that load the ONNX file itself, in a moment: a target that names no runtime tries these."""


def runtimes() -> tuple[Runtime, ...]:
    """The runtimes that a target without one tries: of `QUICK`, what is installed; the first is the default."""
    return tuple(r for r in KNOWN if r.name in QUICK and r.available() is None)


def runtime(name: str | None) -> Runtime:
    """A runtime by the name that a target gives it; None is the default.

    Raises:
        InputError: no runtime has this name. RuntimeMissing comes when a file is loaded.
    """
    known = {r.name: r for r in KNOWN}
    if name is not None and name not in known:
        raise InputError("runtime", got=repr(name), expected=f"one of {', '.join(known)}")
    return known[name or "onnxruntime"]
