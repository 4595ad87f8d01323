"""RemoveBlocks: fewer residual blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from trimtab.compress.quantise.watch import watch
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.core.store import digest
from trimtab.graph.blocks import Block, blocks, remove
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.train.data import checked

_BATCHES = 4
_RANDOM_SIZE = 32


@dataclass(frozen=True)
class RemoveBlocks:
    """Take whole residual blocks out: y = x + f(x) becomes y = x.

    Give `blocks` or `count`. `resolve` turns a count into names, and a plan holds names only.

    Args:
        blocks: names of the blocks to remove, as `trimtab.graph.blocks.blocks` gives them.
        count: how many to remove, those with the least score.
        score: `output`: how much the network's outputs change on the calibration inputs without the
            block, relative mean square; `cosine`: 1 - cos(x, y) of what enters and leaves the block, mean
            over tokens, or over samples where the values are no sequences (block influence); `angular`:
            arccos(cos(x, y)) / pi in place of it; or `random`. No labels are needed; where there are no
            data, inputs are random.

    Raises:
        InputError: a block is unknown or kept by the task, or there are fewer than `count`.

    Source: Veit et al. (2016), Residual Networks Behave Like Ensembles of Relatively Shallow Networks,
    section 4.1 (deleting single blocks); ranking by the outputs is ours. Men et al. (2024), ShortGPT, eq. 1
    (`cosine`); Gromov et al. (2024), The Unreasonable Ineffectiveness of the Deeper Layers, eq. 4 (`angular`, there of
    the last token and of several layers at once).
    """

    blocks: tuple[str, ...] | None = None
    count: int | None = None
    score: Literal["output", "cosine", "angular", "random"] = "output"

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each removable block: whether to remove it."""
        return tuple(Axis(f"RemoveBlocks:{b.name}", (False, True)) for b in _free(graph, context))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph without the blocks."""
        return remove(graph, self.resolve(graph, context).blocks or ())

    def resolve(self, graph: Graph, context: Context) -> RemoveBlocks:
        """The same with `blocks` in place of `count`."""
        if (self.blocks is None) == (self.count is None):
            got = "neither" if self.blocks is None else "both blocks and count"
            raise InputError("RemoveBlocks", got=got, expected="blocks or count")
        free = _free(graph, context)
        if self.blocks is not None:
            kept = {b.name for b in blocks(graph)} - {b.name for b in free}
            for name in self.blocks:
                if name in kept:
                    raise InputError("RemoveBlocks", where=name, got="a block that the task's keep= names")
            return self
        if not 0 <= self.count <= len(free):  # type: ignore[operator]
            raise InputError("RemoveBlocks: count", got=self.count, expected=f"0 to {len(free)} removable blocks")
        scores = block_scores(graph, free, self.score, context)
        return replace(self, blocks=_least(free, scores, int(self.count or 0)), count=None)


def _free(graph: Graph, context: Context) -> list[Block]:
    """Blocks none of whose parameters the task keeps."""

    def kept(name: str) -> bool:
        return any(name == k or name.startswith(f"{k}.") or fnmatchcase(name, k) for k in context.task.keep)

    return [b for b in blocks(graph) if not any(kept(p) for p in b.parameters)]


def _least(free: list[Block], scores: dict[str, float], count: int) -> tuple[str, ...]:
    """Names of the blocks with the least scores, none inside another, in graph order."""
    chosen: list[Block] = []
    for block in sorted(free, key=lambda b: scores[b.name]):
        if len(chosen) < count and not any(set(block.nodes) & set(other.nodes) for other in chosen):
            chosen.append(block)
    if len(chosen) < count:
        raise InputError("RemoveBlocks: count", got=count, expected=f"at most {len(chosen)}: blocks lie in each other")
    return tuple(b.name for b in free if b in chosen)


def block_scores(graph: Graph, found: list[Block], score: str, context: Context) -> dict[str, float]:
    """How much each block matters; see `RemoveBlocks`. Sums over all floating-point outputs."""
    if score == "random":
        return {b.name: float(int(digest("block", context.seed, b.name), 16)) for b in found}
    if score not in ("output", "cosine", "angular"):
        raise InputError("RemoveBlocks: score", got=repr(score), expected="output, cosine, angular or random")
    own = set_mode(graph.copy(), False)
    batches = [checked(batch, own, "calibrate")[0] for batch in context.calibrate[:_BATCHES]]
    batches = batches or [own.example(_RANDOM_SIZE, context.seed)]
    if score != "output":
        return _turned(own, found, batches, score)
    wanted = [_run(own, batch) for batch in batches]
    scores: dict[str, float] = {}
    for i, block in enumerate(found):
        context.progress("score blocks", i, len(found))
        without = remove(own, (block.name,))
        scores[block.name] = sum(_change(_run(without, b), w) for b, w in zip(batches, wanted, strict=True))
    return scores


def _turned(graph: Graph, found: list[Block], batches: list[tuple[Tensor, ...]], score: str) -> dict[str, float]:
    """How far each block turns what enters it, mean over batches."""
    entered: dict[str, Tensor] = {}
    sums = {b.name: 0.0 for b in found}
    shows: dict[str, Callable[[Tensor], None]] = {}
    leaving = {b.add: b for b in found}

    def show(value: Tensor, node: str) -> None:
        block = leaving.get(node)
        if block is not None:
            cos = _cosine(entered[block.source], value)
            sums[block.name] += float((1 - cos).mean() if score == "cosine" else (cos.arccos() / torch.pi).mean())
        entered[node] = value.clone()  # the addition may write over it

    for node in {b.source for b in found} | set(leaving):
        shows[node] = partial(show, node=node)
    watch(graph, batches, shows)
    return {name: total / len(batches) for name, total in sums.items()}


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Of each token [N, tokens, width], or else of each sample."""
    x, y = (v.double() if v.ndim == 3 else v.double().flatten(1) for v in (x, y))
    return torch.nn.functional.cosine_similarity(x, y, dim=-1).clamp(-1, 1)


def _run(graph: Graph, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [v.double() for v in graph.net(*inputs) if v.dtype.is_floating_point]


def _change(found: list[Tensor], wanted: list[Tensor]) -> float:
    return sum(
        float((a - b).square().mean() / b.square().mean().clamp_min(1e-30)) for a, b in zip(found, wanted, strict=True)
    )
