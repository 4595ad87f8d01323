"""trimtab: makes a trained network fit the hardware that it must run on.

    import trimtab as tt

    result = tt.fit(task, target="cpu", goal=tt.Goal(minimise="latency", max_drop=0.01))
    network = tt.load(result.folder)

Names are loaded when they are first used, so that `import trimtab` stays quick.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trimtab._version import VERSION as __version__
from trimtab.core.errors import TrimtabError
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric
from trimtab.core.plan import Plan
from trimtab.core.target import Target, parse

if TYPE_CHECKING:
    from trimtab.compress.exits.experts import Experts
    from trimtab.compress.exits.gate import Gates
    from trimtab.compress.exits.technique import Exits
    from trimtab.compress.factorise.technique import Factorise
    from trimtab.compress.prune.blocks import RemoveBlocks
    from trimtab.compress.prune.channels import Prune
    from trimtab.compress.quantise.equalise import Equalise
    from trimtab.compress.quantise.smooth import Smooth
    from trimtab.compress.quantise.technique import Quantise
    from trimtab.compress.recover import Distil, Recalibrate
    from trimtab.compress.share.technique import Share
    from trimtab.compress.share.tie import Tie
    from trimtab.compress.sparsify.technique import Sparsify
    from trimtab.compress.swap.technique import Swap
    from trimtab.compress.technique import Technique
    from trimtab.core.context import Progress
    from trimtab.core.task import Arrays, Score, Task, accuracy, mean_squared_error, perplexity
    from trimtab.graph.capture import capture
    from trimtab.pipeline.fit import Result
    from trimtab.pipeline.load import load, load_task
    from trimtab.pipeline.verify import verify
    from trimtab.profile.profile import Profile
    from trimtab.run.trim_file import read_trim, write_trim

_LATER = {
    "Arrays": "trimtab.core.task",
    "Distil": "trimtab.compress",
    "Equalise": "trimtab.compress",
    "Exits": "trimtab.compress",
    "Experts": "trimtab.compress",
    "Factorise": "trimtab.compress",
    "Gates": "trimtab.compress",
    "Prune": "trimtab.compress",
    "Quantise": "trimtab.compress",
    "Recalibrate": "trimtab.compress",
    "RemoveBlocks": "trimtab.compress",
    "Result": "trimtab.pipeline.fit",
    "Score": "trimtab.core.task",
    "Share": "trimtab.compress",
    "Smooth": "trimtab.compress",
    "Sparsify": "trimtab.compress",
    "Swap": "trimtab.compress",
    "Task": "trimtab.core.task",
    "Tie": "trimtab.compress",
    "accuracy": "trimtab.core.task",
    "capture": "trimtab.graph.capture",
    "load": "trimtab.pipeline.load",
    "load_task": "trimtab.pipeline.load",
    "mean_squared_error": "trimtab.core.task",
    "perplexity": "trimtab.core.task",
    "read_trim": "trimtab.run.trim_file",
    "verify": "trimtab.pipeline.verify",
    "write_trim": "trimtab.run.trim_file",
}

__all__ = [
    "Arrays",
    "Distil",
    "Equalise",
    "Exits",
    "Experts",
    "Factorise",
    "Gates",
    "Goal",
    "Metric",
    "Plan",
    "Prune",
    "Quantise",
    "Recalibrate",
    "RemoveBlocks",
    "Result",
    "Score",
    "Share",
    "Smooth",
    "Sparsify",
    "Swap",
    "Target",
    "Task",
    "Tie",
    "TrimtabError",
    "__version__",
    "accuracy",
    "capture",
    "compress",
    "distil",
    "fit",
    "load",
    "load_task",
    "mean_squared_error",
    "perplexity",
    "profile",
    "read_trim",
    "verify",
    "write_trim",
]


def fit(
    task: Task,
    target: Target | str = "cpu",
    goal: Goal | None = None,
    *,
    out: Path | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    control: bool = True,
) -> Result:
    """The smallest, fastest network that meets the goal, measured and proved, in a folder.

    Args:
        task: what the user brings; its model is never changed.
        target: what it must run on.
        goal: what must hold; by default the least latency at a drop of at most 0.01.
        out: the run's folder; by default `runs/<the task's name>`. The same call goes on with a run that was stopped.
        seed: of everything random.
        progress: called with `(what, done, total)` as work goes on.
        control: also give the original the same training, and count the drop against the better of the two.

    Raises:
        InputError: the task, target or goal is wrong.
    """
    from trimtab.core.context import quiet
    from trimtab.pipeline.fit import fit as run
    from trimtab.pipeline.load import run_folder
    from trimtab.report import write

    folder = run_folder(task, out)
    result = run(task, target, goal or Goal(), out=folder, seed=seed, progress=progress or quiet, control=control)
    write(result.folder)
    return result


def _compress(
    task: Task,
    steps: Sequence[Technique],
    *,
    target: Target | str = "cpu",
    out: Path | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """The network with these techniques applied in order, exported and measured.

    Args:
        task: what the user brings; its model is never changed.
        steps: techniques with their settings.
        target: what it must run on.
        out: the run's folder; by default `runs/<the task's name>`.
        seed: of everything random.
        progress: called with `(what, done, total)` as work goes on.

    Raises:
        InputError: the task, the target or a setting is wrong.
    """
    from trimtab.core.context import quiet
    from trimtab.pipeline.compress import compress as run
    from trimtab.pipeline.load import run_folder
    from trimtab.report import write

    folder = run_folder(task, out)
    result = run(task, steps, target=target, out=folder, seed=seed, progress=progress or quiet)
    write(folder)
    return result


def distil(
    teacher: Task | Path | str | Sequence[Task | Path | str],
    student: Task,
    *,
    steps: int | None = None,
    hours: float | None = None,
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
    target: Target | str = "cpu",
    out: Path | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """A student trained on what teachers answer, proved on unseen data beside the same student trained alone.

    Args:
        teacher: a task, the folder of a saved network, or several of these.
        student: the task whose model learns, with its data, loss and score; it is never changed.
        steps: batches to train on; or
        hours: to train the student for.
        settings: of `Distil`, such as `{"alpha": 0.5, "features": {"method": "fitnets", "weight": 10}}`.
        fresh: begin with new weights in place of the model's own.
        target: what it must run on.
        out: the run's folder; by default `runs/<the task's name>`. The same call goes on with a run that was stopped.
        seed: of everything random.
        progress: called with `(what, done, total)` as work goes on.

    Raises:
        InputError: a setting is wrong, or a teacher has other inputs or outputs than the student.
    """
    from trimtab.core.context import quiet
    from trimtab.pipeline.distil import Length
    from trimtab.pipeline.distil import distil as run
    from trimtab.pipeline.load import run_folder
    from trimtab.report import write

    folder, length, told = run_folder(student, out), Length(steps, hours), progress or quiet
    result = run(teacher, student, length, settings, fresh=fresh, target=target, out=folder, seed=seed, progress=told)
    write(result.folder)
    return result


def _profile(what: Task | Path | str, target: Target | str = "cpu") -> Profile:
    """Where the time, the multiply-adds and the bytes of a network go, layer by layer, measured on a target.

    Args:
        what: a task, or the path of an ONNX file.
        target: batch, threads and runtime; without a runtime, the fastest installed is taken.

    Raises:
        InputError: the task's model cannot be captured, or the file does not run.
    """
    from trimtab.core.task import Task
    from trimtab.graph.capture import capture
    from trimtab.graph.modes import set_mode
    from trimtab.profile.profile import profile as run

    network = set_mode(capture(what.model, what.example), False) if isinstance(what, Task) else what
    return run(network, parse(target) if isinstance(target, str) else target)


if TYPE_CHECKING:
    compress = _compress
    profile = _profile

_VERBS: dict[str, Callable[..., Any]] = {"compress": _compress, "profile": _profile}


class _Verb(ModuleType):
    """A folder of trimtab that is a verb too: `tt.compress(task, steps)` beside `trimtab.compress.Prune`."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return _VERBS[self.__name__.rpartition(".")[2]](*args, **settings)


class _Package(ModuleType):
    """trimtab itself: makes a folder callable when the import system hangs it in here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _VERBS and type(value) is ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return importlib.import_module(f"trimtab.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
