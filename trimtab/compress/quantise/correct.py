"""Correct: biases that undo the shift of each layer's mean that quantisation brings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.compress.quantise.staged import Inputs, Staged, chunks
from trimtab.compress.quantise.units import CONVOLUTIONS, channel_dim, output_dim, weighted
from trimtab.core.context import Progress
from trimtab.graph.model import Graph, place, shaped

_ATEN = torch.ops.aten
SAMPLES = 1024
"""Calibration samples that means are taken over, at most."""


def corrected(prepared: Graph, folded: Graph, inputs: Sequence[Inputs], progress: Progress, seed: int = 0) -> Graph:
    """The prepared graph with biases from which each layer's mean error is taken.

        b <- b - (E[y^] - E[y])    for each output channel

    Layer by layer in graph order: y^ is the layer's result in the network with everything quantised and
    all layers before corrected, y in the float network; both before the activation function. A layer
    without a bias gets one, named beside its weight.

    Args:
        prepared: fake-quantised; copied.
        folded: the same network in floating point.
        inputs: the calibration inputs.
        progress: shows a bar.
        seed: of the samples that are taken where there are more than `SAMPLES`.

    Source: Nagel et al. (2019), Data-Free Quantization Through Weight Equalization and Bias Correction,
    section 4.2, with means measured as in its appendix D; Banner et al. (2019), section 2.3, for weights.
    """
    result, kept = _with_biases(prepared)
    parts = chunks(result, inputs, SAMPLES, seed)
    quantised, exact = Staged(result, parts), Staged(folded, parts, kept)
    for i, name in enumerate(kept):
        progress("correct", i, len(kept))
        node = quantised.named[name]
        quantised.advance(quantised.place[node] + 1)
        dim = channel_dim(node)
        shift = _mean([values[node] for values in quantised.values], dim) - _mean(exact.take(name), dim)
        bias = result.tensors()[str(_bias(node).target)]  # type: ignore[union-attr]
        with torch.no_grad():
            bias -= shift.to(bias.dtype)
        for values in quantised.values:
            value = values[node]
            values[node] = value - shift.to(value.dtype).reshape([-1 if d == dim else 1 for d in range(value.ndim)])
    progress("correct", len(kept), len(kept))
    return result


def _mean(parts: Sequence[Tensor], dim: int) -> Tensor:
    """The mean over everything but one dimension, float64."""
    others = [d for d in range(parts[0].ndim) if d != dim]
    count = sum(part.numel() // part.shape[dim] for part in parts)
    sums = [part.detach().sum(others, dtype=torch.float64) for part in parts]
    return torch.stack(sums).sum(0) / count


def _bias(node: Node) -> Node | None:
    index = 0 if node.target is _ATEN.addmm.default else 2
    value = node.args[index] if len(node.args) > index else node.kwargs.get("bias")
    return value if isinstance(value, Node) else None


def _with_biases(prepared: Graph) -> tuple[Graph, list[str]]:
    """A copy in which every layer that can has a bias of its own, and the names of these layers' nodes."""
    result = prepared.copy()
    nodes, found, left = result.net.graph, [], []
    for node, weight in weighted(result).items():
        bias = _bias(node)
        if bias is None and _takes_bias(node):
            name, value = _free(result, weight), result.tensors()[weight]
            place(result.net, name, nn.Parameter(torch.zeros(value.shape[output_dim(node)]).to(value)))
            with nodes.inserting_before(node):
                bias = nodes.get_attr(name)
            node.args = (*node.args[:2], bias, *node.args[3:])
        own = bias is not None and bias.op == "get_attr" and len(bias.users) == 1
        if own and len(nodes.find_nodes(op="get_attr", target=bias.target)) == 1:  # type: ignore[union-attr]
            found.append(node.name)
        else:
            left.append(weight.removesuffix(".weight"))
    result.net.recompile()
    lines = [f"Bias correction leaves out layers without a bias of their own: {', '.join(left)}."] if left else []
    return shaped(result).note(*lines), found


def _takes_bias(node: Node) -> bool:
    return node.target in CONVOLUTIONS or node.target is _ATEN.linear.default


def _free(graph: Graph, weight: str) -> str:
    owner = weight.rpartition(".")[0]
    name = f"{owner}.bias" if owner else "bias"
    while name in graph.tensors():
        name += "_"
    return name
