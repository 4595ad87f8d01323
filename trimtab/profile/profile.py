"""Profile: where the time, the multiply-adds and the bytes of a network go, layer by layer, on a runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import FileError, InputError
from trimtab.core.metric import Metric, metric
from trimtab.core.target import Target
from trimtab.graph.count import total
from trimtab.graph.model import Graph
from trimtab.hardware.machine import machine
from trimtab.hardware.roofline import Ceilings, bound
from trimtab.profile.advice import advice, gains
from trimtab.profile.join import Group, join, peak_memory
from trimtab.profile.network import Network, Op
from trimtab.profile.opened import inputs_of, opened, try_once
from trimtab.profile.probe import probe
from trimtab.profile.row import Row
from trimtab.run import Runtime, runtime, runtimes
from trimtab.run.kernels import OWN, kernels
from trimtab.run.measure import latency, measure
from trimtab.run.pinned import pinned
from trimtab.run.runtime import Session

_INTEGER = re.compile(r"^(QLinear|QGemm|QAttention|DynamicQuantize)|Integer$|_[iu]8$", re.IGNORECASE)
"""Kernels that compute in integers: operators of ONNX Runtime, and the end of OpenVINO's primitives."""
_WHOLE = 1.0
"""Seconds to time the whole network for."""
_SECONDS, _RUNS = 0.5, (20, 300)
"""Time to run kernels for, and bounds on how often: a short burst could fall into a busy moment of the machine."""
_BLUR, _ABOVE, _MUCH = 1e-5, 1.2, 0.1
"""Seconds that the profiler's clock tells well; above how much of its ceiling how much of the time is doubtful."""
_ADDED = "(added by the runtime)"


@dataclass(frozen=True)
class Profile:
    """What a network costs on a runtime.

    Args:
        runtime: by name.
        batch: that everything is for.
        threads: that the runtime had.
        rows: the slowest first.
        totals: `params`, `macs`, `peak_memory`, `latency`, and `bytes` moved and `kernels`, the sum of the rows'
            seconds.
        ceilings: that the rows are held against.
        notes: what is not counted, one sentence each.
    """

    runtime: str
    batch: int
    threads: int
    rows: tuple[Row, ...]
    totals: Mapping[str, Metric]
    ceilings: Ceilings
    notes: tuple[str, ...]

    @property
    def outside(self) -> float:
        """Seconds of the whole network that are in no kernel.

        Negative where the profiler's own cost and its clock of whole microseconds weigh more: in small networks.
        """
        return self.totals["latency"].value - self.totals["kernels"].value

    def json(self) -> dict[str, Any]:
        """As `trimtab profile --json` prints it."""
        return {
            "runtime": self.runtime,
            "batch": self.batch,
            "threads": self.threads,
            "totals": {name: m.json() for name, m in self.totals.items()},
            "outside_kernels": {"value": self.outside, "unit": "s", "source": "measured"},
            "rows": [self._row(row) for row in self.rows],
            "ceilings": self.ceilings.json(),
            "notes": list(self.notes),
        }

    def _row(self, row: Row) -> dict[str, Any]:
        told = {"advice": advice(row, self.ceilings), "gains": gains(row, self.ceilings)}
        return {**vars(row), "intensity": row.intensity, "achieved": row.achieved, **told}


def profile(what: Graph | Path | str, target: Target | None = None, ceilings: Ceilings | None = None) -> Profile:
    """Measure where the time of a network goes on a target, and what binds each layer.

    Args:
        what: a captured network, or the path of an ONNX file, which may come from a stranger.
        target: batch, threads and runtime; this machine by default. Without a runtime, the fastest installed is taken.
        ceilings: of the machine; by default those that `probe` keeps, measured now if there are none.

    Raises:
        FileError: the file is missing, damaged, or does not run.
        InputError: the target does not fit the network or the machine.
        RuntimeMissing: the target's runtime is not installed.
    """
    wanted = target or Target()
    _require_joined(wanted)
    usable = machine().usable
    if not 1 <= wanted.threads <= usable:  # a runtime would start any number
        raise InputError("profile: threads", got=wanted.threads, expected=f"1 to {usable}")
    with opened(what, wanted.batch) as found:
        network = found.network
        try:
            chosen, whole = _fastest(found.marked, network, wanted)
        except FileError as error:  # it names our temporary copy
            raise FileError(
                error.what, where=found.path, got=error.got, expected=error.expected, do=error.do
            ) from error
        runs = int(np.clip(_SECONDS / whole.value, *_RUNS))
        with pinned(wanted.threads):
            timed = kernels(found.marked, chosen.name, inputs_of(network), threads=wanted.threads, runs=runs)
    roof = ceilings or probe(chosen.name, wanted.threads)
    groups = join(network, timed)
    rows = _rows(network, groups, roof)
    return Profile(
        runtime=chosen.name,
        batch=network.batch,
        threads=wanted.threads,
        rows=tuple(sorted(rows, key=lambda row: -row.seconds)),
        totals={**_totals(network, groups, rows, whole), **_own_parameters(what)},
        ceilings=roof,
        notes=(*_notes(network, groups, wanted), *_doubts(rows)),
    )


def _require_joined(target: Target) -> None:
    """InputError where kernels cannot be joined with the file's operators: other devices, and what reads no ONNX."""
    if target.device != "cpu":
        raise InputError("profile: target", got=target.name, expected="a runtime of this machine's processor")
    if target.runtime in OWN:
        raise InputError(
            f"profile: {target.runtime}",
            got="a runtime whose profile names no operators of an ONNX file",
            expected="onnxruntime or openvino",
            do=f"`trimtab profile TASK --target {target.runtime}` lists its own kernels.",
        )


