"""Packed: the tensors of a graph's file, stored in as few bits as their values need, without loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import FileError
from trimtab.graph.bits import STORED, bits_needed, pack_levels, packed_bytes, unpack_levels
from trimtab.graph.packed_shared import packed_shared, unpacked_shared
from trimtab.graph.packed_sparse import joined_sparse, mask_name, split_sparse

_NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16)
"""The smallest first; most of bfloat16 would fit into float16 too, which says less of where it comes from."""
_SAVED = 64
"""Bytes that packing a tensor must save: naming it in the description takes as many."""


def packed_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors with int8 levels packed and fp32 values narrowed where that saves bytes, and what each one was.

    Of levels it tells the bits and the shape; a narrow tensor has its shape, and says that it was `float32`; of
    shared weights it tells the size of the codebook, which is a tensor of its own. A tensor with many zeros is a mask
    and the values left, which are packed in the same ways: under `sparse` it tells its shape.

    Args:
        tensors: on the CPU, contiguous, by name.
    """
    found = dict(tensors)
    packed: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        stored, said = _packed(name, tensor)
        split = split_sparse(tensor) if tensor.numel() >= _SAVED else None
        if split is not None:
            values, how = _packed(name, split[1])
            values[mask_name(name)] = split[0]
            if _size(values) + _SAVED < _size(stored):
                stored, said = values, {**how, "sparse": list(tensor.shape)}
        found |= stored
        if said:
            packed[name] = said
    return found, packed


def _packed(name: str, tensor: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is stored of one tensor, and what is told of it; nothing where it is stored as it is."""
    if tensor.dtype is torch.float32 and tensor.numel() >= _SAVED:
        narrow, shared = narrowest(tensor), packed_shared(name, tensor)
        narrowed = tensor.numel() * (4 if narrow is None else narrow.itemsize)
        if shared is not None and _size(shared[0]) + 2 * _SAVED < narrowed:
            return shared
        if narrow is not None:
            return {name: tensor.to(narrow)}, {"dtype": "float32"}
    if tensor.dtype is torch.int8 and tensor.numel() > _SAVED:
        levels = tensor.numpy()
        bits = bits_needed(levels)
        if tensor.numel() - packed_bytes(tensor.numel(), bits) > _SAVED:
            data = torch.from_numpy(pack_levels(levels, bits))
            return {name: data}, {"bits": bits, "shape": list(tensor.shape)}
    return {name: tensor}, {}


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.nbytes for t in tensors.values())


def narrowest(tensor: Tensor) -> torch.dtype | None:
    """The smallest floating-point type that holds every value of a float32 tensor, bit for bit; None for float32."""
    flat = tensor.reshape(-1)
    few = flat[:_SAVED]
    return next((dtype for dtype in _NARROW if _holds(few, dtype) and _holds(flat, dtype)), None)


def _holds(flat: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(flat.to(dtype).to(torch.float32).view(torch.int32), flat.view(torch.int32))


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
        plain = {k: v for k, v in said.items() if k != "sparse"} if isinstance(said, dict) else said
        if plain != {}:
            found = _unpacked(found, name, plain, path)
        if isinstance(said, dict) and "sparse" in said:
            found = joined_sparse(found, str(name), said["sparse"], path)
    return found


def _unpacked(found: dict[str, Tensor], name: str, said: Any, path: Path) -> dict[str, Tensor]:
    """All tensors, one of them as `_packed` took it."""
    if said == {"dtype": "float32"}:
        return found | {name: _widened(found.get(name), name, path)}
    if isinstance(said, dict) and "codebook" in said:
        return unpacked_shared(found, str(name), said, path)
    bits, shape = _said(name, said, path)
    data = found.get(name)
    size = packed_bytes(math.prod(shape), bits)
    if data is None or data.dtype is not torch.uint8 or data.ndim != 1 or len(data) != size:
        got = "no tensor" if data is None else f"{data.dtype} {list(data.shape)}".removeprefix("torch.")
        raise FileError("load: packed tensor", where=f"{path}: {name[:80]}", got=got, expected=f"uint8 [{size}]")
    return found | {name: torch.from_numpy(unpack_levels(data.numpy(), bits, shape))}


def _widened(data: Tensor | None, name: str, path: Path) -> Tensor:
    if data is None or data.dtype not in _NARROW:
        got = "no tensor" if data is None else str(data.dtype).removeprefix("torch.")
        types = ", ".join(str(dtype).removeprefix("torch.") for dtype in _NARROW)
        raise FileError("load: packed tensor", where=f"{path}: {name[:80]}", got=got, expected=types)
    return data.to(torch.float32)


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
