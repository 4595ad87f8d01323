"""Record: report.json, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab._version import VERSION
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric
from trimtab.core.store import write_json
from trimtab.core.target import Target
from trimtab.core.trial import Trial
from trimtab.hardware.machine import machine

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """Everything that report.json says; see its schema in the docs.

    Args:
        task: its name.
        target: what it was for.
        goal: what had to hold.
        seed: of the run.
        original: the original's metrics.
        control: of the original trained like the winner; None while it has not been trained.
        chosen: the name of the winner.
        runtime: the one that runs it fastest.
        trials: the points, and failed ones.
        binding: the constraint that is missed; None if the goal is met.
        notes: sentences.
        layers: what became of each layer of the winner.
        timeline: stages with their seconds.
        batch: what the winner costs by batch size, where cost was minimised.
        there: what the machine says of itself that latencies were measured on, where that is not this one.
    """

    task: str
    target: Target
    goal: Goal
    seed: int
    original: Mapping[str, Metric]
    control: Mapping[str, Metric] | None
    chosen: str
    runtime: str
    trials: Sequence[Trial]
    binding: str | None
    notes: Sequence[str] = ()
    layers: Sequence[Mapping[str, Any]] = ()
    timeline: Sequence[Mapping[str, Any]] = field(default=())
    batch: Mapping[str, Any] | None = None
    there: Mapping[str, Any] | None = None

    def json(self) -> dict[str, Any]:
        """The content of report.json."""
        points = [t for t in self.trials if t.error is None]
        failed = [t for t in self.trials if t.error is not None]
        return {
            "schema": SCHEMA,
            "trimtab": VERSION,
            "task": self.task,
            "target": {**vars(self.target), "name": self.target.name},
            "goal": {**vars(self.goal), "at_most": dict(self.goal.at_most), "at_least": dict(self.goal.at_least)},
            "seed": self.seed,
            "met": self.binding is None,
            "binding": self.binding,
            "machine": machine().json() if self.there is None else dict(self.there),
            **({"here": machine().json()} if self.there is not None else {}),
            "runtime": self.runtime,
            "baseline": {"metrics": _json(self.original)},
            "control": None if self.control is None else {"metrics": _json(self.control)},
            "chosen": self.chosen,
            "points": [
                {
                    "name": t.name,
                    "plan": [dict(s) for s in t.plan.steps],
                    "files": list(t.files),
                    "metrics": _json(t.metrics),
                    "dropped": list(t.dropped),
                    "runtime": t.runtime,
                    "other_runtimes": {name: _json(metrics) for name, metrics in t.others.items()},
                    **({"costs": [dict(row) for row in t.costs]} if t.costs else {}),
                }
                for t in points
            ],
            "failed": [{"plan": [dict(s) for s in t.plan.steps], "stage": t.stage, "error": t.error} for t in failed],
            "notes": list(self.notes),
            "layers": [dict(row) for row in self.layers],
            "timeline": [dict(row) for row in self.timeline],
            **({"batch": dict(self.batch)} if self.batch is not None else {}),
        }


def write_record(record: Record, folder: Path) -> dict[str, Any]:
    """Write report.json and give its content."""
    data = record.json()
    write_json(folder / "report.json", data)
    return data


def _json(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: m.json() for name, m in metrics.items()}
