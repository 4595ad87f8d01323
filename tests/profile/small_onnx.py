"""Small ONNX networks for the profile's tests."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def model(nodes, constants, inputs, outputs):
    """A ModelProto; inputs and outputs as {name: shape}, floats."""
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in some.items()]
        for some in (inputs, outputs)
    ]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def residual():
    """conv1, relu, conv2, add, relu, mean, fc: [batch, 3, 8, 8] to [batch, 10]."""
    rng = np.random.default_rng(0)
    constants = {
        "conv1.weight": rng.standard_normal((16, 3, 3, 3), np.float32),
        "conv1.bias": rng.standard_normal(16, np.float32),
        "conv2.weight": rng.standard_normal((16, 16, 3, 3), np.float32),
        "fc.weight": rng.standard_normal((16, 10), np.float32),
        "axes": np.array([2, 3]),
    }
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "conv1.weight", "conv1.bias"], ["a"], pads=pads),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv2.weight"], ["c"], pads=pads),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("ReduceMean", ["e", "axes"], ["f"], keepdims=0),
        helper.make_node("MatMul", ["f", "fc.weight"], ["y"]),
    ]
    return model(nodes, constants, {"x": ["batch", 3, 8, 8]}, {"y": ["batch", 10]})


def quantised():
    """One convolution between quantised borders: x, Q, DQ, conv(DQ(weight)), Q, DQ, y; 4 to 8 channels, 6 x 6."""
    rng = np.random.default_rng(0)
    constants = {
        "conv.weight": rng.integers(-127, 128, (8, 4, 3, 3), np.int8),
        "scale": np.array(0.05, np.float32),
        "zero": np.array(128, np.uint8),
        "weight_scale": np.array(0.01, np.float32),
        "weight_zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["conv.weight", "weight_scale", "weight_zero"], ["w"]),
        helper.make_node("Conv", ["d", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "scale", "zero"], ["y"]),
    ]
    return model(nodes, constants, {"x": ["batch", 4, 6, 6]}, {"y": ["batch", 8, 6, 6]})
