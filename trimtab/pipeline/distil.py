"""Distil: a student learns from teachers, proved on unseen data beside the same student trained alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import Node

from trimtab.compress.plan import step_of
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.core.context import Progress, quiet
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric
from trimtab.core.plan import Plan
from trimtab.core.store import write_json
from trimtab.core.target import Target, parse
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.save import load
from trimtab.pipeline.fit import Result, Run, conclude
from trimtab.pipeline.folder import claim
from trimtab.pipeline.points import Point, originals, point
from trimtab.pipeline.prepare import Prepared, prepare, weights
from trimtab.pipeline.prove import targets_of, tested
from trimtab.train.checkpoint import identity
from trimtab.train.compared import choose
from trimtab.train.evaluate import paired_drop
from trimtab.train.fresh import fresh as with_new_weights
from trimtab.train.loop import steps_for
from trimtab.train.recipe import Distillation

Teacher = Task | Path | str
"""A task whose model teaches, or the folder of a network that trimtab saved."""


@dataclass(frozen=True)
class Length:
    """How long to train: steps, or hours of the student's training, which are turned into steps."""

    steps: int | None = None
    hours: float | None = None

    def check(self) -> Length:
        """The length itself, or InputError where there is not one of the two."""
        if (self.steps is None) == (self.hours is None):
            got = "neither" if self.steps is None else "both"
            raise InputError("distil: how long", got=f"{got} of steps and hours", expected="one of the two")
        number = self.steps if self.steps is not None else self.hours
        if number is None or not 0 < number < 1e9:
            raise InputError("distil: how long", got=number, expected="above 0")
        return self


