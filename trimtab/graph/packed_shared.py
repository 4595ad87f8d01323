"""Packed shared: a tensor of few distinct values in a graph's file, as indices of few bits and a codebook."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import FileError
from trimtab.graph.bits import numbers_in, packed_bytes, stream
from trimtab.graph.shared import BLOCKS, LARGEST, Codebook, codebook_of

_MOST = 1 << 31
"""Values of a tensor at most; an index of one bit stands for up to 32 of them, so that a small file may claim many."""


def packed_shared(name: str, tensor: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors to store in the place of one, and what they are; None where that saves nothing.

    Args:
        name: of the tensor.
        tensor: fp32, on the CPU.
    """
    found = codebook_of(tensor.numpy())
    if found is None:
        return None
    bits = _bits(found.entries)
    tensors = {
        name: torch.from_numpy(stream(found.indices, bits)),
        _codebook(name): torch.from_numpy(np.ascontiguousarray(found.values)),
    }
    said = {"codebook": found.entries, "block": found.block, "shape": list(found.shape)}
    return tensors, said


def unpacked_shared(tensors: dict[str, Tensor], name: str, said: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """All tensors, the one that `packed_shared` took as it was.

    Raises:
        FileError: its indices or its codebook are not what the description says.
    """
    entries, block, shape = _said(name, said, path)
    count = math.prod(shape) // block
    indices, values = tensors.get(name), tensors.get(_codebook(name))
    size = packed_bytes(count, _bits(entries))
    if indices is None or indices.dtype is not torch.uint8 or tuple(indices.shape) != (size,):
        raise _wrong(name, path, _kind(indices), f"uint8 [{size}]")
    if values is None or values.dtype is not torch.float32 or tuple(values.shape) != (entries, block):
        raise _wrong(_codebook(name), path, _kind(values), f"float32 [{entries}, {block}]")
    numbers = numbers_in(indices.numpy(), _bits(entries), count)
    if count and int(numbers.max()) >= entries:
        raise _wrong(name, path, f"index {numbers.max()}", f"below {entries}")
    whole = Codebook(values.numpy(), numbers, shape).tensor()
    return {k: v for k, v in tensors.items() if k != _codebook(name)} | {name: torch.from_numpy(whole)}


def _bits(entries: int) -> int:
    return max(1, (entries - 1).bit_length())


def _codebook(name: str) -> str:
    return f"{name}/codebook"


def _said(name: str, said: dict[str, Any], path: Path) -> tuple[int, int, tuple[int, ...]]:
    entries, block, shape = (said.get(key) for key in ("codebook", "block", "shape"))
    sizes = tuple(n for n in shape if type(n) is int and 0 <= n < 2**31) if isinstance(shape, list) else ()
    if isinstance(shape, list) and len(sizes) == len(shape) and type(entries) is int and type(block) is int:
        fits = 1 <= entries <= LARGEST and 1 <= block <= max(BLOCKS) and math.prod(sizes) <= _MOST
        if fits and math.prod(sizes) % block == 0:
            return entries, block, sizes
    raise _wrong(name, path, str(said)[:80], f"a codebook of 1 to {LARGEST} entries, its block, and a shape")


def _kind(tensor: Tensor | None) -> str:
    return "no tensor" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")


def _wrong(name: str, path: Path, got: str, expected: str) -> FileError:
    return FileError("load: shared tensor", where=f"{path}: {name[:80]}", got=got, expected=expected)
