"""Fit: a model, data, a target and a goal in; the smallest, fastest network that meets the goal out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtab.compress.plan import step_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.context import Progress, quiet
from trimtab.core.errors import InputError, NotRunnable
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric
from trimtab.core.plan import Plan
from trimtab.core.target import Target, parse
from trimtab.core.task import Task
from trimtab.core.trial import Trial
from trimtab.graph.save import load
from trimtab.pipeline.batch import batch_facts
from trimtab.pipeline.candidates import Candidate, bounds_of, candidates
from trimtab.pipeline.control import better, train_control
from trimtab.pipeline.devices import machine_of
from trimtab.pipeline.folder import adopt, claim, write_study
from trimtab.pipeline.layers import layer_rows, stored_only
from trimtab.pipeline.pays import correction, faster, obstacle, reference_latency
from trimtab.pipeline.points import Point, best, originals, point
from trimtab.pipeline.prepare import Prepared, prepare, settled
from trimtab.pipeline.prove import Proof, prove
from trimtab.pipeline.record import Record, write_record
from trimtab.pipeline.recover import Recovered, recover
from trimtab.pipeline.repair import learnt_rounding, repaired
from trimtab.pipeline.survey import Survey, survey
from trimtab.pipeline.ways import ways
from trimtab.search.front import front

ROUNDS = 4
"""How often plans at the goal's bounds are measured, to correct the table there."""
MIDDLE = 0.5
"""Share of the quantised original's cost at which the table is checked."""
REPAIR = 0.3
"""Share of what is left of a run that repairs may take where there is nothing to train on, and share of the whole that
learned rounding leaves."""
MEMORY = "device memory"
"""What binds where nothing was found that fits into the device."""


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Args:
        folder: with the chosen network, the front and the report.
        report: the content of report.json.
        met: whether the goal is met.
        binding: the constraint that is missed; None if it is met.
    """

    folder: Path
    report: dict[str, Any]
    met: bool
    binding: str | None


@dataclass
class Run:
    """A run under way: what it works on, and what it has found so far."""

    prepared: Prepared
    goal: Goal
    folder: Path
    started: float = field(default_factory=time.monotonic)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    failed: list[Trial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def stage(self, name: str) -> None:
        """Note that a stage has ended."""
        now = time.monotonic()
        self.timeline.append({"stage": name, "seconds": round(now - self.started, 1)})
        self.started = now


def fit(
    task: Task,
    target: Target | str = "cpu",
    goal: Goal | None = None,
    *,
    out: Path | str | None = None,
    seed: int = 0,
    progress: Progress = quiet,
    control: bool = True,
) -> Result:
    """Find the network that meets the goal with the least of what is to be minimised.

    Preflight, profile, sensitivity, exact allocation, race, recovery, proof; the control is trained
    last, after the answer is safe on disk. The same call after a kill goes on where it was.

    Args:
        task: model, data, loss, score.
        target: what it must run on, such as `cpu`, `onnxruntime`, `openvino:threads=2`.
        goal: what must hold; by default the least latency at a drop of at most 0.01.
        out: the folder of the run; `runs/<task name>` by default.
        seed: of everything random.
        progress: called as work goes on.
        control: train the original like the winner, and count the drop against the better of the two.

    Raises:
        InputError: something the user gave is wrong; nothing is lost.
    """
    chosen_goal = (goal or Goal()).check()
    where = parse(target) if isinstance(target, str) else target
    folder = Path(out) if out is not None else Path("runs") / task.name
    prepared = prepare(task, where, chosen_goal, seed, None, progress)
    identity = {"key": prepared.key, "target": where.name, "goal": asdict(chosen_goal), "seed": seed, "task": task.name}
    store = claim(folder, identity)
    prepared = replace(prepared, context=replace(prepared.context, store=store))
    run = Run(prepared, chosen_goal, folder)
    run.stage("prepare")
    points = _points(run)
    return conclude(run, points, control)


def _points(run: Run) -> list[Point]:
    """The original, the quantised original, and what search and training make of it."""
    prepared = run.prepared
    found = originals(prepared, run.folder)
    original = found[0]
    whole = found[-1] if len(found) > 1 else _quantised(run, original)
    found += [whole] if whole not in found else []
    run.stage("baseline")
    if original.validate is None or not prepared.context.calibrate:
        # Nothing could tell a good cut from a bad one.
        return [*found, *_repaired(run, found)]
    prepared = run.prepared
    surveyed = survey(prepared, run.goal, whole.plan, whole.clocked, whole.file)
    run.stage("sensitivity")
    plans = _plans(run, surveyed, original)
    run.stage("allocate")
    if prepared.context.train is None:
        made = (_tried(run, c.name, _rounded(run, c), original) for c in plans)
        found += [p for p in made if p is not None]
        found += _repaired(run, found)
    else:
        for each in recover(prepared, plans, original, run.goal, run.failed):
            found += _kept(run, each, original)
    run.stage("train")
    return found


def _kept(run: Run, each: Recovered, original: Point) -> list[Point]:
    """What was recovered as a point with what did not pay; what repaired it goes into the notes."""
    made = _tried(run, each.name, each.plan, original)
    if made is None:
        return []
    run.notes += [f"{each.name}: {sentence}" for sentence in each.kept]
    return [replace(made, dropped=(*made.dropped, *each.dropped))]


def _rounded(run: Run, candidate: Candidate) -> Plan:
    """A candidate's plan, with learned rounding of few bits while there is time for it."""
    early = REPAIR * 3600 * run.goal.hours
    if settled(run.prepared, f"round {candidate.name}", lambda: run.prepared.context.seconds_left() > early):
        return learnt_rounding(candidate.plan)
    return candidate.plan


