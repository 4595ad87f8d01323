"""Lacks: forms of integers that some runtimes have no kernel for, refused before they compute something else."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from trimtab.core.errors import NotRunnable
from trimtab.graph.model import Graph

_WHOLE = 255
"""Steps of an 8-bit type from its lowest level to its highest."""


def refuse_few_bits(graph: Graph, runtime: str) -> None:
    """Refuse what a runtime with plain 8-bit integers has no kernel for.

    Weights of fewer bits are int8 to it, and run. Activations of fewer bits it would clamp at the ends of int8; a scale
    for each group of weights, and ranges found as it runs, it does not know.

    Args:
        graph: quantised or not.
        runtime: for the message.

    Raises:
        NotRunnable: names the form that was asked for, and those that the runtime has.
    """
    found = next(_forms(graph), None)
    if found is not None:
        raise NotRunnable(
            f"{runtime} has no kernel for {found[0]}",
            where=found[1],
            got=found[2],
            expected="8-bit activations of calibrated range, weights with a scale for each channel or for the whole",
            do="Quantise for it so, or use onnxruntime.",
        )


def _forms(graph: Graph) -> Iterator[tuple[str, str, str]]:
    for node in graph.nodes():
        name = str(node.target)
        args: tuple[object, ...] = node.args
        if name.startswith("quantized_decomposed.dequantize_per_channel_group"):
            yield "weights with a scale for each group", str(args[0].target), f"groups of {args[6]}"  # type: ignore[attr-defined]
        elif name.startswith("quantized_decomposed.choose_qparams"):
            yield "ranges found as it runs", str(args[0]), "dynamic activations"
        elif name == "quantized_decomposed.quantize_per_tensor.default" and args[5] in (torch.uint8, torch.int8):
            steps = int(args[4]) - int(args[3])  # type: ignore[call-overload]
            if steps < _WHOLE:
                yield "activations of fewer than 8 bits", str(args[0]), f"{steps + 1} levels"
