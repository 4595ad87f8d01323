"""Clean: reopen a file in a fresh Python process, run or time it there, and bring back what came out."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.core.errors import (
    ExportError,
    FileError,
    InputError,
    NotInteger,
    NotRunnable,
    RuntimeMissing,
    TrimtabError,
)
from trimtab.core.metric import Metric, metric, show
from trimtab.hardware.layer import Layer
from trimtab.run import runtime as runtime_of
from trimtab.run.measure import Timing, measure
from trimtab.run.overflow import clipped, faithful
from trimtab.run.runtime import Array

if TYPE_CHECKING:
    from trimtab.core.task import Batch

LIMIT = 600.0
"""Seconds that a clean process may take."""
ERRORS: Mapping[str, type[TrimtabError]] = {
    kind.__name__: kind for kind in (ExportError, FileError, InputError, NotInteger, NotRunnable, RuntimeMissing)
}
"""What a clean process may raise, by name."""
COMMAND = (sys.executable, "-I", "-m", "trimtab.run.clean")
"""Starts a clean process: a `question` goes in by stdin, and what `answer` reads comes back by stdout."""


@dataclass(frozen=True)
class CleanRun:
    """What a clean process found.

    Args:
        outputs: of all samples: a tensor, or `Outputs` where the network returns a container.
        load_s: from the file's name to a session that is ready, s.
        peak_bytes: the most memory that the process held, the interpreter and the runtime's code included.
    """

    outputs: Any
    load_s: float
    peak_bytes: int


def clean_run(path: Path, runtime: str, batches: Iterable[Batch], threads: int = 1, limit: float = LIMIT) -> CleanRun:
    """Run a file on all batches in a fresh process that knows nothing but the file (see `overflow.faithful`).

    Args:
        path: the ONNX file.
        runtime: `onnxruntime` or `openvino`.
        batches: of the task; targets are left behind.
        threads: that the runtime may use.
        limit: seconds after which the process is ended.

    Raises:
        FileError: the file cannot be loaded there. ExportError: the process failed or took too long.
    """
    from safetensors.numpy import load_file, save_file

    from trimtab.run.score import arrays_of, as_returned

    names = _input_names(path)
    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        count = 0
        for arrays, _ in arrays_of(batches, names, path.name):
            held = {str(i): np.ascontiguousarray(array) for i, array in enumerate(arrays)}
            save_file(held, Path(folder) / f"{count}.safetensors")
            count += 1
        facts = _call(
            "run", limit, path=str(path), runtime=runtime, threads=threads, folder=folder, count=count, as_written=True
        )
        found = load_file(Path(folder) / "outputs.safetensors")
        outputs = as_returned(path, {name: found[str(i)] for i, name in enumerate(facts["outputs"])})
    return CleanRun(outputs, float(facts["load_s"]), int(facts["peak_bytes"]))


def clean_outputs(path: Path, runtime: str, batches: Iterable[Batch], threads: int = 1) -> Any:
    """The outputs of `clean_run`."""
    return clean_run(path, runtime, batches, threads).outputs


def clean_timings(
    files: Mapping[str, tuple[Path, str]], inputs: Sequence[Array], seconds: float = 2.0, threads: int = 1
) -> dict[str, Timing]:
    """`measure` of several files, each with its runtime, in one fresh process.

    Args:
        files: by name, the ONNX file and the runtime that it is loaded in.
        inputs: one batch, the same for all.
        seconds: to measure for.
        threads: that one inference may use.
    """
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        held = Path(folder) / "inputs.safetensors"
        save_file({str(i): np.ascontiguousarray(a) for i, a in enumerate(inputs)}, held)
        listed = {name: [str(path), runtime] for name, (path, runtime) in files.items()}
        limit = seconds * 2 + LIMIT
        facts = _call("time", limit, files=listed, inputs=str(held), seconds=seconds, threads=threads)
    return {
        name: Timing(**{**fields, "interval": tuple(fields["interval"]), "rounds": tuple(fields["rounds"])})
        for name, fields in facts.items()
    }


def clean_footprint(path: Path, runtime: str, inputs: Sequence[Array], threads: int = 1) -> dict[str, Metric]:
    """`load_time` and `peak_resident` of a fresh process that loads a file and runs one batch a few times.

    Args:
        path: the ONNX file.
        runtime: that it is loaded in; what that makes of the file (a program, compiled code) is made before or
            inside, as it would be where the network is served.
        inputs: one batch.
        threads: that one inference may use.
    """
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        held = Path(folder) / "inputs.safetensors"
        save_file({str(i): np.ascontiguousarray(a) for i, a in enumerate(inputs)}, held)
        facts = _call("footprint", LIMIT, path=str(path), runtime=runtime, inputs=str(held), threads=threads)
    how = f"a clean process in {runtime}"
    found = {"load_time": metric("load_time", facts["load_s"], "measured", n=1, how=f"from file to session, {how}")}
    if facts["peak_bytes"]:
        before = show(facts["before_bytes"], "byte")
        how = f"the whole of {how}, of which {before} were the interpreter before the runtime was loaded"
        found["peak_resident"] = metric("peak_resident", facts["peak_bytes"], "measured", n=1, how=how)
    return found


def _input_names(path: Path) -> list[str]:
    from trimtab.run.runtime import read_onnx

    graph = read_onnx(path).graph
    constants = {t.name for t in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


def question(function: str, arguments: Mapping[str, Any]) -> str:
    """The text that asks a clean process for one of its functions: `run`, `time`, `layers`, `check`, `footprint`."""
    return json.dumps({"function": function, "arguments": dict(arguments)})


def answer(function: str, status: int, out: str, err: str) -> dict[str, Any]:
    """What a clean process found, from what it printed.

    Raises:
        TrimtabError: the one that was raised there. ExportError: the process failed.
    """
    try:
        found: dict[str, Any] = json.loads(out)
    except ValueError as error:
        last = (err.strip().splitlines() or ["no message"])[-1]
        raise ExportError("clean process", where=function, got=f"exit status {status}: {last}") from error
    if "error" in found:
        raise ERRORS.get(found["error"], ExportError)(found["message"])
    result: dict[str, Any] = found["result"]
    return result


def _call(function: str, limit: float, **arguments: Any) -> dict[str, Any]:
    """Call one of `_FUNCTIONS` in a fresh process."""
    asked = question(function, arguments)
    try:
        done = subprocess.run(COMMAND, input=asked, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise ExportError("clean process", got=f"no answer in {limit:.0f} s", where=function) from error
    return answer(function, done.returncode, done.stdout, done.stderr)


def _run(path: str, runtime: str, threads: int, folder: str, count: int, as_written: bool = False) -> dict[str, Any]:
    from safetensors.numpy import load_file, save_file

    file = Path(path)
    lost = as_written and clipped(file, runtime)  # asked before the clock starts
    start = time.perf_counter()
    session = faithful(file, runtime, None, threads) if lost else runtime_of(runtime).load(file, None, threads)
    load_s = time.perf_counter() - start
    found: list[list[Array]] = []
    for k in range(count):
        batch = load_file(Path(folder) / f"{k}.safetensors")
        found.append(session.run([batch[str(i)] for i in range(len(batch))]))
    if not found:
        raise InputError("data", got="no batch", expected="at least one")
    whole = [np.concatenate(values) if values[0].ndim else values[0] for values in zip(*found, strict=True)]
    held = {str(i): np.ascontiguousarray(value) for i, value in enumerate(whole)}
    save_file(held, Path(folder) / "outputs.safetensors")
    return {"outputs": list(session.outputs), "load_s": load_s, "peak_bytes": peak_memory()}


def _time(files: dict[str, list[str]], inputs: str, seconds: float, threads: int) -> dict[str, Any]:
    from safetensors.numpy import load_file

    held = load_file(inputs)
    arrays = [held[str(i)] for i in range(len(held))]
    batch = int(arrays[0].shape[0]) if arrays and arrays[0].ndim else None
    sessions = {name: runtime_of(which).load(Path(path), batch, threads) for name, (path, which) in files.items()}
    return {name: asdict(timing) for name, timing in measure(sessions, arrays, seconds, threads).items()}


def _footprint(path: str, runtime: str, inputs: str, threads: int) -> dict[str, Any]:
    from safetensors.numpy import load_file

    held = load_file(inputs)
    arrays = [held[str(i)] for i in range(len(held))]
    batch = int(arrays[0].shape[0]) if arrays and arrays[0].ndim else None
    before, start = peak_memory(), time.perf_counter()
    session = runtime_of(runtime).load(Path(path), batch, threads)
    load_s = time.perf_counter() - start
    call = session.prepared(arrays)
    for _ in range(3):
        call()
    return {"load_s": load_s, "before_bytes": before, "peak_bytes": peak_memory()}


def _layers(shapes: list[dict[str, Any]], precision: str, runtime: str, batch: int, threads: int) -> dict[str, Any]:
    from trimtab.run.branches import layer_times

    listed = [Layer(**{k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()}) for shape in shapes]  # type: ignore[arg-type]
    times = layer_times(listed, precision, runtime, batch, threads)
    return {"seconds": [times[layer] for layer in listed]}


def _check(path: str, runtime: str) -> dict[str, Any]:
    from trimtab.run.integer import require_integer

    return {"layers": len(require_integer(Path(path), runtime))}


def peak_memory() -> int:
    """The most memory that this process has held, in bytes; 0 where the system does not tell.

    Linux: VmHWM. The figure of getrusage is no use: a process inherits it from the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


_FUNCTIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "run": _run,
    "time": _time,
    "layers": _layers,
    "check": _check,
    "footprint": _footprint,
}


def _main() -> int:
    request = json.load(sys.stdin)
    try:
        found: dict[str, Any] = {"result": _FUNCTIONS[request["function"]](**request["arguments"])}
    except TrimtabError as error:
        found = {"error": type(error).__name__, "message": str(error)}
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