def _repaired(run: Run, found: Sequence[Point]) -> list[Point]:
    """The network that would be chosen, repaired without training where its quantisation costs too much."""
    original = found[0]
    chosen = _choose(found, run.goal, original.validate)
    if not chosen.integer:
        return []
    seconds = REPAIR * max(run.prepared.context.seconds_left(), 0.0)
    made = repaired(run.prepared, chosen.plan, run.goal, original, seconds)
    if made.plan == chosen.plan:
        run.notes += [f"{chosen.name}: {sentence}" for sentence in made.dropped]
        return []
    return _kept(run, Recovered(f"{chosen.name}-repaired", made.plan, made.dropped, made.kept), original)


def _plans(run: Run, found: Survey, original: Point) -> tuple[Candidate, ...]:
    """The plans to race: allocated first at the bounds, or in the middle, to see how far the table is off there."""
    prepared, minimise = run.prepared, run.goal.minimise
    costs = {name: m.value for name, m in {**original.metrics, **original.clocked.metrics}.items()}
    baseline = costs | ({"latency": reference_latency(original)} if "latency" in costs else {})
    bounds = bounds_of(run.goal, baseline)

    def plans(limits: dict[str, float], *budgets: float) -> tuple[Candidate, ...]:
        more = {"budgets": budgets} if budgets else {}
        progress = prepared.context.progress
        return candidates(found.space, found.sites, found.factors, limits, minimise, progress, **more)

    def settle() -> dict[str, Any]:
        off: dict[str, float] = {}
        # Where the goal bounds what is minimised, until the first of the plans that will be made keeps the bounds.
        for share in (1.0,) * ROUNDS if minimise in bounds else (MIDDLE,):
            first = plans({name: bound / off.get(name, 1.0) for name, bound in bounds.items()}, share)[0]
            last, off = off, correction(prepared, first, original)
            kept = all(off.get(name, 1.0) * first.predicted[name] <= bound for name, bound in bounds.items())
            if last and kept:
                off = last
                break
        return {"bounds": {name: bound / off.get(name, 1.0) for name, bound in bounds.items()}, "off": off}

    chosen = settled(prepared, f"bounds {minimise} {sorted(bounds)}", settle)
    off = ", ".join(f"{name} {100 * (value - 1):+.0f} %" for name, value in chosen["off"].items())
    source = prepared.device.source
    where = "at the bounds" if minimise in bounds else "in the middle"
    run.notes.append(f"Against the table, a plan {where} was {source} at {off}; plans were allocated with that.")
    return _fitting(run, plans(chosen["bounds"]), original)


def _fitting(run: Run, plans: tuple[Candidate, ...], original: Point) -> tuple[Candidate, ...]:
    """The plans that fit into the device, where the original does not; the others are failed trials."""
    if original.clocked.lacks is None:
        return plans
    found = [(c, obstacle(run.prepared, c, original)) for c in plans]
    run.failed += [Trial(c.name, c.plan, error=why, stage="allocate") for c, why in found if why is not None]
    return tuple(c for c, why in found if why is None)


def _quantised(run: Run, original: Point) -> Point:
    """The original in int8, or the original itself where the target wants fp32 or int8 does not pay."""
    if run.prepared.context.target.precision != "int8":
        return original
    made = _tried(run, "int8", Plan((step_of(Quantise()),)), original)
    if made is None:
        return original
    asked = run.goal.minimise in ("latency", "cost")
    if settled(run.prepared, "int8 pays", lambda: not asked or faster(made.clocked, original.clocked)):
        return made
    run.notes.append("Quantise did not make the network faster on this target: it was not used.")
    context = replace(run.prepared.context, target=replace(run.prepared.context.target, precision="fp32"))
    run.prepared = replace(run.prepared, context=context)
    return original


