"""Python containers and flat tensors: a network's arguments and outputs by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from trimtab.core.errors import CaptureError

_CONSTANTS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class Arguments:
    """One example call of a network, with its tensors apart from the rest.

    Args:
        leaves: every leaf of (args, kwargs) in order; constants and tensors.
        spec: how to put the leaves back together.
        names: a name for each tensor leaf, from the parameters of `forward`.
        batched: whether dimension 0 is the batch, for each tensor.
        batch: the size of dimension 0 of the first tensor that has one.
    """

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    names: tuple[str, ...]
    batched: tuple[bool, ...]
    batch: int

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors among the leaves: what the graph takes."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor))

    def resized(self, batch: int) -> tuple[torch.Tensor, ...]:
        """The tensors with their first rows, or all and some again, for another batch size."""
        rows = [index % self.batch for index in range(batch)]
        return tuple(t[rows] if is_batch else t for t, is_batch in zip(self.tensors, self.batched, strict=True))

    def trimmed(self, batch: int) -> Arguments:
        """The same call with at most so many rows."""
        rows = min(batch, self.batch)
        tensors = iter(self.resized(rows))
        leaves = tuple(next(tensors) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves)
        return replace(self, leaves=leaves, batch=rows)

    def rebuild(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments with other tensors in the same places."""
        fresh = iter(tensors)
        leaves = [next(fresh) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


def arguments(model: nn.Module, example: Any) -> Arguments:
    """Read an example input: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.

    Raises:
        CaptureError: there is no tensor, the batch is below two, or a leaf is neither tensor nor constant.
    """
    if isinstance(example, Mapping):
        args, kwargs = (), {str(name): value for name, value in example.items()}
    else:
        args, kwargs = (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}
    paths, spec = pytree.tree_flatten_with_path((args, kwargs))
    for path, leaf in paths:
        if not isinstance(leaf, (torch.Tensor, *_CONSTANTS)):
            raise CaptureError(
                "capture: the example holds something that is neither a tensor nor a constant",
                where=_join(path[1:]),
                got=type(leaf).__name__,
                expected="tensors, numbers, strings, None, and tuples, lists and dicts of them",
                do="Give the network's tensors as they are passed to forward.",
            )
    names = _unique(_argument_name(model, path) for path, leaf in paths if isinstance(leaf, torch.Tensor))
    leaves = tuple(leaf for _, leaf in paths)
    batch = _batch(leaves)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return Arguments(leaves, spec, names, tuple(t.ndim > 0 and t.shape[0] == batch for t in tensors), batch)


def _batch(leaves: Sequence[Any]) -> int:
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim]
    if not sizes or sizes[0] < 2:
        raise CaptureError(
            "capture: the example input's dimension 0 is the batch",
            got=f"a batch of {sizes[0]}" if sizes else "no tensor with a dimension",
            expected="a batch of at least 2",
            do="Stack two or more examples: a batch of one cannot be told from a constant.",
        )
    return int(sizes[0])


def _argument_name(model: nn.Module, path: Sequence[Any]) -> str:
    if path[0].idx == 1:
        return _join(path[1:])
    parameters = list(inspect.signature(model.forward).parameters.values())
    position = path[1].idx
    named = position < len(parameters) and parameters[position].kind is not inspect.Parameter.VAR_POSITIONAL
    first = parameters[position].name if named else f"input_{position}"
    return "_".join(filter(None, [first, _join(path[2:])]))


def _join(path: Sequence[Any], separator: str = "_") -> str:
    return separator.join(str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", p)))) for p in path)


def _unique(names: Any) -> tuple[str, ...]:
    found: list[str] = []
    for raw in names:
        base = re.sub(r"\W", "_", raw) or "input"
        base = f"_{base}" if base[0].isdigit() else base
        name, count = base, 1
        while name in found:
            name, count = f"{base}_{count}", count + 1
        found.append(name)
    return tuple(found)


@dataclass(frozen=True)
class Results:
    """The tensors in a network's return value.

    Args:
        tensors: output name to tensor; the one name `output` when `bare`.
        bare: the network returned one tensor, not in a container.
        dropped: names of what was returned beside tensors, with the type: `past_key_values (DynamicCache)`.
    """

    tensors: dict[str, torch.Tensor]
    bare: bool
    dropped: tuple[str, ...]


def results(value: Any) -> Results:
    """Name the tensors of a return value: tuples by index, dicts by key, dataclasses by field, joined with dots."""
    if isinstance(value, torch.Tensor):
        return Results({"output": value}, True, ())
    tensors: dict[str, torch.Tensor] = {}
    dropped: list[str] = []
    _collect(value, "", tensors, dropped)
    return Results(tensors, False, tuple(dropped))


def _collect(value: Any, path: str, tensors: dict[str, torch.Tensor], dropped: list[str]) -> None:
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return
    if value is None:
        return
    members: list[tuple[Any, Any]]
    if isinstance(value, Mapping):
        members = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        members = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        members = list(enumerate(value))
    elif is_dataclass(value):
        members = [(f.name, getattr(value, f.name)) for f in fields(value)]
    else:
        dropped.append(f"{path or 'output'} ({type(value).__name__})")
        return
    for key, member in members:
        _collect(member, f"{path}.{key}" if path else str(key), tensors, dropped)
