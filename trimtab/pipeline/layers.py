"""What became of each layer: widths before and after, and precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from trimtab.graph.model import Graph

FEW = ("binary", *(f"int{bits}" for bits in range(2, 8)))
"""Precisions of weights that no runtime here has a kernel for."""


def layer_rows(original: Graph, made: Graph) -> list[dict[str, Any]]:
    """For each weight matrix or kernel of the original: its shape, its shape in what was made of it, its precision.

    A layer that was removed has no shape after.
    """
    after, integers = made.tensors(), dict(_integers(made))
    rows = []
    for name, tensor in original.net.named_parameters():
        if tensor.ndim < 2:
            continue
        left = after.get(name)
        rows.append(
            {
                "name": name.removesuffix(".weight"),
                "before": list(tensor.shape),
                "after": None if left is None else list(left.shape),
                "precision": None if left is None else integers.get(name, str(left.dtype).removeprefix("torch.")),
            }
        )
    return rows


def stored_only(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What the user should know of weights that have few bits on disk and are computed with as int8; None without."""
    few = [row for row in rows if row["precision"] in FEW]
    if not few:
        return None
    kinds = ", ".join(sorted({str(row["precision"]) for row in few}))
    return (
        f"{len(few)} of {len(rows)} layers keep their weights in few bits on disk ({kinds}), which are decoded as the "
        "file is loaded: smaller, not faster than int8."
    )


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
