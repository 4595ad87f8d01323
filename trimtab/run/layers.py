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
_PASS = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Cast", "Identity")


@dataclass(frozen=True)
class Layer:
    """A node with a weight.

    Args:
        name: the weight's name without `.weight`; where that is not the user's, the bias's without `.bias`.
        op: the ONNX operator.
        weight: name of the constant.
        marks: names that a runtime may call it by: its output's, its own, and those of what it may be merged with.
        quantised: the weight is stored in integers of 8 bits or fewer.
    """

    name: str
    op: str
    weight: str
    marks: tuple[str, ...]
    quantised: bool


def layers(model: Any) -> tuple[Layer, ...]:
    """The convolutions and matrix products with constant weights of an onnx.ModelProto, in order."""
    constants = {t.name: t for t in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    return tuple(
        Layer(
            name=_name(node, weight, constants),
            op=node.op_type,
            weight=weight,
            marks=(*filter(None, (node.output[0], node.name)), *_behind(model, node)),
            quantised=_is_integer(constants[weight]),
        )
        for node, weight in _weighted(model, constants, producers)
    )


def source(name: str, constants: dict[str, Any], producers: dict[str, Any]) -> str | None:
    """The constant that a value comes from through casts, transposes and (de)quantisation, or None."""
    for _ in range(16):
        if name in constants:
            return name
        node = producers.get(name)
        if node is None or node.op_type not in _PASS:
            return None
        name = node.input[0]
    return None


def _weighted(model: Any, constants: dict[str, Any], producers: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    for node in model.graph.node:
        index = _WEIGHT.get(node.op_type)
        if index is not None and len(node.input) > index:
            weight = source(node.input[index], constants, producers)
            if weight is not None and len(constants[weight].dims) > 1:
                yield node, weight


def _behind(model: Any, node: Any) -> Iterator[str]:
    """Outputs of what alone reads a node: bias additions and activations that runtimes merge into it."""
    for _ in range(3):
        readers = [n for n in model.graph.node if node.output[0] in n.input]
        if len(readers) != 1 or readers[0].op_type in _WEIGHT:
            return
        node = readers[0]
        yield node.output[0]
        if node.name:
            yield node.name


def _is_integer(tensor: Any) -> bool:
    from onnx import TensorProto

    small = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)
    return tensor.data_type in small


def _name(node: Any, weight: str, constants: dict[str, Any]) -> str:
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    biases = [n for n in node.input[2:] if n in constants and n.endswith("bias")]
    if biases:
        return str(biases[0]).removesuffix("bias").removesuffix("_").removesuffix(".").removesuffix(".weight")
    return weight
