"""Explain: which layer of a run's network cost what in accuracy, and what its quantisation looks like."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trimtab._version import VERSION
from trimtab.compress.plan import apply_plan, technique_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.context import Progress, quiet
from trimtab.core.errors import FileError, InputError
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.store import Store, read_json, write_json
from trimtab.core.target import Target
from trimtab.core.task import Task
from trimtab.pipeline.layer_costs import LayerCosts, layer_costs
from trimtab.pipeline.prepare import prepare
from trimtab.pipeline.verify import read_report, target_of

SCHEMA = 1
FILE = "explain.json"


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Args:
        task: its name.
        point: the name of the network that was looked at.
        score: the name of the task's score and its unit and direction; None without labels.
        costs: of its layers.
        notes: sentences.
    """

    task: str
    point: str
    score: tuple[str, str, str] | None
    costs: LayerCosts
    notes: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """The form of explain.json: losses and costs without unit, SQNR in decibel, all measured."""
        score = None if self.score is None else dict(zip(("name", "unit", "direction"), self.score, strict=True))
        costs = asdict(self.costs)
        head = {"schema": SCHEMA, "trimtab": VERSION, "task": self.task, "point": self.point, "score": score}
        about = {"source": "measured", "split": self.costs.split, "samples": self.costs.samples}
        units = {"loss": "1", "cost": "1", "weight_sqnr": "dB", "output_sqnr": "dB"}
        return {**head, **about, "units": units, **costs, "notes": list(self.notes)}


def explain(folder: Path, task: Task, *, target: Target | None = None, progress: Progress = quiet) -> Explanation:
    """Rank the layers of a run's chosen network by what their quantisation costs, and write `explain.json`.

    The network is made again from `plan.json`; its trainings come from the run's own store, and are not done again.
    Costs are measured on the data that chooses; the data to prove on is not looked at.

    Args:
        folder: of the run; its files may come from a stranger.
        task: the task of the run; nothing that the folder names is imported.
        target: needed where the run was for a machine at an address.
        progress: called as work goes on.

    Raises:
        FileError: there is no run, or a file is damaged.
        InputError: nothing in the plan quantises, or a training of it is not in the store.
    """
    report = read_report(folder)
    plan = Plan.of_json(read_json(folder / "plan.json"), folder / "plan.json")
    place = next((i for i, step in enumerate(plan.steps) if step["technique"] == "Quantise"), None)
    if place is None:
        got = ", ".join(str(s["technique"]) for s in plan.steps) or "the original as it is"
        do = "Choose a quantised network: trimtab choose DIR NAME."
        raise InputError("explain: nothing is quantised", where=folder, got=got, do=do)
    quantise = technique_of(plan.steps[place])
    if not isinstance(quantise, Quantise):
        raise FileError("explain: plan.json", where=folder, got=type(quantise).__name__, expected="Quantise")
    store = Store(folder / "store")
    prepared = prepare(task, target_of(report["target"], target), Goal(max_drop=None), _seed(report), store, progress)

    def watched(what: str, done: int, total: int) -> None:
        if what == "train":
            do = "Give the task and the number of threads of the run, whose trainings are in its folder."
            raise InputError("explain: a training of the plan is not in the run's store", where=folder, do=do)
        progress(what, done, total)

    context = replace(prepared.context, progress=watched)
    graph = apply_plan(prepared.graph, Plan(plan.steps[:place]), context)
    costs = layer_costs(quantise, graph, context)
    score = context.score
    facts = None if score is None or costs.all.score is None else (score.name, score.unit, score.direction)
    made = Explanation(task.name, str(report["chosen"]), facts, costs, _notes(costs))
    write_json(folder / FILE, made.json())
    return made


def _seed(report: dict[str, Any]) -> int:
    seed = report["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise FileError("explain: report.json: seed", got=repr(seed)[:40], expected="a whole number")
    return seed


def _notes(costs: LayerCosts) -> tuple[str, ...]:
    if costs.split == "random":
        return ("The task has no data: measured on random inputs, which says little of real ones.",)
    if costs.split == "calibrate":
        return ("The task has no data to choose on: measured on the inputs of the calibration data.",)
    return ()
