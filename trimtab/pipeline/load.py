"""Load: a task by its name on the command line, and a network that a run left."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from trimtab.core.errors import InputError, TrimtabError
from trimtab.core.task import Task
from trimtab.graph.module import module
from trimtab.graph.save import load as load_graph

BUILT_IN = ("digits",)
"""The tasks that come with trimtab: each a module of `trimtab.examples`."""

_FORMS = f"file.py, file.py:name, package.module:name, or {' or '.join(BUILT_IN)}"


def load(folder: Path | str) -> nn.Module:
    """The network of a run's folder as a plain `nn.Module` with the user's parameter names.

    Raises:
        FileError: there is no network in it, or its files are damaged.
    """
    return module(load_graph(folder))


def load_task(text: str) -> Task:
    """The task that `file.py`, `file.py:name`, `package.module:name` or a built-in name stands for.

    The file's own folder (for a module, the working folder) is searched for imports while it loads.

    Raises:
        InputError: there is no such file, module or function, it returns no Task, or it fails; the
            message names the user's own file and line.
    """
    place, _, name = text.rpartition(":") if ":" in text else (text, "", "task")
    if text in BUILT_IN:
        return _called(importlib.import_module(f"trimtab.examples.{text}"), "task", text)
    if not name.isidentifier():
        raise InputError("task", got=repr(text), expected=_FORMS)
    if place.endswith(".py") or os.sep in place:
        path = Path(place).expanduser()
        if not path.is_file():
            raise InputError("task: no such file", where=place, expected=_FORMS)
        with _importing(path.resolve().parent):
            return _called(_file(path.resolve(), place), name, place)
    if ":" not in text or not all(part.isidentifier() for part in place.split(".")):
        raise InputError("task", got=repr(text), expected=_FORMS)
    with _importing(Path.cwd()):
        return _called(_named(place), name, place)


def run_folder(task: Task, out: Path | str | None) -> Path:
    """Where a run goes: `out`, or `runs/<the task's name>`.

    Raises:
        InputError: there is a file of that name.
    """
    named = re.sub(r"[^\w.-]+", "-", task.name).strip("-.") or "task"
    folder = Path(out) if out is not None else Path("runs") / named
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise InputError(
                "out", where=folder, got=f"{part}, a file", expected="a folder", do="Choose another --out."
            )
    return folder


@contextmanager
def _importing(folder: Path) -> Iterator[None]:
    """`folder` first on the search path for imports."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _file(path: Path, shown: str) -> ModuleType:
    """Import a file under a name of its own, so that it hides no other module."""
    name = f"task_of_{re.sub(r'[^0-9a-zA-Z]+', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError("task: not a Python file", where=shown, expected=_FORMS)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # dataclasses look their module up
    loader = spec.loader
    try:
        _guarded(lambda: loader.exec_module(found), shown)
    except InputError:
        sys.modules.pop(name, None)
        raise
    return found


def _named(name: str) -> ModuleType:
    try:
        known = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"task: {name}", got=f"{type(error).__name__}: {error}") from error
        known = False
    if not known:
        raise InputError("task: no such module", where=name, do=f"Give {_FORMS}.")
    found: ModuleType = _guarded(lambda: importlib.import_module(name), name)
    return found


def _called(source: ModuleType, name: str, shown: str) -> Task:
    """What the module's function `name` returns, checked."""
    function = getattr(source, name, None)
    if function is None:
        do = f"Define `def {name}() -> trimtab.Task`, or name another: {shown}:NAME."
        raise InputError(f"task: {shown} has no {name}()", do=do)
    where = f"{shown}:{name}"
    if not callable(function):
        raise InputError("task", where=where, got=type(function).__name__, expected="a function that returns a Task")
    found = _guarded(function, shown)
    if not isinstance(found, Task):
        raise InputError("task", where=f"{where}() returns no Task", got=type(found).__name__, expected="trimtab.Task")
    return found


def _guarded(call: Callable[[], Any], shown: str) -> Any:
    """Run code of the user's; what it raises becomes one line with the place it was raised at."""
    try:
        return call()
    except TrimtabError:
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        got = f"{type(error).__name__}: {said}" if said else type(error).__name__
        missing = "Install it (what trimtab's own examples need: pip install 'trimtab[examples]')."
        do = missing if isinstance(error, ModuleNotFoundError) else "Correct the file, then run again."
        raise InputError(f"task: {_place(error, shown)}", got=got, do=do) from error


def _place(error: BaseException, shown: str) -> str:
    """The user's own file and line nearest to an error: outside of installed packages and the standard library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    skipped = (str(Path(__file__).parent), str(Path(os.__file__).parent), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(skipped)]
    return f"{_short(own[-1].filename)}:{own[-1].lineno}" if own else shown


def _short(filename: str) -> str:
    """Relative to the working folder where it lies below it."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename
