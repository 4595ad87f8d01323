"""Data: batches checked, in memory, split, and in a repeatable order."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.core.store import digest
from trimtab.core.task import Arrays, Batch, Task, unpack
from trimtab.graph.model import Graph, Outputs

_END = object()


def checked(batch: Batch, graph: Graph, where: str) -> tuple[tuple[Tensor, ...], Any]:
    """The inputs of a batch in the graph's order, and its target (None without labels).

    Args:
        where: which data it is (`train`, `validate`, ...), for the message.

    Raises:
        InputError: an input is missing, has another shape or type, or is not finite.
    """
    inputs, target = unpack(batch, [spec.name for spec in graph.inputs], where)
    for spec, value in zip(graph.inputs, inputs, strict=True):
        name = f"data: {where}: input {spec.name}"
        wanted = ", ".join("N" if n is None else str(n) for n in spec.shape)
        fits = value.ndim == len(spec.shape) and all(
            n in (None, m) for n, m in zip(spec.shape, value.shape, strict=True)
        )
        if not fits:
            raise InputError(name, got=f"shape {list(value.shape)}", expected=f"[{wanted}]", do="Resize or crop it.")
        floats = spec.dtype.is_floating_point
        if (floats and value.dtype != spec.dtype) or (not floats and value.dtype.is_floating_point):
            raise InputError(name, got=value.dtype, expected=spec.dtype, do=f"Convert it with .to({spec.dtype}).")
        if floats and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(name, got=f"{bad} values NaN or infinite", expected="finite values", do="Clean the data.")
    return inputs, target


def stream(data: Iterable[Batch], seed: int, start: tuple[int, int] = (0, 0)) -> Iterator[tuple[int, int, Batch]]:
    """Endless `(epoch, index, batch)` from `start` on, in the same order every time.

    Each epoch iterates `data` anew with the global generators of torch, NumPy and Python seeded by
    (seed, epoch), and puts the generators back after every batch: what the training draws does not
    disturb the data. A loader with a generator of its own is not reseeded. A batch of one sample
    after larger ones is left out: batch norm has no variance there.

    Raises:
        InputError: an epoch has no batch.
    """
    for epoch in itertools.count(start[0]):
        index, first = -1, 0
        for index, batch in enumerate(_seeded(data, seed, epoch)):
            first = first or size(batch)
            if (epoch, index) >= start and (size(batch) > 1 or first == 1):
                yield epoch, index, batch
        if index < 0:
            again = "Give a loader that can be iterated again." if epoch else "Give at least one batch."
            raise InputError("data: train", got="no batch", expected=f"batches in epoch {epoch}", do=again)


def _seeded(data: Iterable[Batch], seed: int, epoch: int) -> Iterator[Batch]:
    outside = _generators()
    _seed(int(digest("epoch", seed, epoch)[:8], 16))
    iterator = iter(data)
    inside = _generators()
    _restore(outside)
    while True:
        outside = _generators()
        _restore(inside)
        try:
            batch = next(iterator, _END)
        finally:
            inside = _generators()
            _restore(outside)
        if batch is _END:
            return
        yield batch


def _generators() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _restore(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def in_memory(
    data: Iterable[Batch], graph: Graph, where: str, samples: int | None = None, seed: int = 0
) -> tuple[Batch, ...]:
    """Batches in the user's own form, checked and in memory, at most `samples` samples.

    Raises:
        InputError: there is no batch, or one does not fit the graph's inputs.
    """
    found: list[Batch] = []
    left = samples
    for batch in _seeded(data, seed, 0):
        checked(batch, graph, where)
        found.append(batch if left is None or size(batch) <= left else pick(batch, range(left)))
        left = None if left is None else left - size(found[-1])
        if left == 0:
            break
    if not found:
        raise InputError(f"data: {where}", got="no batch", expected="at least one", do="Give data, or leave it out.")
    return tuple(found)


def take(batches: Sequence[Batch], samples: int) -> tuple[Batch, ...]:
    """The first `samples` samples of batches in memory."""
    found: list[Batch] = []
    for batch in batches:
        if samples <= 0:
            break
        found.append(batch if size(batch) <= samples else pick(batch, range(samples)))
        samples -= size(batch)
    return tuple(found)


def mixed(batches: Sequence[Batch], samples: int, seed: int) -> tuple[Batch, ...]:
    """`samples` samples of batches in memory, drawn at random: data on disk are often sorted by class.

    The statistics of a batch of one class are not those of the data. Batches whose shapes differ (text padded
    batch by batch) are drawn whole.
    """
    generator = torch.Generator().manual_seed(int(digest("mixed", seed)[:8], 16))
    shapes = {tuple(tuple(t.shape[1:]) for t in tensors(batch)) for batch in batches}
    if len(shapes) > 1:
        return take([batches[int(i)] for i in torch.randperm(len(batches), generator=generator)], samples)
    whole, per = join(batches), max(size(batch) for batch in batches)
    order = torch.randperm(size(whole), generator=generator)[:samples]
    return tuple(pick(whole, part) for part in torch.split(order, per))


def split(batches: Sequence[Batch], seed: int) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """A choosing and a proving half of batches in memory, seeded.

    Where the target is one tensor of integers [N], each label is halved; the order is kept.

    Raises:
        InputError: there are fewer than two samples.
    """
    whole = join(batches) if batches else ()
    n = size(whole) if batches else 0
    if n < 2:
        raise InputError("data: split", got=f"{n} samples", expected="at least 2", do="Give validate= and test= apart.")
    generator = torch.Generator().manual_seed(int(digest("split", seed)[:8], 16))
    order = torch.randperm(n, generator=generator)
    labels = whole[1] if isinstance(whole, (tuple, list)) and len(whole) == 2 else None
    if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.dtype.is_floating_point:
        order = order[torch.argsort(labels[order], stable=True)]
    per = max(size(batch) for batch in batches)
    halves = (order[0::2].sort().values, order[1::2].sort().values)
    choosing, proving = (tuple(pick(whole, part) for part in torch.split(half, per)) for half in halves)
    return choosing, proving


def size(batch: Batch) -> int:
    """Samples in a batch: dimension 0 of its first tensor."""
    first = next(tensors(batch), None)
    if first is None or first.ndim == 0:
        raise InputError("data: a batch holds no tensor with a dimension", got=type(batch).__name__)
    return int(first.shape[0])


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from tensors(member)
    elif isinstance(value, (tuple, list)):
        for member in value:
            yield from tensors(member)


def pick(value: Any, index: Sequence[int] | Tensor) -> Any:
    """Some samples of a batch, outputs or targets: tensors by dimension 0, lists of other things by position."""
    rows = torch.as_tensor(index)
    if isinstance(value, Tensor):
        return value[rows] if value.ndim else value
    if isinstance(value, Mapping):
        return _mapping(value, {k: pick(v, rows) for k, v in value.items()})
    if isinstance(value, list) and next(tensors(value), None) is None:
        return [value[int(i)] for i in rows]
    if isinstance(value, (tuple, list)):
        return tuple(pick(v, rows) for v in value)
    return value


def join(values: Sequence[Any]) -> Any:
    """Batches, outputs or targets one after another as one: the inverse of cutting by `pick`."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.ndim else first
    if isinstance(first, Mapping):
        return _mapping(first, {k: join([v[k] for v in values]) for k in dict(first)})
    if isinstance(first, list) and next(tensors(first), None) is None:
        return list(itertools.chain.from_iterable(values))
    if isinstance(first, (tuple, list)):
        return tuple(join(members) for members in zip(*values, strict=True))
    return first


def _mapping(like: Any, members: dict[Any, Any]) -> dict[Any, Any]:
    return Outputs(members) if isinstance(like, Outputs) else members


def fingerprint(task: Task) -> str:
    """A hash of what training sees: the declared fingerprint, the code of loss and step, and of `Arrays` 64 samples."""
    data = task.train
    parts: list[Any] = [task.fingerprint, _source(task.loss), _source(task.step), type(data).__name__]
    if isinstance(data, Arrays):
        some = data.take(torch.arange(0, data.samples, max(data.samples // 64, 1)))
        inputs = some.inputs if isinstance(some.inputs, Mapping) else {"": some.inputs}
        parts += [data.samples, data.batch, data.shuffle, _source(data.transform), dict(inputs)]
        parts += [data.targets] if data.targets is not None else []
    elif isinstance(data, Sized):
        parts.append(len(data))
    return digest(*parts)


def _source(function: Callable[..., Any] | None) -> str:
    try:
        return inspect.getsource(function) if function is not None else ""
    except (OSError, TypeError):  # built-in, callable object, or typed at a prompt
        return str(getattr(function, "__qualname__", type(function).__name__))
