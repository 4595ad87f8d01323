"""Choose: make another point of the front the chosen one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.core.errors import FileError
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric
from trimtab.core.store import read_json, write_json
from trimtab.graph.save import load
from trimtab.pipeline.control import better
from trimtab.pipeline.folder import adopt
from trimtab.pipeline.layers import layer_rows


def choose(folder: Path, name: str) -> None:
    """Copy a point's files to the top of the folder, and say in report.json what holds of it.

    Raises:
        InputError: there is no such point.
        FileError: the folder holds no run, or its report is damaged.
    """
    report: Any = read_json(folder / "report.json")
    try:
        entry = next(p for p in report["points"] if p["name"] == name) if _named(report, name) else {}
        goal = Goal(**{k: v for k, v in report["goal"].items() if k in Goal.__dataclass_fields__})
        metrics = {k: Metric.of_json(v) for k, v in entry.get("metrics", {}).items()}
        first, control = (_score(report.get(which)) for which in ("baseline", "control"))
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise FileError("choose: report.json is not a report", where=folder, got=error) from error
    adopt(folder, name)
    against = better(first, control)
    binding = goal.binding(metrics, against.value if against else None)
    layers = layer_rows(load(folder / "front" / "original"), load(folder / "front" / name))
    changed = {"chosen": name, "met": binding is None, "binding": binding, "layers": layers}
    write_json(folder / "report.json", {**report, **changed, "runtime": entry.get("runtime", report.get("runtime"))})


def _named(report: Mapping[str, Any], name: str) -> bool:
    return any(p["name"] == name for p in report["points"])


def _score(part: Mapping[str, Any] | None) -> Metric | None:
    score = (part or {}).get("metrics", {}).get("score")
    return Metric.of_json(score) if score else None
