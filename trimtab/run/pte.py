"""Pte: a point's graph as an ExecuTorch program for XNNPACK, with an account of what runs where."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from trimtab.core.errors import FileError, NotRunnable
from trimtab.core.store import write_atomic
from trimtab.graph.fuse import fold_batch_norm, for_inference
from trimtab.graph.model import Graph, shaped
from trimtab.graph.save import load
from trimtab.graph.signed import float_biases, is_quantised, signed
from trimtab.graph.simplify import simplify
from trimtab.run.export import quiet
from trimtab.run.lacks import refuse_few_bits

_ATEN = torch.ops.aten
ACCOUNT = "trimtab"
"""The program's method that returns, as JSON, the names of inputs and outputs, the layers, and what fell back."""
_WEIGHTS = {"convolution": 1, "linear": 1, "addmm": 2, "mm": 1, "bmm": 1}
"""Position of the weight among an operator's arguments."""
_BETWEEN = ("dequantize_per_channel", "dequantize_per_tensor", "permute_copy", "t_copy", "view_copy", "squeeze_copy")
_FREE = ("getitem", "executorch_call_delegate", "alloc", "view_copy", "dim_order")


def made(file: Path, batch: int = 1) -> Path:
    """The program beside an ONNX file, for a fixed batch: `model.pte`, `model.b8.pte`.

    It is lowered from the graph beside where it is missing or belongs to another graph. A program that stands
    without a graph is taken as it is.

    Raises:
        FileError: there is neither graph nor program. NotRunnable: an operator has no kernel in ExecuTorch.
    """
    path = file.with_name(f"{file.stem}.pte" if batch == 1 else f"{file.stem}.b{batch}.pte")
    graph = file.with_name(f"{file.stem}.trim.json")
    if not graph.exists():
        if path.exists():
            return path
        raise FileError("executorch: no graph beside the ONNX file", where=graph, do="Keep a point's files together.")
    source = hashlib.sha256(graph.read_bytes()).hexdigest()
    if not path.exists() or _source(path) != source:
        data = lowered(load(file.parent, file.stem), batch, {"source": source}, where=path)
        write_atomic(path, lambda temporary: temporary.write_bytes(data))
    return path


def _source(path: Path) -> str | None:
    """The hash of the graph that a program was made of; None where it tells none, or is damaged."""
    try:
        return str(account(path).get("source"))
    except FileError:
        return None


def account(path: Path) -> Mapping[str, Any]:
    """What a program says of itself; empty where trimtab did not make it.

    Raises:
        FileError: the file is no ExecuTorch program.
    """
    found = program(path)
    if ACCOUNT not in {found.get_method_name(i) for i in range(found.num_methods())}:
        return {}
    try:
        said = json.loads(found.load_method(ACCOUNT).call([])[0])
    except (ValueError, TypeError, RuntimeError) as error:
        raise FileError("executorch: not a program that trimtab wrote", where=path, got=error) from error
    return said if isinstance(said, dict) else {}


def outside(file: Path, batch: int = 1) -> tuple[str, ...]:
    """Operators of the program beside an ONNX file that fell back to portable kernels, by name."""
    said = account(made(file, batch)).get("outside", [])
    return tuple(str(name) for name in said) if isinstance(said, list) else ()


def program(path: Path, etdump: bool = False) -> Any:
    """The ExecuTorchProgram of a file, its structure verified; FileError if it is none."""
    from executorch.extension.pybindings import portable_lib

    try:
        return portable_lib._load_program(
            str(path), enable_etdump=etdump, program_verification=portable_lib.Verification.InternalConsistency
        )
    except RuntimeError as error:
        got = "no such file" if not path.exists() else "not a program of this version, or damaged"
        raise FileError("ExecuTorch cannot load", where=path, got=got) from error


def lowered(graph: Graph, batch: int, facts: Mapping[str, Any], where: object = None) -> bytes:
    """A graph as an ExecuTorch program, what XNNPACK has in XNNPACK, the rest in portable kernels.

    Args:
        graph: float, or quantised with uint8 activations, which become int8.
        batch: samples of its inputs.
        facts: to go into its account.
        where: for messages.

    Raises:
        NotRunnable: an operator has no kernel in ExecuTorch.
    """
    refuse_few_bits(graph, "executorch")
    own = prepared(graph)
    inputs = own.example(batch)
    with quiet(), torch.no_grad():
        from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower

        settings = lowering()
        exported = torch.export.export(own.net, inputs, strict=False)
        try:
            edge = to_edge_transform_and_lower(exported, **settings).exported_program()
            said = json.dumps({**facts, **_account(own, edge)}, sort_keys=True)
            manager = EdgeProgramManager(edge, {ACCOUNT: said}, settings["compile_config"])
            return bytes(manager.to_executorch().buffer)
        except Exception as error:  # exir raises whatever a pass or an operator's visitor raises
            line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
            raise NotRunnable(
                "executorch: no program can be made of this network",
                where=where,
                got=line[:200],
                do="Quantise it for this target, or use another runtime.",
            ) from error


