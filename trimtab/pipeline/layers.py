"""What became of each layer: widths before and after, and precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from trimtab.graph.model import Graph


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


def _integers(graph: Graph) -> Iterator[tuple[str, str]]:
    """For each weight that is dequantised, the integers that its levels are: `int4` for -7 to 7."""
    for node in graph.nodes():
        source = node.args[0] if node.args else None
        kinds = [i for i, arg in enumerate(node.args) if isinstance(arg, torch.dtype)]
        if not str(node.target).startswith("quantized_decomposed.dequantize_per_") or not kinds:
            continue
        if isinstance(source, Node) and source.op == "get_attr":
            low, high = node.args[kinds[0] - 2 : kinds[0]]
            yield str(source.target), f"int{max(high, -low - 1).bit_length() + 1}"  # type: ignore[union-attr, type-var, operator]
