"""Read report.json, which may come from a stranger: every field checked, nothing more kept than is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.core.errors import FileError
from trimtab.core.metric import Metric
from trimtab.core.store import read_json

SCHEMA = 1
_MOST = 10_000
"""Points, layers or notes in one report; more is no report of ours."""
_LONGEST = 100_000
"""Characters of one text."""

Metrics = Mapping[str, Metric]


@dataclass(frozen=True)
class Point:
    """One network of the front: its name, plan steps, files, metrics, and what did not pay."""

    name: str
    steps: tuple[Mapping[str, Any], ...]
    files: tuple[str, ...]
    metrics: Metrics
    dropped: tuple[str, ...]
    costs: tuple[Cost, ...] = ()


@dataclass(frozen=True)
class Cost:
    """What a device says of one layer: figures whose names end in their unit (`seconds`, `joules`), and words."""

    name: str
    figures: Mapping[str, float]
    words: Mapping[str, str]


@dataclass(frozen=True)
class Failed:
    """A plan that did not get through, with the stage and the error."""

    steps: tuple[Mapping[str, Any], ...]
    stage: str
    error: str


@dataclass(frozen=True)
class Layer:
    """One layer: the shape of its weight before and after (None where it was removed), its precision, and its zeros.

    Zeros are a share of the weights, None where there are few.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...] | None
    precision: str
    zeros: float | None = None


@dataclass(frozen=True)
class Report:
    """What a run found, as its report.json says."""

    version: str
    task: str
    target: Mapping[str, Any]
    goal: Mapping[str, Any]
    seed: int
    met: bool
    binding: str | None
    machine: Mapping[str, Any]
    baseline: Metrics
    control: Metrics | None
    chosen: str | None
    points: tuple[Point, ...]
    failed: tuple[Failed, ...]
    notes: tuple[str, ...]
    layers: tuple[Layer, ...]
    timeline: tuple[tuple[str, float], ...]
    runtime: str | None

    @property
    def winner(self) -> Point | None:
        """The chosen point."""
        return next((p for p in self.points if p.name == self.chosen), None)

    @property
    def reference(self) -> Metrics:
        """What a drop counts from: the better of the original and its control."""
        if self.control is None or "score" not in self.control or "score" not in self.baseline:
            return self.baseline
        own, trained = self.baseline["score"], self.control["score"]
        better = trained.value > own.value if own.direction == "up" else trained.value < own.value
        return self.control if better else self.baseline


def read(folder: Path | str) -> Report:
    """The report of a run's folder.

    Raises:
        FileError: there is none, or it is not what trimtab writes.
    """
    path = Path(folder) / "report.json"
    return parse(read_json(path), path)