def lowering() -> dict[str, Any]:
    """The arguments of `to_edge_transform_and_lower`: to XNNPACK what it has."""
    # registers the kernels that quantise and dequantise outside XNNPACK
    import executorch.kernels.quantized  # noqa: F401
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig

    return {
        "partitioner": [XnnpackPartitioner()],
        "compile_config": EdgeCompileConfig(_check_ir_validity=False),  # quantised operators are not core ATen
    }


def prepared(graph: Graph) -> Graph:
    """A graph in the form that XNNPACK takes: int8 activations, float biases, means that keep their dimensions."""
    own = graph.to("cpu")
    own = float_biases(signed(fold_batch_norm(simplify(own)))) if is_quantised(own) else for_inference(own)
    nodes = own.net.graph
    for node in list(own.nodes(_ATEN.mean.dim)):
        dims, value = [int(d) for d in node.args[1]], node.meta["val"]  # type: ignore[union-attr, arg-type]
        kept = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if not kept and value.ndim == 2 and sorted(d % 4 for d in dims) == [2, 3]:  # [N, C, H, W] -> [N, C]
            with nodes.inserting_before(node):
                mean = nodes.call_function(_ATEN.mean.dim, (node.args[0], dims, True))
                flat = nodes.call_function(_ATEN.flatten.using_ints, (mean, 1))
            node.replace_all_uses_with(flat)
            nodes.erase_node(node)
    own.net.recompile()
    return shaped(own)


def _account(graph: Graph, exported: Any) -> dict[str, Any]:
    outside = [n for n in exported.graph_module.graph.nodes if n.op == "call_function" and not _free(n)]
    layers = [*_layers(exported, "portable")]
    delegates = 0
    for module in exported.graph_module.children():
        inner = getattr(module, "original_module", None)
        if inner is not None:
            delegates += 1
            layers += _layers(inner, "XNNPACK")
    order = {name: i for i, name in enumerate(graph.tensors())}
    return {
        "inputs": [spec.name for spec in graph.inputs],
        "outputs": list(graph.outputs),
        "delegates": delegates,
        "outside": sorted({_plain(n) for n in outside}),
        "layers": sorted(layers, key=lambda row: order.get(row["weight"], math.inf)),
        "sequence": list(_sequence(exported)),
    }


def _sequence(exported: Any) -> Iterator[str]:
    """The layers that XNNPACK multiplies, by the user's names, in the order in which they run."""
    for node in exported.graph_module.graph.nodes:
        if "executorch_call_delegate" in str(node.target):
            inner = getattr(exported.graph_module, str(node.args[0].target)).original_module
            yield from (row["weight"].removesuffix(".weight") for row in _layers(inner, "XNNPACK"))


def _layers(exported: Any, where: str) -> Iterator[dict[str, Any]]:
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in exported.graph_module.graph.nodes:
        position = _WEIGHTS.get(_plain(node)) if node.op == "call_function" else None
        if position is None:
            continue
        source, quantised = _origin(node.args[position])
        if source.name not in names:
            continue
        stored = source.meta["val"].dtype
        integer = quantised and where == "XNNPACK" and _quantised(node)
        yield {
            "weight": names[source.name],
            "op": _plain(node),
            "quantised": stored in (torch.int8, torch.uint8),
            "precision": "int8" if integer else "fp32",
            "kernel": where,
        }


def _origin(node: Node) -> tuple[Node, bool]:
    """The node that a weight comes from, and whether it is dequantised on the way."""
    quantised = False
    while node.op == "call_function" and _plain(node) in _BETWEEN:
        quantised |= _plain(node).startswith("dequantize")
        node = node.all_input_nodes[0]
    return node, quantised


def _quantised(node: Node) -> bool:
    """Whether a layer reads a dequantised tensor: inside XNNPACK it then multiplies integers."""
    reads = node.args[1 if _plain(node) == "addmm" else 0]
    return isinstance(reads, Node) and _plain(reads).startswith("dequantize")


def _free(node: Node) -> bool:
    return any(word in str(node.target) for word in _FREE)


def _plain(node: Node) -> str:
    """`aten.convolution.default` of the edge dialect as `convolution`."""
    name = str(getattr(node.target, "__name__", node.target))
    parts = [p for p in name.replace("::", ".").split(".") if p not in ("aten", "quantized_decomposed")]
    return parts[0] if parts else name
