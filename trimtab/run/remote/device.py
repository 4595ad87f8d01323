"""Remote: another machine, measured there by its own runtimes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import DeviceError, FileError, InputError, NotRunnable
from trimtab.core.metric import Metric, Source
from trimtab.core.target import Target
from trimtab.hardware.layer import Layer
from trimtab.run import runtime as runtime_of
from trimtab.run.cpu import fastest
from trimtab.run.device import Clocked
from trimtab.run.fusable import IntegerSupport
from trimtab.run.measure import ROUNDS, Timing, timing
from trimtab.run.overflow import faithful, support_of_flags
from trimtab.run.remote import wire
from trimtab.run.remote.about import About, about
from trimtab.run.remote.client import Client, NotThere, address, ask, fetch, nonsense, sent
from trimtab.run.remote.kept import INPUTS, MODELS
from trimtab.run.runtime import Array, onnx_files
from trimtab.run.turns import depends_on_input

_CHUNK = 64
"""Layers in one question."""
_HOUR = 3600.0
_GRACE = 30.0
"""Seconds that an answer may take beyond the longest job."""
_FAR = 0.05
"""Relative root mean square difference of outputs from which a score taken here may not hold there."""


@dataclass(frozen=True)
class Remote:
    """A machine where `trimtab device` runs.

    Args:
        client: its address and token.
        runtime: the only one of its runtimes to use; None leaves the choice to the clock there.
    """

    client: Client
    runtime: str | None = None
    source: Source = "measured"
    precisions: tuple[str, ...] = wire.PRECISIONS
    minimises: tuple[str, ...] = ("latency",)

    @property
    def name(self) -> str:
        """Its address."""
        return self.client.url

    @property
    def support(self) -> IntegerSupport:
        """What its runtime runs in integers; what all of them do, where there is a choice."""
        return support_of_flags(self.runtime, self.machine().get("flags", ()))

    def available(self) -> str | None:
        """None, or why it does not answer as it should."""
        try:
            self._which(about(replace(self.client, pauses=())))
        except (DeviceError, InputError) as error:
            return f"{error.what}{f', {error.got}' if error.got else ''}. {error.do or 'See `trimtab device --help`'}"
        return None

    def version(self) -> str:
        """Of the machine there and its libraries."""
        here = about(self.client)
        name = self._which(here)[0]
        return f"{here.key} {name} {here.runtimes[name]}"

    def machine(self) -> Mapping[str, Any]:
        """What the machine there says of itself (see `About`)."""
        return about(self.client).machine

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The ONNX file."""
        return onnx_files(file)

    def clock(
        self,
        baseline: Path,
        files: Mapping[str, Path],
        target: Target,
        inputs: Sequence[Array],
        seconds: float = 3.0,
        turns: Sequence[Sequence[Array]] = (),
    ) -> dict[str, Clocked]:
        """Time files there, each in a fresh process with the original beside it."""
        branching = [name for name, path in files.items() if depends_on_input(path)]
        if branching:
            do = "Choose a runtime of this machine: its clock takes real inputs in turn."
            raise NotRunnable("device: the network's work depends on its input", where=branching[0], do=do)
        there = about(self.client)
        which = self._which(there)
        held = {"baseline": self._read(baseline, there), "inputs": _packed(inputs)}
        settings = {
            "runtimes": list(which),
            "threads": target.threads,
            "seconds": min(seconds, there.max_seconds / 4),
        }
        found = {}
        for name, path in files.items():
            each = {**held, "file": self._read(path, there)}
            said = self._asked("/v1/time", each, settings, there)
            timed = self._timings(said, which, target)
            clocked = fastest(timed)
            strays = self._strays(path, clocked.runtime, inputs, target)
            found[name] = _placed(clocked, f"{there.processor} at {self.name}", strays)
        return found

    def layers(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        """Seconds of each layer, timed there (see `layer_times`)."""
        there = about(self.client)
        settings = {
            "precision": precision,
            "runtime": self._which(there)[0],
            "batch": target.batch,
            "threads": target.threads,
        }
        found: dict[Layer, dict[str, float]] = {}
        for chunk in _chunks(shapes, target.batch, there.max_bytes):
            question = {"layers": [asdict(layer) for layer in chunk], **settings}
            said = ask(self.client, "/v1/layers", question, there.max_seconds + _GRACE)
            try:
                told = wire.object_of(said, ("seconds",), "answer")["seconds"]
                times = wire.numbers(told, "seconds", _HOUR, len(chunk), len(chunk))
            except InputError as error:
                raise nonsense(self.client, error) from error
            found.update((layer, {"latency": seconds}) for layer, seconds in zip(chunk, times, strict=True))
        return found

    def check(self, file: Path, runtime: str) -> None:
        """NotInteger if a quantised layer would not run in integers there."""
        there = about(self.client)
        self._asked("/v1/check", {"file": self._read(file, there)}, {"runtime": runtime}, there)

    def outputs(self, file: Path, runtime: str, inputs: Sequence[Array], threads: int = 1) -> list[Array]:
        """What a file computes there."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        there = about(self.client)
        each = {"file": self._read(file, there), "inputs": _packed(inputs)}
        settings = {"runtime": runtime, "threads": threads}
        data = self._asked("/v1/run", each, settings, there, fetch)
        try:
            arrays = load(data)
            return [arrays[str(i)] for i in range(len(arrays))]
        except (SafetensorError, KeyError, ValueError) as error:
            raise nonsense(self.client, f"/v1/run: {error}") from error

    def _which(self, there: About) -> tuple[str, ...]:
        if self.runtime is not None and self.runtime not in there.runtimes:
            some = ", ".join(there.runtimes)
            raise InputError("device", where=self.name, got=f"no {self.runtime} there", expected=f"one of {some}")
        return (self.runtime,) if self.runtime is not None else tuple(there.runtimes)

    def _read(self, file: Path, there: About) -> bytes:
        if len(onnx_files(file)) > 1:
            raise InputError("device", where=file.name, got="external data", expected="an ONNX file that holds all")
        try:
            data = file.read_bytes()
        except OSError as error:
            raise FileError("read ONNX", where=file, got=error.strerror or error) from error
        if len(data) > there.max_bytes:
            expected = f"at most {there.max_bytes:,} bytes"
            do = f"Start {self.name} with a greater --max-mb."
            raise InputError("device", where=file.name, got=f"{len(data):,} bytes", expected=expected, do=do)
        return data

    def _asked(
        self,
        path: str,
        files: Mapping[str, bytes],
        settings: Mapping[str, Any],
        there: About,
        how: Callable[[Client, str, Mapping[str, Any], float], Any] = ask,
    ) -> Any:
        """A job on files that are sent where they are not there; once more if one of them has gone meanwhile."""
        for _ in range(2):
            try:
                digests = {k: sent(self.client, INPUTS if k == "inputs" else MODELS, data) for k, data in files.items()}
                return how(self.client, path, {**digests, **settings}, there.max_seconds + _GRACE)
            except NotThere:
                continue
        raise nonsense(self.client, "a file that was sent is not there")

    def _timings(self, said: Any, which: Sequence[str], target: Target) -> dict[str, Timing]:
        """Timings from the rounds that a machine tells; all else is computed here."""
        try:
            told = wire.object_of(wire.object_of(said, ("timings",), "answer")["timings"], ("", *which), "timings")
            found = {}
            for name, entry in told.items():
                one = wire.object_of(entry, ("burst", "batch", "rounds"), "timing")
                rounds = wire.numbers(one["rounds"], "rounds", _HOUR, 1 << 20, ROUNDS)
                burst = wire.whole(one["burst"], "burst", 1000)
                batch = wire.whole(one["batch"], "batch", target.batch, target.batch)
                found[name] = timing(rounds, burst, batch, target.threads)
            return found
        except InputError as error:
            raise nonsense(self.client, error) from error

    def _strays(self, file: Path, runtime: str, inputs: Sequence[Array], target: Target) -> tuple[str, ...]:
        """A sentence where outputs there are not those here, so that a score taken here may not hold there."""
        if runtime_of(runtime).available() is not None:
            return (f"The outputs were not checked there: {runtime} is not installed here.",)
        there = self.outputs(file, runtime, inputs, target.threads)
        with closing(faithful(file, runtime, target.batch, target.threads)) as session:
            here = session.run(inputs)
        shapes = [[list(array.shape) for array in arrays] for arrays in (here, there)]
        if shapes[0] != shapes[1]:
            raise nonsense(self.client, f"outputs {shapes[1]}, here {shapes[0]}")
        gap = max((_apart(a, b) for a, b in zip(here, there, strict=True)), default=0.0)
        if gap <= _FAR:
            return ()
        return (f"The outputs there differ from those here by {gap:.0%}: the score, taken here, may not hold there.",)


def _apart(a: Array, b: Array) -> float:
    """Relative root mean square difference."""
    one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    gap, size = np.sqrt(np.mean(np.square(one - other))), np.sqrt(np.mean(np.square(one)))
    return float(gap / size) if size > 0 else float(gap > 0)


def _placed(clocked: Clocked, where: str, notes: Sequence[str]) -> Clocked:
    """With where it was measured in each figure, and more notes."""

    def placed(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        return {name: replace(m, how=f"{m.how}; on {where}") for name, m in metrics.items()}

    others = {name: placed(metrics) for name, metrics in clocked.others.items()}
    return replace(clocked, metrics=placed(clocked.metrics), others=others, notes=(*clocked.notes, *notes))


def remote(url: str, runtime: str | None = None, token: str | None = None) -> Remote:
    """The machine at an address.

    Args:
        url: such as `http://board:7070`.
        runtime: the only one of its runtimes to use.
        token: that it wants to see; the environment's `TRIMTAB_TOKEN` by default.

    Raises:
        InputError: the address is none, or there is no token.
    """
    at, shown = address(url), token or os.environ.get(wire.TOKEN, "")
    if not shown.isascii() or not shown.isprintable() or not shown:
        got, do = "no token" if not shown else "a token with odd characters", f"Set {wire.TOKEN} to the device's token."
        raise InputError("target", where=at, got=got, do=do)
    return Remote(Client(at, shown), runtime)


def _packed(inputs: Sequence[Array]) -> bytes:
    from safetensors.numpy import save

    data: bytes = save({str(i): np.ascontiguousarray(array) for i, array in enumerate(inputs)})
    return data


def _chunks(shapes: Sequence[Layer], batch: int, limit: int) -> list[list[Layer]]:
    """Layers in groups that a machine takes at once."""
    found: list[list[Layer]] = []
    for layer in shapes:
        last = found[-1] if found else None
        if last is None or len(last) == _CHUNK or wire.layers_bytes([*last, layer], batch) > limit:
            found.append([layer])
        else:
            last.append(layer)
    return found
