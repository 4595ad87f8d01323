"""What became of each layer: widths before and after, and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.graph.model import Graph
from trimtab.graph.save import load


def layer_rows(original: Graph, folder: Path) -> list[dict[str, Any]]:
    """For each weight matrix or kernel of the original: its shape, its shape in a saved network, its precision.

    A layer that was removed has no shape after.
    """
    after = load(folder).tensors()
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
