"""Small ONNX models whose cost is known in advance: what the probe times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Precision = Literal["fp32", "int8"]
_OPSET, _IR = 19, 9
_ACTIVATION_SCALE, _WEIGHT_SCALE = 0.02, 0.01


@dataclass(frozen=True)
class Workload:
    """A model to time.

    Args:
        name: for the reader.
        model: an onnx.ModelProto.
        inputs: by name.
        macs: multiply-adds of one run.
    """

    name: str
    model: Any
    inputs: dict[str, npt.NDArray[Any]]
    macs: int


def product(size: int, precision: Precision) -> Workload:
    """A matrix product [size, size] x [size, size]: size^3 multiply-adds."""
    weight = _weights((size, size), precision)
    return _single(f"matrix product of {size}", "MatMul", (size, size), weight, size**3, precision)


def convolution(channels: int, side: int, precision: Precision) -> Workload:
    """A 3x3 convolution that keeps channels and sides: 9 channels^2 side^2 multiply-adds."""
    weight = _weights((channels, channels, 3, 3), precision)
    macs = 9 * channels**2 * side**2
    name = f"convolution of {channels} channels, {side} x {side}"
    return _single(name, "Conv", (1, channels, side, side), weight, macs, precision, pads=[1, 1, 1, 1])


def chain(nodes: int, channels: int = 16) -> Workload:
    """1x1 convolutions of one pixel, one after the other: all but the cost of a node is gone.

    Convolutions, because OpenVINO makes one kernel of several small matrix products.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    scale = np.float32(channels**-0.5)  # keeps the values of a long chain in range
    sides = (channels, channels, 1, 1)
    weights = [numpy_helper.from_array(rng.standard_normal(sides, np.float32) * scale, f"w{i}") for i in range(nodes)]
    steps = [helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"node{i}") for i in range(nodes)]
    shape = [1, channels, 1, 1]
    given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x0", f"x{nodes}"))
    model = _model(steps, given, made, weights)
    return Workload(f"chain of {nodes}", model, {"x0": np.ones(shape, np.float32)}, nodes * channels**2)


def _weights(shape: tuple[int, ...], precision: Precision) -> npt.NDArray[Any]:
    rng = np.random.default_rng(0)
    if precision == "int8":
        return rng.integers(-127, 128, shape, dtype=np.int8)
    return rng.standard_normal(shape, np.float32)


def _single(
    name: str,
    op: str,
    shape: tuple[int, ...],
    weight: npt.NDArray[Any],
    macs: int,
    precision: Precision,
    **settings: Any,
) -> Workload:
    """One node; quantised, it takes and gives unsigned bytes, so that no conversion stands at its borders."""
    from onnx import TensorProto, helper, numpy_helper

    constants = [numpy_helper.from_array(weight, "w")]
    if precision == "fp32":
        kind = TensorProto.FLOAT
        nodes = [helper.make_node(op, ["x", "w"], ["y"], "layer", **settings)]
    else:
        kind = TensorProto.UINT8
        constants += [
            numpy_helper.from_array(np.array(_ACTIVATION_SCALE, np.float32), "xs"),
            numpy_helper.from_array(np.array(128, np.uint8), "xz"),
            numpy_helper.from_array(np.array(_WEIGHT_SCALE, np.float32), "ws"),
            numpy_helper.from_array(np.array(0, np.int8), "wz"),
        ]
        nodes = [
            helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
            helper.make_node(op, ["xd", "wd"], ["yd"], "layer", **settings),
            helper.make_node("QuantizeLinear", ["yd", "xs", "xz"], ["y"]),
        ]
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    given, made = (helper.make_tensor_value_info(n, kind, shape) for n in ("x", "y"))
    return Workload(name, _model(nodes, given, made, constants), {"x": x}, macs)


def _model(nodes: list[Any], given: Any, made: Any, constants: list[Any]) -> Any:
    from onnx import helper

    graph = helper.make_graph(nodes, "probe", [given], [made], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
