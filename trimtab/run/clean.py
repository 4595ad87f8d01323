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

from trimtab.core.errors import ExportError, FileError, InputError, RuntimeMissing, TrimtabError
from trimtab.run import runtime as runtime_of
from trimtab.run.measure import Timing, measure
from trimtab.run.runtime import Array

if TYPE_CHECKING:
    from trimtab.core.task import Batch

LIMIT = 600.0
"""Seconds that a clean process may take."""
_ERRORS: Mapping[str, type[TrimtabError]] = {
    kind.__name__: kind for kind in (ExportError, FileError, InputError, RuntimeMissing)
}


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
    """Run a file on all batches in a fresh process that knows nothing but the file.

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
        facts = _call("run", limit, path=str(path), runtime=runtime, threads=threads, folder=folder, count=count)
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
        save_file({str(i): np.ascontiguousarray(a) for i, a in enumerate(inputs)}, Path(folder) / "0.safetensors")
        listed = {name: [str(path), runtime] for name, (path, runtime) in files.items()}
        facts = _call("time", seconds * 2 + LIMIT, files=listed, folder=folder, seconds=seconds, threads=threads)
    return {
        name: Timing(**{**fields, "interval": tuple(fields["interval"]), "rounds": tuple(fields["rounds"])})
        for name, fields in facts.items()
    }


def _input_names(path: Path) -> list[str]:
    from trimtab.run.runtime import read_onnx

    graph = read_onnx(path).graph
    constants = {t.name for t in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


def _call(function: str, limit: float, **arguments: Any) -> dict[str, Any]:
    """Call one of `_FUNCTIONS` in a fresh process; JSON goes in by stdin and comes back by stdout."""
    request = json.dumps({"function": function, "arguments": arguments})
    command = [sys.executable, "-I", "-m", "trimtab.run.clean"]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise ExportError("clean process", got=f"no answer in {limit:.0f} s", where=function) from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError("clean process", where=function, got=f"exit status {done.returncode}: {last}") from error
    if "error" in answer:
        raise _ERRORS.get(answer["error"], ExportError)(answer["message"])
    result: dict[str, Any] = answer["result"]
    return result


def _run(path: str, runtime: str, threads: int, folder: str, count: int) -> dict[str, Any]:
    from safetensors.numpy import load_file, save_file

    start = time.perf_counter()
    session = runtime_of(runtime).load(Path(path), None, threads)
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


def _time(files: dict[str, list[str]], folder: str, seconds: float, threads: int) -> dict[str, Any]:
    from safetensors.numpy import load_file

    arrays = load_file(Path(folder) / "0.safetensors")
    inputs = [arrays[str(i)] for i in range(len(arrays))]
    batch = int(inputs[0].shape[0]) if inputs and inputs[0].ndim else None
    sessions = {name: runtime_of(which).load(Path(path), batch, threads) for name, (path, which) in files.items()}
    return {name: asdict(timing) for name, timing in measure(sessions, inputs, seconds, threads).items()}


def peak_memory() -> int:
    """The most memory that this process has held, in bytes; 0 where the system does not tell.

    Linux: VmHWM. The figure of getrusage is no use: a process inherits it from the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


_FUNCTIONS: Mapping[str, Callable[..., dict[str, Any]]] = {"run": _run, "time": _time}


def _main() -> int:
    request = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"result": _FUNCTIONS[request["function"]](**request["arguments"])}
    except TrimtabError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