def distil(
    teacher: Teacher | Sequence[Teacher],
    student: Task,
    length: Length,
    settings: Mapping[str, Any] | None = None,
    *,
    fresh: bool = False,
    target: Target | str = "cpu",
    out: Path | str | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> Result:
    """Train a student on what teachers answer (and compute, and see), and alone for the same steps beside it.

    The report's original is the (first) teacher, its control the student trained alone.

    Args:
        teacher: one, or several; of these the first is the one whose features and relations are learnt.
        student: the task whose model learns, with the data, the loss and the score.
        length: of the training.
        settings: of `Distil`, without steps; by default answers alone, SGD for networks with batch norm, else AdamW.
        fresh: begin with new weights in place of the model's own.
        target: what it must run on.
        out: the folder; `runs/<task name>` by default. The same call goes on with a run that was stopped.
        seed: of everything random.
        progress: called as work goes on.

    Raises:
        InputError: a setting is wrong, or a teacher does not take the student's inputs or has other outputs.
    """
    length.check()
    many = [teacher] if isinstance(teacher, (Task, Path, str)) else list(teacher)
    if not many:
        raise InputError("distil: teacher", got="none", expected="a task, the folder of a saved network, or several")
    task = replace(student, model=with_new_weights(student.model, seed)) if fresh else student
    where = parse(target) if isinstance(target, str) else target
    folder = Path(out) if out is not None else Path("runs") / task.name
    goal = Goal(max_drop=None)
    prepared = prepare(task, where, goal, seed, None, progress)
    graphs = [matching(_graph(each), each, prepared.graph, task) for each in many]
    hashes = tuple(identity(graph) for graph in graphs)
    chosen = _chosen(prepared.graph, {**(settings or {}), "teachers": hashes}, seed, fresh)
    _check_taught(chosen.distillation(), prepared.graph, graphs)
    wanted = {"steps": length.steps, "hours": length.hours, "distil": step_of(chosen)}
    store = claim(folder, {"key": prepared.key, "target": where.name, "seed": seed, "task": task.name, **wanted})
    context = replace(prepared.context, store=store, teacher=graphs[0], teachers=tuple(graphs[1:]))
    prepared = replace(prepared, context=context)
    run = Run(prepared, goal, folder)
    known = originals(replace(prepared, graph=graphs[0]), folder)
    run.stage("baseline")
    plan = Plan((step_of(_settled(prepared, chosen, length)),), weights(prepared.graph))
    winner = point(prepared, folder, "distilled", plan, known[0])
    run.stage("distil")
    run.notes += [_told(many, fresh)]
    result = conclude(run, [*known, winner], control=False, winner=winner)
    return _beside(run, result, winner, known[0])


def matching(graph: Graph, teacher: Teacher, student: Graph, task: Task) -> Graph:
    """A teacher's graph as the student is called, if it takes the student's inputs and gives the same outputs.

    Its inputs come in the student's order; a single input or output has the student's name.

    Raises:
        InputError: it does not; the message names both.
    """
    who = f"{_name(teacher)}, the teacher"
    for what, theirs, mine in (
        ("inputs", _inputs(graph), _inputs(student)),
        ("outputs", _outputs(graph), _outputs(student)),
    ):
        same = theirs == mine or (len(theirs) == len(mine) == 1 and [*theirs.values()] == [*mine.values()])
        if not same:
            raise InputError(
                f"distil: the {what} of teacher and student do not match",
                got=f"{who}: {_words(theirs)}",
                expected=f"as of {task.name}, the student: {_words(mine)}",
            )
    return _named_as(_ordered_as(graph, student), student)


def _ordered_as(graph: Graph, student: Graph) -> Graph:
    """A graph that takes its inputs, found by their names, in the student's order."""
    names = [spec.name for spec in student.inputs]
    if len(names) == 1 or [spec.name for spec in graph.inputs] == names:
        return graph
    own = graph.copy()
    nodes = own.net.graph.find_nodes(op="placeholder")
    taken = {spec.name: (spec, node) for spec, node in zip(own.inputs, nodes, strict=True)}
    behind = next(node for node in own.net.graph.nodes if node.op != "placeholder")
    for name in names:
        behind.prepend(taken[name][1])
    own.net.recompile()
    return replace(own, inputs=tuple(taken[name][0] for name in names))


def _named_as(graph: Graph, student: Graph) -> Graph:
    """A graph whose single input and output are found by the student's names."""
    inputs, outputs, bare = graph.inputs, graph.outputs, graph.bare
    if len(inputs) == 1:
        inputs = (replace(inputs[0], name=student.inputs[0].name),)
    mine, theirs = [*_outputs(student)], [*_outputs(graph)]
    if len(theirs) == 1 and mine[0] not in outputs:
        outputs = tuple(mine[0] if name == theirs[0] else name for name in outputs)
    if len(outputs) == len(student.outputs) == 1:
        bare = student.bare
    return replace(graph, inputs=inputs, outputs=outputs, bare=bare)


def _graph(teacher: Teacher) -> Graph:
    if isinstance(teacher, Task):
        return set_mode(capture(teacher.model, teacher.example), False)
    return set_mode(load(teacher), False)


def _name(teacher: Teacher) -> str:
    return teacher.name if isinstance(teacher, Task) else str(teacher)


def _inputs(graph: Graph) -> dict[str, tuple[Any, ...]]:
    return {spec.name: (*spec.shape, str(spec.dtype).removeprefix("torch.")) for spec in graph.inputs}


def _outputs(graph: Graph) -> dict[str, tuple[Any, ...]]:
    """Floating-point outputs by name, the batch as None."""
    found = {}
    values: Any = graph.net.graph.output_node().args[0]
    for name, node in zip(graph.outputs, values, strict=True):
        value = node.meta.get("val") if isinstance(node, Node) else None
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            found[name] = (None, *value.shape[1:])
    return found


def _words(shapes: Mapping[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{name} [{', '.join('N' if n is None else str(n) for n in s)}]" for name, s in shapes.items())


def _chosen(graph: Graph, settings: Mapping[str, Any], seed: int, fresh: bool) -> Distil:
    normed = any("batch_norm" in str(n.target) for n in graph.nodes())
    plain = {"optimiser": "sgd", "lr": 0.1 if fresh else 0.05} if normed else {"optimiser": "adamw", "lr": 1e-3}
    found: Distil = made(Distil, {"steps": 1, "seed": seed, **plain, **settings})
    found.recipe()
    return found


def _check_taught(settings: Distillation, student: Graph, teachers: Sequence[Graph]) -> None:
    """InputError where the weights are not those of the teachers, or a place to compare is not there."""
    if settings.weights and len(settings.weights) != len(teachers):
        got = f"{len(settings.weights)} of {len(teachers)} teachers"
        raise InputError("distil: weights", got=got, expected="one for each teacher, or none")
    if settings.inner:
        choose(student, teachers[0], settings)


def _settled(prepared: Prepared, chosen: Distil, length: Length) -> Distil:
    """The training with its precision, layout and steps, each stored before it is used."""
    store = prepared.context.store
    assert store is not None  # claimed by the caller
    resolved = chosen.resolve(prepared.graph, prepared.context)
    if length.steps is not None:
        return replace(resolved, steps=length.steps)
    seconds = 3600 * float(length.hours or 0)
    counted = store.once(
        f"steps-{seconds:.0f}", lambda: steps_for(seconds, prepared.graph, prepared.context, resolved.recipe())
    )
    return replace(resolved, steps=int(counted))


def alone(training: Distil) -> Distil:
    """The same training on the labels alone."""
    return replace(training, alpha=1.0, features=0.0, relations=None, weights=(), teachers=())


def _beside(run: Run, result: Result, winner: Point, original: Point) -> Result:
    """The result with the student trained alone as its control, and the paired difference of the two."""
    prepared = run.prepared
    task = prepared.context.task
    if task.loss is None and task.step is None:
        return _rewritten(result, None, "The task has no loss: the student was not trained alone, there is no control.")
    training = made(Distil, {k: v for k, v in winner.plan.steps[0].items() if k != "technique"})
    other = point(prepared, run.folder, "alone", Plan((step_of(alone(training)),), winner.plan.model), original)
    found, metrics = tested(prepared, other.file, other.clocked.runtime)
    run.stage("control")
    score = prepared.context.score
    if score is None or found is None:
        return _rewritten(result, None, "Without a score and test data the student trained alone is no control.")
    mine, _ = tested(prepared, winner.file, winner.clocked.runtime)
    gain = paired_drop(mine, found, targets_of(prepared.test), score)
    return _rewritten(result, {**other.clocked.metrics, **other.metrics, **metrics}, _gained(gain))


def _gained(gain: Metric) -> str:
    """How much better the distilled student scores than the one trained alone, in words."""
    scale, unit = (100.0, "points") if gain.unit == "fraction" else (1.0, gain.unit)
    low, high = gain.interval or (gain.value, gain.value)
    n = f", n = {gain.n:,}" if gain.n is not None else ""
    return (
        f"Distilled against alone, the same steps: {scale * gain.value:+.2f} {unit}, paired, 95 % in "
        f"{scale * low:+.2f} to {scale * high:+.2f}{n}, test."
    )


def _rewritten(result: Result, control: Mapping[str, Metric] | None, sentence: str) -> Result:
    report = dict(result.report)
    report["notes"] = [*report["notes"], sentence]
    report["control"] = None if control is None else {"metrics": {name: m.json() for name, m in control.items()}}
    write_json(result.folder / "report.json", report)
    return replace(result, report=report)


def _told(teachers: Sequence[Teacher], fresh: bool) -> str:
    names = ", ".join(_name(each) for each in teachers)
    began = "new weights" if fresh else "its own weights"
    return f"The original is the teacher ({names}); the control is the student trained alone. It began with {began}."