def parse(data: Any, where: object = "report.json") -> Report:
    """A report from JSON data, checked."""
    reader = _Reader(where)
    top = reader.mapping(data, "report")
    if top.get("schema") != SCHEMA:
        raise FileError("report: schema", where=where, got=str(top.get("schema"))[:40], expected=SCHEMA)
    try:
        json.dumps(data, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise FileError("report", where=where, got=f"values that no report holds: {error}") from error
    control = top.get("control")
    return Report(
        version=reader.text(top.get("trimtab", ""), "trimtab"),
        task=reader.text(top.get("task"), "task"),
        target=reader.mapping(top.get("target"), "target"),
        goal=reader.goal(top.get("goal")),
        seed=reader.whole(top.get("seed", 0), "seed"),
        met=reader.flag(top.get("met"), "met"),
        binding=reader.optional_text(top.get("binding"), "binding"),
        machine=reader.mapping(top.get("machine", {}), "machine"),
        baseline=reader.measured(top.get("baseline"), "baseline"),
        control=None if control is None else reader.measured(control, "control"),
        chosen=reader.optional_text(top.get("chosen"), "chosen"),
        points=tuple(reader.point(p, f"points[{i}]") for i, p in enumerate(reader.many(top.get("points"), "points"))),
        failed=tuple(
            reader.failed(f, f"failed[{i}]") for i, f in enumerate(reader.many(top.get("failed", []), "failed"))
        ),
        notes=reader.texts(top.get("notes", []), "notes"),
        layers=tuple(
            reader.layer(x, f"layers[{i}]") for i, x in enumerate(reader.many(top.get("layers") or [], "layers"))
        ),
        timeline=tuple(
            reader.stage(s, f"timeline[{i}]") for i, s in enumerate(reader.many(top.get("timeline") or [], "timeline"))
        ),
        runtime=reader.optional_text(top.get("runtime"), "runtime"),
    )


@dataclass(frozen=True)
class _Reader:
    """Checks values, and names the place of one that is wrong."""

    where: object

    def wrong(self, place: str, value: Any, expected: str) -> FileError:
        got = type(value).__name__ if isinstance(value, (dict, list)) else repr(value)[:60]
        return FileError(f"report: {place}", where=self.where, got=got, expected=expected)

    def mapping(self, value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > _MOST:
            raise self.wrong(place, value, "an object")
        return value

    def many(self, value: Any, place: str) -> list[Any]:
        if not isinstance(value, list) or len(value) > _MOST:
            raise self.wrong(place, value, f"a list of at most {_MOST}")
        return value

    def text(self, value: Any, place: str) -> str:
        if not isinstance(value, str) or len(value) > _LONGEST:
            raise self.wrong(place, value, "text")
        return value

    def optional_text(self, value: Any, place: str) -> str | None:
        return None if value is None else self.text(value, place)

    def texts(self, value: Any, place: str) -> tuple[str, ...]:
        return tuple(self.text(v, f"{place}[{i}]") for i, v in enumerate(self.many(value, place)))

    def flag(self, value: Any, place: str) -> bool:
        if not isinstance(value, bool):
            raise self.wrong(place, value, "true or false")
        return value

    def number(self, value: Any, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
            raise self.wrong(place, value, "a number")
        if not math.isfinite(value):
            raise self.wrong(place, value, "a finite number")
        return float(value)

    def whole(self, value: Any, place: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 1 << 63:
            raise self.wrong(place, value, "a whole number")
        return value

    def goal(self, value: Any) -> dict[str, Any]:
        goal = self.mapping(value, "goal")
        bounds = {
            side: {n: self.number(v, f"goal: {side}: {n}") for n, v in self.mapping(goal.get(side, {}), side).items()}
            for side in ("at_most", "at_least")
        }
        drop = goal.get("max_drop")
        return {
            **goal,
            **bounds,
            "minimise": self.text(goal.get("minimise", "latency"), "goal: minimise"),
            "max_drop": None if drop is None else self.number(drop, "goal: max_drop"),
        }

    def measured(self, value: Any, place: str) -> Metrics:
        return self.metrics(self.mapping(value, place).get("metrics"), f"{place}: metrics")

    def metrics(self, value: Any, place: str) -> Metrics:
        return {name: self.metric(m, f"{place}: {name}") for name, m in self.mapping(value, place).items()}

    def metric(self, value: Any, place: str) -> Metric:
        data = self.mapping(value, place)
        source, direction, interval = data.get("source"), data.get("direction"), data.get("interval")
        if source not in ("measured", "modelled", "predicted"):
            raise self.wrong(f"{place}: source", source, "measured, modelled or predicted")
        if direction not in ("up", "down"):
            raise self.wrong(f"{place}: direction", direction, "up or down")
        if interval is not None and len(self.many(interval, f"{place}: interval")) != 2:
            raise self.wrong(f"{place}: interval", interval, "two numbers")
        low_high = [self.number(v, f"{place}: interval") for v in interval or ()]
        return Metric(
            value=self.number(data.get("value"), f"{place}: value"),
            unit=self.text(data.get("unit"), f"{place}: unit"),
            source=source,
            direction=direction,
            n=None if data.get("n") is None else self.whole(data["n"], f"{place}: n"),
            interval=(low_high[0], low_high[1]) if low_high else None,
            split=self.optional_text(data.get("split"), f"{place}: split"),
            how=self.optional_text(data.get("how"), f"{place}: how"),
        )

    def steps(self, value: Any, place: str) -> tuple[Mapping[str, Any], ...]:
        listed = value.get("steps") if isinstance(value, dict) else value
        steps = [self.mapping(s, f"{place}[{i}]") for i, s in enumerate(self.many(listed, place))]
        for i, step in enumerate(steps):
            self.text(step.get("technique"), f"{place}[{i}]: technique")
        return tuple(steps)

    def point(self, value: Any, place: str) -> Point:
        data = self.mapping(value, place)
        costs = self.many(data.get("costs") or [], f"{place}: costs")
        return Point(
            name=self.text(data.get("name"), f"{place}: name"),
            steps=self.steps(data.get("plan", []), f"{place}: plan"),
            files=self.texts(data.get("files", []), f"{place}: files"),
            metrics=self.metrics(data.get("metrics"), f"{place}: metrics"),
            dropped=self.texts(data.get("dropped", []), f"{place}: dropped"),
            costs=tuple(self.cost(c, f"{place}: costs[{i}]") for i, c in enumerate(costs)),
        )

    def cost(self, value: Any, place: str) -> Cost:
        data = self.mapping(value, place)
        words = {k: self.text(v, f"{place}: {k}") for k, v in data.items() if isinstance(v, str)}
        figures = {k: self.number(v, f"{place}: {k}") for k, v in data.items() if k not in words}
        return Cost(self.text(data.get("name"), f"{place}: name"), figures, words)

    def failed(self, value: Any, place: str) -> Failed:
        data = self.mapping(value, place)
        return Failed(
            steps=self.steps(data.get("plan", []), f"{place}: plan"),
            stage=self.text(data.get("stage"), f"{place}: stage"),
            error=self.text(data.get("error"), f"{place}: error"),
        )

    def layer(self, value: Any, place: str) -> Layer:
        data = self.mapping(value, place)
        before = self.shape(data.get("before"), f"{place}: before")
        after = None if data.get("after") is None else self.shape(data["after"], f"{place}: after")
        precision = self.optional_text(data.get("precision"), f"{place}: precision")
        zeros = None if data.get("zeros") is None else self.number(data["zeros"], f"{place}: zeros")
        return Layer(self.text(data.get("name"), f"{place}: name"), before, after, precision or "", zeros)

    def shape(self, value: Any, place: str) -> tuple[int, ...]:
        """A shape, or one width."""
        listed = self.many([value] if isinstance(value, int) else value, place)
        return tuple(self.whole(v, place) for v in listed)

    def stage(self, value: Any, place: str) -> tuple[str, float]:
        data = self.mapping(value, place)
        return self.text(data.get("stage"), f"{place}: stage"), self.number(data.get("seconds"), f"{place}: seconds")
