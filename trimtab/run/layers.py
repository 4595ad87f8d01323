"""Layers: the nodes with weights of an ONNX model, by the user's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_WEIGHT = {
    "Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "QLinearConv": 3, "ConvInteger": 1, "QLinearMatMul": 3,
    "MatMulInteger": 1, "QGemm": 3,
}  # fmt: skip
"""Position of the weight among a node's inputs."""
_PASS = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Cast", "Identity", "Slice")
_BOTH = ("Add", "Mul")
"""The parts of packed levels are added, and levels alone scaled: both sides are constants then."""
_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Pad", "Relu", "Clip")


@dataclass(frozen=True)
class Layer:
    """A node with a weight.

    Args:
        name: the weight's name without `.weight`; where that is not the user's, the bias's without `.bias`.
        op: the ONNX operator.
        weight: name of the constant.
        marks: names that a runtime may call it by: its output's, its own, and those of what it may be merged with.
        quantised: the weight is stored in integers of 8 bits or fewer.
        stored: what the weight is stored in: `fp32`, `fp16`, `bf16`, `fp8`, or `integers`.
        meant: what it reads is in integers too, so that it should multiply integers.
    """

    name: str
    op: str
    weight: str
    marks: tuple[str, ...]
    quantised: bool
    stored: str = "fp32"
    meant: bool = False


def layers(model: Any) -> tuple[Layer, ...]:
    """The convolutions and matrix products with constant weights of an onnx.ModelProto, in order."""
    nodes, constants = parts(model.graph)
    producers = {name: node for node in nodes for name in node.output}
    return tuple(
        Layer(
            name=_name(node, weight, constants),
            op=node.op_type,
            weight=weight,
            marks=(*filter(None, (node.output[0], node.name)), *_behind(nodes, node)),
            quantised=_stored(constants[weight]) == "integers",
            stored=_stored(constants[weight]),
            meant=_stored(constants[weight]) == "integers" and _integer_input(node, producers),
        )
        for node, weight in _weighted(nodes, constants, producers)
    )


def parts(graph: Any) -> tuple[list[Any], dict[str, Any]]:
    """The nodes of an onnx.GraphProto in order and its constants by name, those of its branches among them."""
    nodes: list[Any] = []
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        nodes.append(node)
        for inner in (a.g for a in node.attribute if a.HasField("g")):
            more, held = parts(inner)
            nodes += more
            constants |= held
    return nodes, constants


def source(name: str, constants: dict[str, Any], producers: dict[str, Any]) -> str | None:
    """The constant that a value comes from through casts, transposes and (de)quantisation, or None."""
    for _ in range(16):
        if name in constants:
            return name
        node = producers.get(name)
        if node is None:
            return None
        if node.op_type == "Gather":  # a table, and the packed numbers that it gives levels for
            name = node.input[1]
        elif node.op_type in _PASS or (node.op_type in _BOTH and source(node.input[1], constants, producers)):
            name = node.input[0]
        else:
            return None
    return None


def _weighted(nodes: list[Any], constants: dict[str, Any], producers: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    for node in nodes:
        index = _WEIGHT.get(node.op_type)
        if index is not None and len(node.input) > index:
            weight = source(node.input[index], constants, producers)
            if weight is not None and (len(constants[weight].dims) > 1 or _packed(constants[weight])):
                yield node, weight


def _packed(tensor: Any) -> bool:
    """Whether a constant holds levels of few bits, in a row; what reads them gives them their shape."""
    from onnx import TensorProto

    return bool(tensor.data_type == TensorProto.UINT4)


def _behind(nodes: list[Any], node: Any) -> Iterator[str]:
    """Outputs of what alone reads a node: bias additions and activations that runtimes merge into it."""
    for _ in range(3):
        readers = [n for n in nodes if node.output[0] in n.input]
        if len(readers) != 1 or readers[0].op_type in _WEIGHT:
            return
        node = readers[0]
        yield node.output[0]
        if node.name:
            yield node.name


def _stored(tensor: Any) -> str:
    from onnx import TensorProto as T

    kinds = {
        **dict.fromkeys((T.INT8, T.UINT8, T.INT4, T.UINT4), "integers"),
        **dict.fromkeys((T.FLOAT8E4M3FN, T.FLOAT8E5M2), "fp8"),
        T.FLOAT16: "fp16",
        T.BFLOAT16: "bf16",
    }
    return kinds.get(tensor.data_type, "fp32")


def _integer_input(node: Any, producers: dict[str, Any]) -> bool:
    """Whether a node reads what was in integers right before, or was only moved since."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return True  # it takes integers only
    before = producers.get(node.input[0])
    for _ in range(16):
        if before is None or before.op_type not in _MOVES:
            break
        before = producers.get(before.input[0])
    return before is not None and before.op_type == "DequantizeLinear"


def _name(node: Any, weight: str, constants: dict[str, Any]) -> str:
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    biases = [n for n in node.input[2:] if n in constants and n.endswith("bias")]
    if biases:
        return str(biases[0]).removesuffix("bias").removesuffix("_").removesuffix(".").removesuffix(".weight")
    return weight
