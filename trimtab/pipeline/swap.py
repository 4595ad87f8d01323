"""Swap: parts of a network replaced by the kinds that the clock likes, chosen together, then trained as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.compress.plan import step_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.compress.swap.choose import Programme, losses, prices, programme
from trimtab.compress.swap.technique import Swap
from trimtab.core.context import Progress, quiet
from trimtab.core.errors import InputError, NotRunnable
from trimtab.core.goal import Goal
from trimtab.core.metric import show
from trimtab.core.plan import Plan
from trimtab.core.target import Target, parse
from trimtab.core.task import Task
from trimtab.core.trial import Trial
from trimtab.pipeline.candidates import Candidate, bounds_of
from trimtab.pipeline.fit import Result, Run, conclude
from trimtab.pipeline.folder import claim
from trimtab.pipeline.pays import faster, paying, reference_latency, sized
from trimtab.pipeline.points import Point, originals, point
from trimtab.pipeline.prepare import Prepared, prepare, settled
from trimtab.pipeline.recover import Recovered, recover
from trimtab.pipeline.space import COSTS
from trimtab.pipeline.table import seconds_of

BUDGETS = (0.85, 0.7, 0.55, 0.4)
"""Shares of the original's layers, by the latency table, that kinds are chosen for."""


@dataclass(frozen=True)
class Timed:
    """What a choice of kinds costs by the clock.

    Args:
        plan: its steps that pay.
        latency: in seconds, where the original takes what it took when it was timed first.
        size: of its files in bytes.
        why: a sentence for each step that does not pay.
    """

    plan: Plan
    latency: float
    size: float
    why: tuple[str, ...]


def swap(
    task: Task,
    target: Target | str = "cpu",
    goal: Goal | None = None,
    *,
    technique: Swap | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    progress: Progress = quiet,
    control: bool = True,
) -> Result:
    """Find the network that meets a goal among those whose parts are swapped for cheaper kinds.

    All kinds at all sites are trained against the original, side by side; each one's loss and the time of its layers
    on the target are measured; kinds are chosen together, exactly, for several budgets. What is then slower than the
    original is dropped; the others race, and the best is distilled from the original as a whole.

    Args:
        task: model, data, loss, score.
        target: what it must run on.
        goal: what must hold.
        technique: its `kinds` and `train` count.
        out: the folder of the run; `runs/<task name>` by default.
        seed: of everything random.
        progress: called as work goes on.
        control: train the original like the winner, and count the drop against the better of the two.

    Raises:
        InputError: something the user gave is wrong, or there are no data to choose on.

    Source: Molchanov et al. (2022), LANA, section 3.3, and Bercovich et al. (2024), Puzzle, section 4, where an integer
    programme chooses by latency tables.
    """
    chosen_goal = (goal or Goal()).check()
    where = parse(target) if isinstance(target, str) else target
    folder = Path(out) if out is not None else Path("runs") / task.name
    wanted = replace(technique or Swap(share=0.5), blocks=None, error=None, share=0.5).check()
    prepared = prepare(task, where, chosen_goal, seed, None, progress)
    identity = {"key": prepared.key, "target": where.name, "goal": asdict(chosen_goal), "seed": seed, "task": task.name}
    store = claim(folder, identity | {"swap": step_of(wanted)})
    prepared = replace(prepared, context=replace(prepared.context, store=store))
    run = Run(prepared, chosen_goal, folder)
    run.stage("prepare")
    return conclude(run, _points(run, wanted), control)


def _points(run: Run, technique: Swap) -> list[Point]:
    """The original, and the networks whose swaps pay, trained where there are data to train on."""
    prepared = run.prepared
    if prepared.context.score is None or not prepared.context.validate or not prepared.context.calibrate:
        raise InputError("swap: no data to choose on", do="Give score=, and validate= or test=, to the Task.")
    found = originals(prepared, run.folder)
    original = found[0]
    run.stage("baseline")
    whole = together(prepared, technique)
    run.stage("alternatives")
    plans = tuple(_candidates(run, technique, whole, original))
    run.stage("allocate")
    if not plans:
        run.notes.append("No choice of kinds was faster than the original on this target.")
    made: Iterator[Recovered] = (Recovered(c.name, c.plan) for c in plans)
    if prepared.context.train is not None:
        made = recover(prepared, plans, original, run.goal, run.failed)
    for each in made:
        try:
            one = point(prepared, run.folder, each.name, each.plan, original)
        except (RuntimeError, InputError, NotRunnable) as error:  # one network that breaks must not end the run
            run.failed.append(Trial(each.name, each.plan, error=f"{type(error).__name__}: {error}", stage="build"))
            continue
        found.append(replace(one, dropped=(*one.dropped, *each.dropped)))
    run.stage("train")
    return found


