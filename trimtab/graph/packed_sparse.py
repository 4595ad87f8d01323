"""Packed sparse: a tensor with many zeros in a graph's file, as a mask of one bit a value and the values left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import FileError
from trimtab.graph.bits import packed_bytes

_TYPES = (torch.float32, torch.int8)
SPARSE = 0.2
"""The share of a weight's values that are exactly zero from which it counts as sparse."""


def split_sparse(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """The mask, uint8 [ceil(n / 8)], and the values [k] of a tensor; None where it has few zeros.

    Args:
        tensor: on the CPU, contiguous. A zero is +0: what comes back is the very same.
    """
    if tensor.dtype not in _TYPES or int((tensor == 0).sum()) < max(SPARSE * tensor.numel(), 1):
        return None
    flat = tensor.reshape(-1)
    ones = flat.view(torch.int32 if flat.dtype is torch.float32 else torch.int8) != 0
    return torch.from_numpy(np.packbits(ones.numpy(), bitorder="little")), flat[ones].clone()


def mask_name(name: str) -> str:
    """The name of a tensor's mask in the file."""
    return f"{name}/mask"


def joined_sparse(tensors: dict[str, Tensor], name: str, said: Any, path: Path) -> dict[str, Tensor]:
    """All tensors, the one that `split_sparse` took as it was.

    Args:
        tensors: with the values, in their own type, and the mask.
        name: of the tensor.
        said: its shape, from a file that may come from a stranger.
        path: of the file, for messages.

    Raises:
        FileError: mask or values are not those of the shape.
    """
    shape = tuple(n for n in said if type(n) is int and 0 <= n < 2**31) if isinstance(said, list) else ()
    if not isinstance(said, list) or len(shape) != len(said):
        raise _wrong(name, path, str(said)[:80], "a shape")
    count, mask, values = math.prod(shape), tensors.get(mask_name(name)), tensors.get(name)
    size = packed_bytes(count, 1)  # bounds what is allocated by what the file holds
    if mask is None or mask.dtype is not torch.uint8 or tuple(mask.shape) != (size,):
        raise _wrong(mask_name(name), path, _kind(mask), f"uint8 [{size}]")
    bits = np.unpackbits(mask.numpy(), bitorder="little")
    ones, rest = bits[:count], bits[count:]
    if values is None or values.dtype not in _TYPES or tuple(values.shape) != (int(ones.sum()),) or bool(rest.any()):
        raise _wrong(name, path, _kind(values), f"{int(ones.sum())} values, as many as its mask says")
    whole = torch.zeros(count, dtype=values.dtype)
    whole[torch.from_numpy(ones.astype(bool))] = values
    return {k: v for k, v in tensors.items() if k != mask_name(name)} | {name: whole.reshape(shape)}


def _kind(tensor: Tensor | None) -> str:
    return "no tensor" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")


def _wrong(name: str, path: Path, got: str, expected: str) -> FileError:
    return FileError("load: sparse tensor", where=f"{path}: {name[:80]}", got=got, expected=expected)