def _fastest(path: Path, network: Network, target: Target) -> tuple[Runtime, Metric]:
    """The target's runtime, or the fastest one here, with the latency of the whole network."""
    asked = (runtime(target.runtime),) if target.runtime else runtimes()
    inputs = list(inputs_of(network).values())
    sessions: dict[str, Session] = {}
    try:
        for one in asked:
            sessions[one.name] = one.load(path, threads=target.threads)
            try_once(sessions[one.name], inputs, path)
        found = {name: latency(timing) for name, timing in measure(sessions, inputs, _WHOLE, target.threads).items()}
    finally:
        for session in sessions.values():
            session.close()
    best = min(found, key=lambda name: found[name].value)
    return runtime(best), found[best]


def _rows(network: Network, groups: tuple[Group, ...], ceilings: Ceilings) -> list[Row]:
    whole = sum(kernel.seconds for group in groups for kernel in group.kernels)
    return [_row(network, group, position, whole, ceilings) for position, group in enumerate(groups)]


def _row(network: Network, group: Group, position: int, whole: float, ceilings: Ceilings) -> Row:
    ops = [network.ops[i] for i in group.members]
    macs, seconds = sum(op.macs for op in ops), sum(kernel.seconds for kernel in group.kernels)
    kernel = max(group.kernels, key=lambda kernel: kernel.seconds).kind
    precision = "int8" if _INTEGER.search(kernel) else "fp32"
    limit = bound(ceilings, precision, macs, group.moved) if ops else None
    return Row(
        position=position,
        layer=_layer(network, group),
        kinds=tuple(dict.fromkeys(op.kind for op in ops)),
        kernel=kernel,
        precision=precision,
        parameters=network.parameters(ops),
        macs=macs,
        bytes=group.moved,
        seconds=seconds,
        share=seconds / whole if whole else 0.0,
        bound=limit.by if limit else None,
        least=limit.seconds if limit else 0.0,
        power=_power(network, group, max(ops, key=lambda op: op.macs)) if macs else 0,
    )


def _power(network: Network, group: Group, op: Op) -> int:
    """Of the channels that an operator's multiply-adds grow with: 2 dense, 1 depthwise, less at the network's ends."""
    shapes = [network.values[name].shape for name in op.weights if len(network.values[name].shape) > 1]
    depthwise = op.kind == "Conv" and bool(shapes) and shapes[0][1] == 1
    ends = any(n in network.inputs for n in group.reads) + any(n in network.outputs for n in group.writes)
    return max((2 if shapes and not depthwise else 1) - ends, 0)


def _layer(network: Network, group: Group) -> str:
    ops = [network.ops[i] for i in group.members]
    if not ops:
        return _ADDED
    heaviest = max(ops, key=lambda op: (op.macs, len(op.weights)))
    if heaviest.layer and (heaviest.macs or heaviest.weights):
        return heaviest.layer
    before = _before(network, group.members[0])
    return f"after {before}" if before else next(iter(network.inputs), "")


def _before(network: Network, position: int) -> str:
    """The nearest layer with parameters whose result flows into an operator; '' if there is none."""
    makers = {name: i for i, op in enumerate(network.ops) for name in op.makes}
    waiting, seen = [position], {position}
    while waiting:
        here = max(waiting)
        waiting.remove(here)
        op = network.ops[here]
        if here != position and op.layer and op.weights:
            return op.layer
        fresh = {makers[name] for name in op.reads if name in makers} - seen
        seen |= fresh
        waiting += fresh
    return ""


def _totals(network: Network, groups: tuple[Group, ...], rows: list[Row], whole: Metric) -> dict[str, Metric]:
    def counted(name: str, value: float, how: str) -> Metric:
        return metric(name, value, "modelled", how=how)

    moved = Metric(sum(row.bytes for row in rows), "byte", "modelled", "down", how="each kernel's values, each once")
    summed = Metric(sum(row.seconds for row in rows), "s", "measured", "down", how="sum of the kernels' medians")
    return {
        "params": counted("params", network.parameters(network.ops), "elements stored in the file"),
        "macs": counted("macs", sum(op.macs for op in network.ops), "from shapes"),
        "bytes": moved,
        "peak_memory": counted("peak_memory", peak_memory(network, groups), "values alive between kernels"),
        "kernels": summed,
        "latency": whole,
    }


def _doubts(rows: list[Row]) -> tuple[str, ...]:
    """A sentence where much of the time beats its ceiling; rows that the clock of whole microseconds blurs apart."""
    above = sum(row.share for row in rows if row.seconds > _BLUR and (row.achieved or 0.0) > _ABOVE)
    if above < _MUCH:
        return ()
    return (f"Rows of {above:.0%} of the time beat their ceiling: was the machine busy? Run `trimtab probe --fresh`.",)


def _own_parameters(what: Graph | Path | str) -> dict[str, Metric]:
    """A captured network's own count: its file holds equal parameters once, and folds those of a norm into weights."""
    if not isinstance(what, Graph):
        return {}
    return {"params": metric("params", total(what).parameters, "modelled", how="elements of the network's parameters")}


def _notes(network: Network, groups: tuple[Group, ...], target: Target) -> tuple[str, ...]:
    placed = {i for group in groups for i in group.members}
    lost = [op.layer or op.kind for i, op in enumerate(network.ops) if op.macs and i not in placed]
    notes = list(network.notes)
    if lost:
        notes.append(f"The runtime names no kernel for these, so their time stands elsewhere: {', '.join(lost)}.")
    if network.batch != target.batch:
        notes.append(f"The file has a fixed batch of {network.batch}; the target's {target.batch} could not be taken.")
    return tuple(notes)
