"""Train once: the network of a task, trained by trimtab's own loop and kept."""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path

import trimtab as tt
from trimtab.core.context import Context, Progress, quiet
from trimtab.core.errors import InputError
from trimtab.core.store import Store, cache_folder, digest
from trimtab.graph.capture import capture
from trimtab.train.data import fingerprint
from trimtab.train.loop import fit_network
from trimtab.train.recipe import Recipe


def once(task: tt.Task, recipe: Recipe, folder: Path | None = None, progress: Progress = quiet) -> tt.Task:
    """The task with its model trained; the second call reads what the first one left.

    A training that was stopped goes on from its last checkpoint. Weights are kept under the hash of the untrained
    network, the recipe and the data, and so are the same for everything that asks for them.

    Args:
        task: its model is not trained yet, and drawn from a fixed seed.
        recipe: how; its precision and layout are settled, so that no clock decides.
        folder: where weights are kept; trimtab's cache by default.
        progress: called as training goes on.
    """
    store = Store(folder or cache_folder() / "networks")
    settings = {f.name: getattr(recipe, f.name) for f in fields(recipe) if getattr(recipe, f.name) != f.default}
    name = f"{task.name}-{digest(repr(task.model), task.model.state_dict(), settings, fingerprint(task))}"
    if store.get(name) is None:
        graph = capture(task.model, task.example)
        trained = fit_network(graph, Context(task, store=store, progress=progress), recipe)
        store.put(name, {"task": task.name, "steps": recipe.steps}, dict(trained.tensors()))
    model = copy.deepcopy(task.model)
    missing, unknown = model.load_state_dict(store.tensors(name), strict=False)
    left = [key for key in missing if not key.endswith("num_batches_tracked")]
    if left or unknown:
        raise InputError("once: the kept weights do not fit", where=store.folder / name, got=[*left, *unknown])
    return tt.Task(**{**vars(task), "model": model.eval()})
