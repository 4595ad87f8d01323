"""Verify: reopen what a run left in a clean process, measure it again, compare with the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.core.context import Progress, quiet
from trimtab.core.errors import FileError, InputError
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric, show
from trimtab.core.store import read_json
from trimtab.core.target import Target
from trimtab.core.task import Task
from trimtab.graph.model import Graph
from trimtab.graph.save import load
from trimtab.pipeline.deploy import computes, example_inputs, real_inputs, size_of
from trimtab.pipeline.devices import device_of, held_to
from trimtab.pipeline.prepare import Prepared, prepare
from trimtab.pipeline.prove import tested
from trimtab.run.clean import clean_outputs
from trimtab.run.device import MODEL, Device
from trimtab.run.score import agreement
from trimtab.run.turns import depends_on_input

CLOCK_TOLERANCE = 0.15
"""A latency ratio may differ by this share from the report's, beyond the two intervals: machines are shared."""


@dataclass(frozen=True)
class Row:
    """One thing that was verified.

    Args:
        name: of the metric or check.
        reported: as report.json has it, for people.
        measured: as it was found now.
        ok: whether they agree.
        note: why not, or how it was checked.
    """

    name: str
    reported: str
    measured: str
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What was verified; `ok` if every row is."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)


def verify(
    folder: Path, task: Task | None = None, *, target: Target | None = None, progress: Progress = quiet
) -> Verification:
    """Check the chosen network of a run.

    Size, integer kernels, agreement of the ONNX file with the torch files, and the latency ratio
    are measured again, in a clean process where the file is run; the score and the agreement with
    the original on real data need the task, which is never looked up from inside the folder.

    Args:
        folder: of the run; its files may come from a stranger.
        task: the task of the run, or None.
        target: needed where the run was for a machine at an address: a token is sent to no address that the folder
            alone names.
        progress: called as work goes on.

    Raises:
        FileError: there is no run, or a file is damaged.
    """
    report = read_report(folder)
    reported = _metrics(report)
    target = target_of(report["target"], target)
    file = folder / MODEL
    runtime = str(report.get("runtime", "onnxruntime"))
    graph = load(folder)
    inputs = example_inputs(graph, max(target.batch, 8))
    device = held_to(device_of(target), runtime)
    rows = [_row("size", reported, size_of(device, file), 0.0)]
    if any(s.get("technique") == "Quantise" for s in _chosen(report)["plan"]):
        device.check(file, runtime)
        rows.append(Row("integer kernels", "all quantised", "all", True, f"in {runtime}"))
    progress("verify", 1, 4)
    rows.append(_same(graph, file, computes(runtime), inputs, target.threads))
    progress("verify", 2, 4)
    baseline = folder / "front" / "original" / MODEL
    reference = baseline if "fp32" in device.precisions else folder / "front" / "int8" / MODEL
    prepared = None
    if task is not None:
        prepared = prepare(task, target, Goal(max_drop=None), int(report["seed"]), None, progress)
    if reference.exists():
        rows += _clocked(device, reference, file, graph, target, prepared, reported)
    progress("verify", 3, 4)
    if prepared is not None:
        outputs, found = tested(prepared, file, runtime)
        if "score" in found and "score" in reported:
            rows.append(_row("score", reported, found["score"], 1e-3))
        if outputs is not None and baseline.exists():
            reference = clean_outputs(baseline, "onnxruntime", prepared.test, target.threads)
            rows.append(_row("agreement", reported, agreement(reference, outputs), 1e-2))
    elif "score" in reported:
        rows.append(Row("score", _shown(reported["score"]), "not measured again", True, "give --task to measure it"))
    progress("verify", 4, 4)
    return Verification(tuple(rows))


def _clocked(
    device: Device,
    reference: Path,
    file: Path,
    graph: Graph,
    target: Target,
    prepared: Prepared | None,
    reported: Mapping[str, Metric],
) -> list[Row]:
    """The latency ratio, measured again: of a network whose work depends on its input only with the task's inputs."""
    if prepared is None and depends_on_input(file):
        said = _shown(reported["latency_ratio"]) if "latency_ratio" in reported else "not reported"
        why = "it depends on the input: give --task to measure it"
        return [Row("latency_ratio", said, "not measured again", True, why)]
    inputs = example_inputs(graph, target.batch)
    turns = real_inputs(graph, prepared.context, prepared.test) if prepared is not None else []
    timed = device.clock(reference, {"": file}, target, inputs, 6.0, turns)[""]
    return [_row("latency_ratio", reported, timed.metrics["latency_ratio"], CLOCK_TOLERANCE)]


def target_of(reported: Mapping[str, Any], given: Target | None) -> Target:
    """The target of a report, which may come from a stranger who would like a token to be sent to him."""
    target = Target(**{k: v for k, v in reported.items() if k in Target.__dataclass_fields__})
    if str(target.device).startswith(("http://", "https://")) and (given is None or given.device != target.device):
        do = "Give that address as the target, if you trust it with your token."
        raise InputError("run: the report is of a machine at an address", got=repr(target.device), do=do)
    return target


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a run's folder, as far as it is needed to measure again."""
    report = read_json(folder / "report.json")
    wanted = ("target", "seed", "points", "chosen")
    if not isinstance(report, dict) or any(k not in report for k in wanted) or not isinstance(report["target"], dict):
        raise FileError("run: report.json is not a report", where=folder, expected=f"fields {', '.join(wanted)}")
    return report


def _chosen(report: Mapping[str, Any]) -> dict[str, Any]:
    for entry in report["points"]:
        if isinstance(entry, dict) and entry.get("name") == report["chosen"]:
            return entry
    raise FileError("verify: report.json has no such point", got=str(report["chosen"])[:80])


def _metrics(report: Mapping[str, Any]) -> dict[str, Metric]:
    try:
        return {name: Metric.of_json(data) for name, data in _chosen(report)["metrics"].items()}
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise FileError("verify: a metric of report.json is damaged", got=error) from error


def _row(name: str, reported: Mapping[str, Metric], found: Metric, tolerance: float) -> Row:
    """Agreement within a relative tolerance beyond both intervals."""
    said = reported.get(name)
    if said is None:
        return Row(name, "not reported", _shown(found), True)
    low, high = said.interval or (said.value, said.value)
    slack = tolerance * abs(said.value)
    own_low, own_high = found.interval or (found.value, found.value)
    ok = own_low - slack <= high and own_high + slack >= low if tolerance else found.value == said.value
    if name in ("score", "agreement"):  # the same data in the same runtime: no chance in it
        ok = abs(found.value - said.value) <= tolerance
    return Row(name, _shown(said), _shown(found), ok, found.how or "")


def _shown(found: Metric) -> str:
    return show(found.value, found.unit) + ("x" if found.unit == "1" else "")


def _same(graph: Any, file: Path, runtime: str, inputs: list[Any], threads: int) -> Row:
    """The ONNX file gives what the torch files give, up to the rounding of integers."""
    import torch

    start = time.monotonic()
    names = [s.name for s in graph.inputs]
    batch = dict(zip(names, (torch.from_numpy(i) for i in inputs), strict=True))
    outputs = clean_outputs(file, runtime, [batch], threads)
    with torch.no_grad():
        expected = graph(*batch.values())
    found = agreement(expected, outputs)
    took = f"reopened in a clean process, {time.monotonic() - start:.1f} s"
    return Row("torch and ONNX files agree", "yes", _shown(found), found.value >= 0.85, took)
