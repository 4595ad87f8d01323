"""Lower: a point's graph as an ExecuTorch program for the Ethos-U, with the TOSA programs that Vela compiles."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.core.errors import NotRunnable, RuntimeMissing
from trimtab.graph.model import Graph
from trimtab.run.ethos.configuration import Configuration
from trimtab.run.ethos.integers import between_integers, whole
from trimtab.run.export import quiet
from trimtab.run.fusable import ETHOS_U
from trimtab.run.lacks import refuse_few_bits

_BORDER = ("quantize_per_", "getitem", "executorch_call_delegate")
"""What stands outside the processor and computes nothing of the network."""
_WEIGHTED = ("convolution", "linear", "addmm", "mm")
_NAME = "trimtab"
_KNOWN = {
    *(op for kind in (ETHOS_U.weighted, ETHOS_U.joins, ETHOS_U.shares, ETHOS_U.concats, ETHOS_U.units) for op in kind),
    torch.ops.aten.avg_pool2d.default,
} - {torch.ops.aten.mean.dim, torch.ops.aten.adaptive_avg_pool2d.default}
"""What the backend takes in integers; a mean that is no average pool makes it fail."""


@dataclass(frozen=True)
class Part:
    """What the Ethos-U runs in one go.

    Args:
        network: its TOSA program.
        names: the user's layer with weights that a tensor of the program is the result of, by the tensor's name.
    """

    network: bytes
    names: Mapping[str, str]


@dataclass(frozen=True)
class Lowered:
    """A network for the Ethos-U.

    Args:
        program: the `.pte` file.
        parts: what the Ethos-U runs, in order; more than one where operators between them run elsewhere.
        fallen: operators that run on the processor beside it instead, by name.
    """

    program: bytes
    parts: tuple[Part, ...]
    fallen: tuple[str, ...]


def lowered(graph: Graph, how: Configuration, where: object = None) -> Lowered:
    """A quantised graph as a program for one Ethos-U, at batch 1.

    Args:
        graph: quantised.
        how: the processor and its memories.
        where: for messages.

    Raises:
        InputError: the graph is not quantised. RuntimeMissing: the extra `npu` is not installed.
        NotRunnable: nothing of it runs on the Ethos-U, or the backend fails on an operator.
    """
    refuse_few_bits(graph, how.name)
    own = whole(graph)
    with quiet(), torch.no_grad(), tempfile.TemporaryDirectory(prefix="tosa") as folder:
        try:
            # registers the kernels that quantise and dequantise at the border
            import executorch.kernels.quantized  # noqa: F401
            from executorch.backends.arm.ethosu import EthosUCompileSpec, EthosUPartitioner
            from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
        except ImportError as error:
            raise RuntimeMissing("Ethos-U", got=error, do="Install it with: pip install 'trimtab[npu]'.") from error
        _mark(own)
        setting = EthosUCompileSpec(how.accelerator, how.system_config, how.mode)
        setting.dump_intermediate_artifacts_to(folder)
        try:
            exported = torch.export.export(own.net, own.example(1), strict=False)
            edge = to_edge_transform_and_lower(
                exported,
                partitioner=[EthosUPartitioner(setting)],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),  # quantised operators are not core ATen
            )
            fallen = tuple(_outside(edge.exported_program()))
            networks = [file.read_bytes() for file in sorted(Path(folder).glob("output_*.tosa"), key=_order)]
            if not networks:
                raise NotRunnable(f"{how.name}: nothing of it runs there", where=where, got=", ".join(fallen))
            layers = list(_inside(edge.exported_program()))
            parts = tuple(Part(n, _names(n, own)) for n, own in zip(networks, layers, strict=True))
            return Lowered(bytes(edge.to_executorch().buffer), parts, fallen)
        except NotRunnable:
            raise
        except Exception as error:  # exir raises whatever a pass or an operator's visitor raises
            raise NotRunnable(f"{how.name}: the network cannot be lowered", where=where, got=_cause(error)) from error


def _mark(graph: Graph) -> None:
    """Say of each node whether it computes in integers, as Arm's own quantiser does, and which of ours it is."""
    from executorch.backends.arm.common.annotation_meta import ArmAnnotationInfo

    for node in graph.nodes():
        if "quantize_per" not in str(node.target):
            arm = dict(ArmAnnotationInfo(quantized=node.target in _KNOWN and between_integers(node)))
            node.meta["custom"] = {ArmAnnotationInfo.CUSTOM_META_KEY: arm, _NAME: _own_name(node)}


def _own_name(node: Any) -> str:
    """The user's name of a layer, from its weight, dequantised or not; the node's own where it has none."""
    for weight in node.all_input_nodes[1:2]:
        for stored in (weight, *weight.all_input_nodes[:1]):
            if stored.op == "get_attr":
                return str(stored.target).removesuffix(".weight")
    return str(node.name)


def _outside(program: Any) -> Iterator[str]:
    for node in program.graph_module.graph.nodes:
        if node.op == "call_function" and not any(word in str(node.target) for word in _BORDER):
            yield f"{_plain(node)} ({node.meta.get('custom', {}).get(_NAME, node.name)})"


def _inside(program: Any) -> Iterator[list[str]]:
    """The user's names of the layers with weights of each part, in order."""
    for module in program.graph_module.children():
        inner = getattr(module, "original_module", None)
        if inner is not None:
            yield [
                str(node.meta.get("custom", {}).get(_NAME, node.name))
                for node in inner.graph_module.graph.nodes
                if node.op == "call_function" and _plain(node) in _WEIGHTED
            ]


def _names(network: bytes, layers: Sequence[str]) -> dict[str, str]:
    """The layer behind each tensor that a convolution of a TOSA program gives, itself or only scaled or moved."""
    from tosa.Op import Op
    from tosa.TosaGraph import TosaGraph

    weighted = (Op.CONV2D, Op.CONV3D, Op.DEPTHWISE_CONV2D, Op.MATMUL, Op.TRANSPOSE_CONV2D)
    block = TosaGraph.GetRootAs(network).Regions(0).Blocks(0)
    operators = [block.Operators(i) for i in range(block.OperatorsLength())]
    if len([o for o in operators if o.Op() in weighted]) != len(layers):
        return {}
    names, left = {}, iter(layers)
    for operator in operators:
        result = operator.Outputs(0).decode()
        if operator.Op() in weighted:
            names[result] = next(left)
        elif operator.Op() in (Op.RESCALE, Op.RESHAPE, Op.CLAMP) and operator.Inputs(0).decode() in names:
            names[result] = names[operator.Inputs(0).decode()]
    return names


def _plain(node: Any) -> str:
    """`aten.convolution.default` of the edge dialect as `convolution`."""
    name = str(getattr(node.target, "__name__", node.target)).replace("::", ".")
    return next((part for part in name.split(".") if part not in ("aten", "quantized_decomposed")), name)


def _order(file: Path) -> tuple[int, str]:
    """Parts in their order: the number in `output_tag3_TOSA-1.0...tosa`."""
    tag = "".join(c for c in file.name.split("_")[1] if c.isdigit()) if "_" in file.name else ""
    return int(tag or 0), file.name


def _cause(error: BaseException) -> str:
    """The first line of what an error came from, without the trace that the passes wrap around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