def _tried(run: Run, name: str, plan: Plan, original: Point) -> Point | None:
    """A point, or None with a failed trial on record."""
    try:
        return point(run.prepared, run.folder, name, plan, original)
    except (RuntimeError, InputError, NotRunnable) as error:  # one network that breaks must not end the run
        run.failed.append(Trial(name, plan, error=f"{type(error).__name__}: {error}", stage="build"))
        return None


def conclude(run: Run, points: Sequence[Point], control: bool, winner: Point | None = None) -> Result:
    """Choose on the validation data, prove on the test data, write, then train the control and write again."""
    prepared, goal = run.prepared, run.goal
    original = points[0]
    winner = winner or _choose(points, goal, original.validate)
    points = _worth_proving(points, original, winner)
    # Longer than this gains little: the interval is then far below what machines drift by.
    proofs = prove(prepared, original, points, seconds=min(max(3600 * goal.hours / 200, 1.0), 8.0))
    run.stage("prove")
    adopt(run.folder, winner.name)
    report = _write(run, points, proofs, winner, None)
    if control and prepared.context.train is not None:
        test, validate = train_control(prepared, winner.plan)
        run.stage("control")
        # What the control gained, the winner must have made good: the choice is made again with that.
        winner = _choose(points, goal, better(original.validate, validate))
        adopt(run.folder, winner.name)
        own = {name: m for name, m in proofs["original"].metrics.items() if name == "score"}
        report = _write(run, points, proofs, winner, own | test)
    return Result(run.folder, report, report["met"], report["binding"])


def _worth_proving(points: Sequence[Point], original: Point, winner: Point) -> list[Point]:
    """The original, the winner, and the front of the others by what chose them; the rest stay in study.db."""
    trials = {p.name: p.trial("choose", **({"score": p.validate} if p.validate else {})) for p in points}
    kept = {t.name for t in front(list(trials.values()))} | {original.name, winner.name}
    return [p for p in points if p.name in kept]


def _choose(points: Sequence[Point], goal: Goal, against: Metric | None) -> Point:
    """The best of the points that keep the goal on the data to choose on, else the one that misses it least.

    Args:
        points: to choose from.
        goal: what must hold.
        against: the score that a drop counts from, on the data to choose on.
    """

    def missed(p: Point) -> float:
        score = {"score": p.validate} if p.validate else {}
        return goal.missed({**p.metrics, **p.clocked.metrics, **score}, against.value if against else None)

    # Where nothing fits into the device, the best of all is kept, and the report says what it lacks.
    able = [p for p in points if p.reference == p.file or p.name != "original"]
    can_run = [p for p in able if p.clocked.lacks is None] or able
    found = best(can_run, goal.minimise, lambda p: missed(p) == 0)
    return found if found is not None else min(can_run, key=missed)


def _write(
    run: Run, points: Sequence[Point], proofs: dict[str, Proof], winner: Point, control: dict[str, Metric] | None
) -> dict[str, Any]:
    prepared = run.prepared
    trials = []
    for p in points:
        proof = proofs[p.name]
        trial = replace(p, clocked=proof.clocked).trial("prove", **proof.metrics)
        trials.append(trial)
    against = better(proofs["original"].metrics.get("score"), (control or {}).get("score"))
    won = next(t for t in trials if t.name == winner.name)
    made, clocked = load(run.folder / "front" / winner.name), proofs[winner.name].clocked
    batch = batch_facts(prepared, run.goal, winner)
    layers = layer_rows(prepared.graph, made)
    some, split = (prepared.test, "test") if prepared.test else (prepared.context.validate, "validate")
    told = (
        *clocked.notes,
        *ways(made, some, split, prepared.context),
        *([batch["told"]] if batch else []),
        *filter(None, [stored_only(layers)]),
    )
    record = Record(
        task=prepared.context.task.name,
        target=prepared.context.target,
        goal=run.goal,
        seed=prepared.context.seed,
        original=trials[0].metrics,
        control=control,
        chosen=winner.name,
        runtime=clocked.runtime,
        trials=[*trials, *run.failed],
        binding=MEMORY if clocked.lacks else run.goal.binding(won.metrics, against.value if against else None),
        notes=tuple(dict.fromkeys((*prepared.notes, *made.notes, *run.notes, *told))),
        layers=layers,
        timeline=run.timeline,
        batch=batch,
        there=settled(prepared, f"machine {prepared.device.name}", lambda: machine_of(prepared.device)),
    )
    write_study(run.folder, [*trials, *run.failed])
    return write_record(record, run.folder)
