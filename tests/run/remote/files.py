"""Small ONNX files, written by hand: a convolution in floats, in integers, and one that is neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trimtab.hardware.layer import Layer
from trimtab.run.branches import branches

LAYER = Layer(8, 16, (3, 3), (12, 12), (1, 1), (1, 1), (1, 1))
IMAGE = np.random.default_rng(0).integers(0, 255, (1, 8, 12, 12)).astype(np.uint8)


def integer(path: Path, layer: Layer = LAYER) -> Path:
    """A quantised convolution, of bytes."""
    model, _ = branches([layer], "int8", 1)
    for held in model.graph.initializer:  # so that no processor's kernels clip their sums
        if held.data_type == TensorProto.INT8:
            held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) // 2, held.name))
    path.write_bytes(model.SerializeToString())
    return path


def half_integer(path: Path) -> Path:
    """A convolution of integers whose result is not quantised: it runs in floats."""
    constants = [
        numpy_helper.from_array(np.ones((16, 8, 3, 3), np.int8), "w"),
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.int8(0), "z"),
        numpy_helper.from_array(np.uint8(0), "u"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("QuantizeLinear", ["x", "s", "u"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "u"], ["xd"]),
        helper.make_node("Conv", ["xd", "wd"], ["y"], "conv"),
    ]
    ins = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, 12, 12))]
    outs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "half", ins, outs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def elsewhere(path: Path, location: str) -> Path:
    """A file whose weight lies in another file."""
    model = onnx.load(half_integer(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    return path
