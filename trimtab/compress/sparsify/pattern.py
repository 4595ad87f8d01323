"""Pattern: where zeros may lie in a weight, and the mask that keeps the highest scores so."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.core.errors import InputError

POOL = "*"
"""In a mapping of counts: all weights that are not named by themselves, ranked together."""
_N_OF_M = re.compile(r"(\d{1,4}):(\d{1,4})")
_BLOCK = re.compile(r"block (\d{1,4})x(\d{1,4})")


@dataclass(frozen=True)
class Pattern:
    """Where zeros may lie in a weight, seen as rows of outputs and columns of inputs.

    Args:
        kind: `free`, `n:m` or `block`.
        first: how many of each group stay; or the rows of a block.
        second: the length of a group along the inputs; or the columns of a block.
    """

    kind: Literal["free", "n:m", "block"] = "free"
    first: int = 1
    second: int = 1

    def fits(self, shape: torch.Size) -> bool:
        """Whether a weight [O, I, K] can have it."""
        return self.kind != "n:m" or shape[1] % self.second == 0


def pattern_of(text: str) -> Pattern:
    """`free`, `2:4` (at least two zeros in each four inputs) or `block 4x1` (outputs x inputs).

    Raises:
        InputError: it is none of them.
    """
    if text == "free":
        return Pattern()
    for kind, form in (("n:m", _N_OF_M), ("block", _BLOCK)):
        found = form.fullmatch(text)
        if found:
            first, second = int(found[1]), int(found[2])
            if first > 0 and ((kind == "block" and second > 0) or 0 < first < second):
                return Pattern(kind, first, second)  # type: ignore[arg-type]
    raise InputError("Sparsify: pattern", got=repr(text), expected="free, N:M such as 2:4, or block RxC such as 4x1")


def rows_of(weight: Tensor, axis: int) -> Tensor:
    """A weight as [O, I, K]: outputs (its dimension `axis`), inputs, and places of a kernel."""
    first = weight.movedim(axis, 0)
    return first.reshape(first.shape[0], first.shape[1], -1)


def weight_of(rows: Tensor, like: Tensor, axis: int) -> Tensor:
    """What `rows_of` made rows of."""
    return rows.reshape(like.movedim(axis, 0).shape).movedim(0, axis)


def best_of_groups(scores: Tensor, pattern: Pattern) -> Tensor:
    """Of each M inputs one after the other, the N with the highest scores: a mask [O, I, K]; of equals the first."""
    moved = scores.transpose(1, 2)
    grouped = moved.reshape(*moved.shape[:2], -1, pattern.second)  # [O, K, I / M, M]
    order = torch.sort(grouped, dim=-1, descending=True, stable=True).indices[..., : pattern.first]
    mask = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, order, True)
    return mask.flatten(2).transpose(1, 2)


def units_of(scores: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The mean score of each block and how many weights it has, [rows of blocks, columns of blocks] both.

    Args:
        scores: [O, I, K]; columns are all inputs and places of a kernel.
        pattern: `free`, whose blocks are single weights, or `block`. Blocks at the edges may be smaller.
    """
    flat = scores.flatten(1)
    high, wide = (pattern.first, pattern.second) if pattern.kind == "block" else (1, 1)
    if (high, wide) == (1, 1):
        return flat, torch.ones_like(flat, dtype=torch.int64)
    down, across = (-(-n // size) for n, size in zip(flat.shape, (high, wide), strict=True))
    pads = (0, across * wide - flat.shape[1], 0, down * high - flat.shape[0])
    sums, sizes = (
        functional.pad(t, pads).reshape(down, high, across, wide).sum((1, 3)) for t in (flat, torch.ones_like(flat))
    )
    return sums / sizes, sizes.long()


def spread(units: Tensor, shape: torch.Size, pattern: Pattern) -> Tensor:
    """A mask of weights [O, I, K] from one of blocks."""
    if pattern.kind == "block":
        units = units.repeat_interleave(pattern.first, 0).repeat_interleave(pattern.second, 1)
    return units[: shape[0], : shape[1] * shape[2]].reshape(shape)


def masks(
    scores: Mapping[str, Tensor], keep: Mapping[str, int], pattern: Pattern, by_row: bool = False
) -> dict[str, Tensor]:
    """Which weights stay: the highest scores, as many as `keep` says; of equal ones the first.

    Args:
        scores: by name, [O, I, K].
        keep: how many weights stay, by name; under `POOL`, of all that are not named. Not read for N:M. Blocks stay
            or go whole: as many as fit, one at least.
        pattern: where zeros may lie.
        by_row: an equal number in every row of blocks.

    Returns: by name, [O, I, K], true for what stays.
    """
    if pattern.kind == "n:m":
        return {name: best_of_groups(value, pattern) for name, value in scores.items()}
    units = {name: units_of(value, pattern) for name, value in scores.items()}
    found = {}
    for name in (n for n in scores if n in keep):
        ranked, sizes = units[name]
        found[name] = (
            _best_in_rows(ranked, keep[name] / int(sizes.sum())) if by_row else _best(ranked, sizes, keep[name])
        )
    found |= {name: _filled(part, units[name][0]) for name, part in pooled(units, keep).items()}
    return {name: spread(found[name], value.shape, pattern) for name, value in scores.items()}


def pooled(units: Mapping[str, tuple[Tensor, Tensor]], keep: Mapping[str, int]) -> dict[str, Tensor]:
    """Which blocks stay of the weights that are ranked together, by name; of some it may be none.

    Args:
        units: of every weight, by name; see `units_of`.
        keep: as for `masks`.
    """
    pool = [name for name in units if name not in keep]
    if not pool:
        return {}
    ranked, sizes = (torch.cat([units[name][i].flatten() for name in pool]) for i in (0, 1))
    parts = _parts(_best(ranked, sizes, keep[POOL]), [units[name][0].numel() for name in pool])
    return {name: part.reshape(units[name][0].shape) for name, part in zip(pool, parts, strict=True)}


def _parts(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    ends = list(itertools.accumulate(sizes))
    return [flat[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _best(ranked: Tensor, sizes: Tensor, keep: int) -> Tensor:
    """The highest of all, together at most `keep` weights, one at least: a mask of the same shape."""
    order = torch.sort(ranked.flatten(), descending=True, stable=True).indices
    inside = sizes.flatten()[order].cumsum(0) <= keep
    inside[0] = True
    return torch.zeros_like(inside).scatter_(0, order, inside).reshape(ranked.shape)


def _best_in_rows(ranked: Tensor, share: float) -> Tensor:
    each = max(round(share * ranked.shape[1]), 1)
    order = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :each]
    return torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, order, True)


def _filled(mask: Tensor, ranked: Tensor) -> Tensor:
    """A weight's share of a mask of many; where nothing of it stays, its best stays, so that the layer computes."""
    if not bool(mask.any()):
        mask = mask.clone()
        mask.view(-1)[int(ranked.argmax())] = True
    return mask
