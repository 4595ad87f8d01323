"""Packed: the int8 tensors of a graph's file, stored in as few bits as their levels need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import FileError
from trimtab.graph.bits import STORED, bits_needed, pack_levels, packed_bytes, unpack_levels

_SAVED = 64
"""Bytes that packing a tensor must save: naming it in the description takes as many."""


def packed_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors with int8 levels packed where that saves bytes, and of each packed one its bits and shape.

    Args:
        tensors: on the CPU, contiguous, by name.
    """
    found, packed = dict(tensors), {}
    for name, tensor in tensors.items():
        if tensor.dtype is not torch.int8 or tensor.numel() <= _SAVED:
            continue
        levels = tensor.numpy()
        bits = bits_needed(levels)
        if tensor.numel() - packed_bytes(tensor.numel(), bits) > _SAVED:
            found[name] = torch.from_numpy(pack_levels(levels, bits))
            packed[name] = {"bits": bits, "shape": list(tensor.shape)}
    return found, packed


def unpacked_tensors(tensors: Mapping[str, Tensor], packed: Any, path: Path) -> dict[str, Tensor]:
    """The tensors that `packed_tensors` took.

    Args:
        tensors: as they stand in the file, by name.
        packed: bits and shape of each packed one, from a file that may come from a stranger.
        path: of the file, for messages.

    Raises:
        FileError: a packed tensor is missing, or its bytes are not those of its bits and shape.
    """
    found = dict(tensors)
    if not isinstance(packed, dict):
        raise FileError("load: packed tensors", where=path, got=type(packed).__name__, expected="bits and shapes")
    for name, said in packed.items():
        bits, shape = _said(name, said, path)
        data = tensors.get(name)
        size = packed_bytes(math.prod(shape), bits)
        if data is None or data.dtype is not torch.uint8 or data.ndim != 1 or len(data) != size:
            got = "no tensor" if data is None else f"{data.dtype} {list(data.shape)}".removeprefix("torch.")
            raise FileError("load: packed tensor", where=f"{path}: {name[:80]}", got=got, expected=f"uint8 [{size}]")
        found[name] = torch.from_numpy(unpack_levels(data.numpy(), bits, shape))
    return found


def _said(name: Any, said: Any, path: Path) -> tuple[int, tuple[int, ...]]:
    bits, shape = (said.get("bits"), said.get("shape")) if isinstance(said, dict) else (None, None)
    sizes = tuple(n for n in shape if type(n) is int and 0 <= n < 2**31) if isinstance(shape, list) else ()
    if type(bits) is int and 1 <= bits < STORED and isinstance(shape, list) and len(sizes) == len(shape):
        return bits, sizes
    raise FileError(
        "load: packed tensor",
        where=f"{path}: {str(name)[:80]}",
        got=str(said)[:80],
        expected=f"bits from 1 to {STORED - 1} and a shape",
    )
