"""Lowered: a graph with the kernels that torch.compile chooses on an x86 CPU, oneDNN's integer ones among them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from trimtab.core.errors import FileError, NotRunnable
from trimtab.graph.fuse import fold_batch_norm, for_inference
from trimtab.graph.model import Graph
from trimtab.graph.save import load
from trimtab.graph.signed import is_quantised
from trimtab.graph.simplify import simplify
from trimtab.run.export import quiet
from trimtab.run.lacks import refuse_few_bits

INTEGER = ("onednn.qconv", "onednn.qlinear", "onednn.qmatmul")
_FLOAT = ("aten.convolution", "aten.conv", "aten.linear", "aten.addmm", "aten.mm", "aten.bmm")


def graph_beside(file: Path) -> Graph:
    """The graph that stands beside an ONNX file.

    Raises:
        FileError: it is missing or damaged.
    """
    if not file.exists():
        raise FileError("inductor", where=file, got="No such file")
    return load(file.parent, file.stem)


def lowered(graph: Graph, inputs: tuple[Tensor, ...]) -> GraphModule:
    """The deployed form of a graph for inputs of fixed shapes, with integer kernels where torchao finds their pattern.

    A quantised graph goes through torchao's lowering to x86, which needs dequantise, layer, activation and quantise
    nodes as `Quantise` writes them. A float one is left to torch.compile.

    Raises:
        NotRunnable: torch cannot export or lower it.
    """
    refuse_few_bits(graph, "inductor")
    own = graph.to("cpu")
    try:
        with quiet(), torch.no_grad():
            if not is_quantised(own):
                return torch.export.export(for_inference(own).net, inputs, strict=False).module(check_guards=False)
            from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

            found: GraphModule = lower_pt2e_quantized_to_x86(fold_batch_norm(simplify(own)).net, inputs)
            return found
    except RuntimeError as error:
        raise NotRunnable("inductor: torch cannot lower this network", got=str(error).splitlines()[0][:200]) from error


def multiplications(net: GraphModule) -> Iterator[tuple[Node, bool]]:
    """The nodes of a lowered network that multiply by stored weights, and whether in integers, in order."""
    constants = {n for n in net.graph.nodes if n.op == "get_attr"}
    for node in net.graph.nodes:
        name = str(node.target)
        if name.startswith(INTEGER):
            yield node, True
        elif name.startswith(_FLOAT) and any(_constant(n, constants) for n in node.all_input_nodes[1:]):
            yield node, False


def _constant(node: Node, constants: set[Node]) -> bool:
    if node in constants:
        return True
    return bool(node.all_input_nodes) and all(_constant(n, constants) for n in node.all_input_nodes)
