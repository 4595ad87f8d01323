"""What became of each layer: widths before and after, and precision."""

from __future__ import annotations

from typing import Any

from trimtab.graph.model import Graph


def layer_rows(original: Graph, made: Graph) -> list[dict[str, Any]]:
    """For each weight matrix or kernel of the original: its shape, its shape in what was made of it, its precision.

    A layer that was removed has no shape after.
    """
    after = made.tensors()
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
                "precision": None if left is None else str(left.dtype).removeprefix("torch."),
            }
        )
    return rows
