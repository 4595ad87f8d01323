"""What became of each layer: widths before and after, and precision."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from trimtab.graph.model import Graph
from trimtab.graph.packed_sparse import SPARSE
from trimtab.run.pack_sparse import masked

FEW = ("binary", *(f"int{bits}" for bits in range(2, 8)))
"""Precisions of weights that no runtime here has a kernel for."""


def layer_rows(original: Graph, made: Graph) -> list[dict[str, Any]]:
    """For each weight matrix or kernel of the original: its shape, its shape in what was made of it, its precision.

    A layer that was removed has no shape after; one that became a chain of layers has the number of their weights. A
    sparse one tells the share of its zeros; integers among which zeros are as any others do not.
    """
    after, integers = made.tensors(), dict(_integers(made))
    rows = []
    for name, tensor in original.net.named_parameters():
        if tensor.ndim < 2:
            continue
        parts = {name: after[name]} if name in after else _chain(after, name)
        kinds = {integers.get(n, str(t.dtype).removeprefix("torch.")) for n, t in parts.items()}
        shapes = [list(t.shape) for t in parts.values()]
        row = {
            "name": name.removesuffix(".weight"),
            "before": list(tensor.shape),
            "after": shapes[0] if len(shapes) == 1 else [sum(map(math.prod, shapes))] if shapes else None,
            "precision": next(iter(sorted(kinds)), None),
        }
        zeros = sum(int((t == 0).sum()) for t in parts.values()) / max(sum(t.numel() for t in parts.values()), 1)
        sparse = zeros >= SPARSE and all(_without_zeros(t, kinds) for t in parts.values())
        rows.append(row | ({"zeros": zeros} if sparse else {}))
    return rows


def _without_zeros(tensor: torch.Tensor, kinds: Collection[str]) -> bool:
    """Whether a sparse tensor is stored without its zeros: levels of a few bits may be smaller as they are."""
    if tensor.is_floating_point():
        return True
    return not any(kind.endswith(" by group") for kind in kinds) and masked(tensor.cpu().numpy())


def _chain(after: Mapping[str, torch.Tensor], weight: str) -> dict[str, torch.Tensor]:
    """The weights of what `Factorise` put in a layer's place, perhaps more than once, or `Swap`."""
    module, _, leaf = weight.rpartition(".")
    start = f"{module}." if module else ""
    own = "factors" if leaf == "weight" else f"{leaf}_factors"
    heads = (f"{start}{own}.", f"{start}swapped.")
    return {name: t for name, t in after.items() if name.startswith(heads) and t.ndim > 1}


def stored_only(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What the user should know of weights that are small on disk and computed with as any others; None without."""
    few = [row for row in rows if row["precision"] in FEW]
    sparse = [row for row in rows if "zeros" in row]
    told = []
    if few:
        kinds = ", ".join(sorted({str(row["precision"]) for row in few}))
        told.append(
            f"{len(few)} of {len(rows)} layers keep their weights in few bits on disk ({kinds}), which are decoded as "
            "the file is loaded: smaller, not faster than int8."
        )
    if sparse:
        sizes = [math.prod(row["after"]) for row in sparse]
        zeros = sum(row["zeros"] * size for row, size in zip(sparse, sizes, strict=True)) / sum(sizes)
        told.append(
            f"{len(sparse)} of {len(rows)} layers are sparse ({100 * zeros:.1f} % of their weights are zero), stored "
            "without their zeros: smaller, not faster, because processors multiply zeros as any other weights."
        )
    return " ".join(told) or None


def _integers(graph: Graph) -> Iterator[tuple[str, str]]:
    """For each weight that is dequantised, the integers that its levels are: `int4` for -7 to 7."""
    tensors = graph.tensors()
    for node in graph.nodes():
        args: tuple[Any, ...] = node.args
        kinds = [i for i, arg in enumerate(args) if isinstance(arg, torch.dtype)]
        if not str(node.target).startswith("quantized_decomposed.dequantize_per_") or not kinds:
            continue
        if args[0].op == "get_attr":
            low, high = args[kinds[0] - 2 : kinds[0]]
            blocks = " by group" if "group" in str(node.target) else ""
            kind = f"int{max(high, -low - 1).bit_length() + 1}{blocks}"
            binary = (low, high) == (-1, 1) and bool((tensors[str(args[0].target)] != 0).all())
            yield str(args[0].target), "binary" if binary else kind