def together(prepared: Prepared, technique: Swap) -> Programme:
    """The choice of all sites together: alternatives trained, their losses and their layers' times measured."""
    graph, context = prepared.graph, prepared.context
    trained = technique.library(graph, context, technique.choices(graph, context))
    if not trained:
        raise InputError("swap: no part of this network has a cheaper kind", got=", ".join(technique.kinds))
    times = seconds_of(prepared.device, context.target, context.target.precision)
    shapes = prices(graph, trained, replace(context, times=times))
    table = settled(prepared, "swap table", lambda: {str(layer): seconds for layer, seconds in shapes.items()})
    price = {layer: float(table[str(layer)]) for layer in shapes}
    return programme(graph, trained, losses(graph, trained, context), price)


def _candidates(run: Run, technique: Swap, whole: Programme, original: Point) -> Iterator[Candidate]:
    """For each budget the kinds of the least loss, where they are faster by the clock."""
    seen: list[dict[str, str]] = []
    for k, budget in enumerate(_budgets(run, original)):
        run.prepared.context.progress("allocate", k, len(BUDGETS))
        blocks = whole.chosen(budget * whole.whole)
        if blocks is None:
            blocks = whole.least()
        if not blocks or blocks in seen:
            continue
        seen.append(blocks)
        timed = timed_choice(run, replace(technique, blocks=blocks, share=None), original)
        run.notes += timed.why
        if timed.plan.steps:
            # what was not measured goes with the time: costs order the candidates here, and are not reported
            predicted = dict.fromkeys(COSTS, timed.latency) | {"size": timed.size}
            loss = sum(whole.lost[name, kind] for name, kind in blocks.items())
            yield Candidate(f"swap-{len(seen)}", {}, timed.plan, predicted, loss)


def _budgets(run: Run, original: Point) -> tuple[float, ...]:
    """The budgets, and one for the goal's bound on the latency."""
    baseline = {name: m.value for name, m in {**original.metrics, **original.clocked.metrics}.items()}
    latency = baseline.get("latency")
    bounds = bounds_of(run.goal, baseline | ({} if latency is None else {"latency": reference_latency(original)}))
    some = {*BUDGETS, *([bounds["latency"] / latency] if latency is not None and "latency" in bounds else [])}
    return tuple(sorted((b for b in some if 0 < b < 1), reverse=True))


def timed_choice(run: Run, technique: Swap, original: Point) -> Timed:
    """A choice with its measured cost, in integers where these pay; without steps where it is not faster."""
    prepared = run.prepared
    steps = [step_of(technique)]
    if prepared.context.target.precision == "int8":
        steps.append(step_of(Quantise()))

    def measure() -> dict[str, Any]:
        plan, why = paying(prepared, Plan(tuple(steps)), original, run.goal, ("Quantise", "Swap"))
        if not any(s["technique"] == "Swap" for s in plan.steps):
            return {"plan": Plan().json(), "latency": 0.0, "size": 0.0, "why": list(why)}
        clocked, size = sized(prepared, plan, original, 1.5)
        latency = clocked.metrics["latency"].value
        if original.clocked.metrics and not faster(clocked, original.clocked):
            before = show(original.clocked.metrics["latency"].value, "s")
            told = (
                f"{len(technique.blocks or {})} swapped parts were not faster ({show(latency, 's')}, {before} before)."
            )
            return {"plan": Plan().json(), "latency": latency, "size": size, "why": [*why, told]}
        return {"plan": plan.json(), "latency": latency, "size": size, "why": list(why)}

    found = settled(prepared, f"swap pays {sorted((technique.blocks or {}).items())}", measure)
    return Timed(Plan.of_json(found["plan"]), found["latency"], found["size"], tuple(found["why"]))
