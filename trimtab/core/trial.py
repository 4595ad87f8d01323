"""Trial: a point that was tried, with its plan and metrics; failed ones too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.core.metric import Metric
from trimtab.core.plan import Plan


@dataclass(frozen=True)
class Trial:
    """What was tried and what came of it.

    Args:
        name: short and unique in its run.
        plan: what was done.
        metrics: by name; empty for a failed trial.
        files: file names, relative to the trial's folder.
        dropped: steps that did not pay on the target, one sentence each.
        error: what failed, at which stage; None for a trial that succeeded.
        stage: the stage of `fit` that it reached.
        runtime: the one that the latency metrics are of.
        others: latency metrics in the other runtimes, by runtime.
        costs: a row for each layer that the device tells of (see `run.device.Clocked.layers`).
    """

    name: str
    plan: Plan
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    error: str | None = None
    stage: str = ""
    runtime: str | None = None
    others: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    costs: tuple[Mapping[str, Any], ...] = ()
