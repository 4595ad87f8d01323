"""Checkpoint: a training's whole state as tensors, and back, bit for bit."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from trimtab.core.context import Context
from trimtab.core.store import Store, digest
from trimtab.graph.model import Graph
from trimtab.train.data import fingerprint
from trimtab.train.recipe import Recipe
from trimtab.train.step import Training, teachers_of


def structure(graph: Graph) -> str:
    """A hash of a graph's nodes, inputs and tensor shapes, without the values of its tensors."""
    shapes = {name: [*value.shape, str(value.dtype)] for name, value in graph.tensors().items()}
    return digest(graph.net.code, [[s.name, s.shape, str(s.dtype)] for s in graph.inputs], graph.outputs, shapes)


def identity(graph: Graph) -> str:
    """A hash of a graph's structure and of the values of its tensors."""
    return digest(structure(graph), dict(graph.tensors()))


def key(graph: Graph, context: Context, recipe: Recipe) -> str:
    """What names a training in the store: everything that decides its result."""
    parts: list[Any] = [identity(graph), recipe, fingerprint(context.task), context.device]
    parts += [type(rule).__name__ for rule in recipe.rules]  # two rules may have the same settings
    taught = recipe.distil is not None or (context.task.loss is None and context.task.step is None)
    if taught:
        parts += [identity(each) for each in teachers_of(context)]
    return f"train-{digest(torch.__version__, torch.get_num_threads(), *parts)}"


def save(training: Training, store: Store, name: str) -> None:
    """Store the state. The position is among the tensors: one file, written atomically, holds it all."""
    tensors = {f"net/{k}": v for k, v in training.trained.items()}
    tensors |= {f"average/{k}": v for k, v in training.average.items()}
    tensors |= {
        f"optimiser/{k}/{slot}": value
        for k, p in training.trained.items()
        for slot, value in training.optimiser.state.get(p, {}).items()
        if isinstance(value, Tensor)
    }
    tensors |= {f"rule/{i}/{k}": v for i, state in enumerate(training.states) for k, v in state.items()}
    tensors["position"] = torch.tensor([training.steps, *training.position])
    store.put(name, {"training": "unfinished"}, tensors)


@torch.no_grad()
def restore(training: Training, store: Store, name: str) -> bool:
    """Put a stored state back into a fresh training; False where there is none."""
    if store.get(name) is None:
        return False
    tensors, trained = store.tensors(name), training.trained
    training.steps, *position = (int(n) for n in tensors.pop("position"))
    training.position = (position[0], position[1])
    for path, value in tensors.items():
        kind, _, rest = path.partition("/")
        if kind == "net":
            trained[rest].copy_(value)
        elif kind == "average":
            training.average[rest].copy_(value)
        elif kind == "rule":
            index, _, slot = rest.partition("/")
            training.states[int(index)][slot] = value
        else:
            parameter, _, slot = rest.rpartition("/")
            p = trained[parameter]
            # a copy in the parameter's own memory layout; Adam's step count is a number on the CPU
            state = torch.empty_like(p).copy_(value) if value.shape == p.shape and value.ndim else value
            training.optimiser.state[p][slot] = state
    return True


@dataclass
class Held:
    """Ctrl-C held back until the state is whole.

    Args:
        handler: what Ctrl-C did before.
        frames: of the Ctrl-C that came, at most one.
    """

    handler: Any
    frames: list[FrameType | None] = field(default_factory=list)

    def release(self) -> None:
        """Hand a Ctrl-C that was held to the handler that was there before."""
        if self.frames and callable(self.handler):
            self.handler(signal.SIGINT, self.frames.pop())


@contextlib.contextmanager
def held_interrupt() -> Iterator[Held]:
    """Note Ctrl-C in place of raising KeyboardInterrupt in the middle of a step; a second one raises at once.

    Outside the main thread, where Python delivers no signals, nothing is held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Held(None)
        return
    held = Held(signal.getsignal(signal.SIGINT))

    def note(_: int, frame: FrameType | None) -> None:
        if held.frames:
            held.frames.clear()
            raise KeyboardInterrupt
        held.frames.append(frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, held.handler)
        held.release()
