"""Branches: one ONNX model with a branch for each layer, to time many layers in one profile."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import ExportError
from trimtab.hardware.layer import Layer
from trimtab.run.kernels import kernel_times
from trimtab.run.runtime import Array

_REORDER = re.compile(r"abcd|acdb|Reorder|Transpose", re.IGNORECASE)
"""Names of the layout changes that a runtime puts at the borders of a branch."""
_CHUNK = 64
"""Layers in one model."""


def layer_times(
    shapes: Sequence[Layer], precision: str, runtime: str, batch: int = 1, threads: int = 1
) -> dict[Layer, float]:
    """Seconds of each layer on this machine, timed as branches of one model, each kernel by the runtime's profiler.

    So conversions at the borders do not count.

    Args:
        shapes: without repeats.
        precision: `fp32` or `int8`.
        runtime: one of this machine's; those that read no ONNX file time layers in their own way (`alone_times`).
        batch: samples in the inputs.
        threads: that the runtime may use.

    Raises:
        ExportError: the runtime names no kernel for a layer.
    """
    if runtime in ("executorch", "inductor"):
        from trimtab.run.alone import alone_times  # brings torch

        return alone_times(shapes, precision, runtime, batch, threads)
    found: dict[Layer, float] = {}
    for start in range(0, len(shapes), _CHUNK):
        found.update(_timed(shapes[start : start + _CHUNK], precision, runtime, batch, threads))
    return found


def _timed(shapes: Sequence[Layer], precision: str, runtime: str, batch: int, threads: int) -> dict[Layer, float]:
    model, feeds = branches(shapes, precision, batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        path.write_bytes(model.SerializeToString())
        times = kernel_times(path, runtime, feeds, threads=threads)
    found = {}
    for k, layer in enumerate(shapes):
        name = f"layer{k:03d}"
        own = [seconds for node, seconds in times.items() if name in node and not _REORDER.search(node)]
        if not own:
            raise ExportError(f"latency table: {runtime} names no kernel for a layer", where=layer)
        found[layer] = max(own)
    return found


def branches(shapes: Sequence[Layer], precision: str, batch: int) -> tuple[Any, dict[str, Array]]:
    """One ONNX model with a branch for each layer; a quantised one as the runtimes fuse it (u8 in, s8 weight).

    Args:
        shapes: branch k is named `layer%03d` of k.
        precision: `fp32` or `int8`.
        batch: samples in the inputs.

    Returns:
        the ModelProto, and arrays by input name.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    integer = precision == "int8"
    kind, dtype = (TensorProto.UINT8, np.uint8) if integer else (TensorProto.FLOAT, np.float32)
    scalars = [numpy_helper.from_array(np.array(0.02, np.float32), "s"), numpy_helper.from_array(np.uint8(0), "z")]
    nodes, ins, outs, constants, feeds = [], [], [], list(scalars), {}
    for k, layer in enumerate(shapes):
        name = f"layer{k:03d}"
        x, w, y, quantised = f"{name}.x", f"{name}.w", f"{name}.y", integer and bool(layer.kernel)
        shape = (batch, layer.inputs, *layer.spatial) if layer.kernel else (batch * layer.spatial[0], layer.inputs)
        weight = rng.integers(-127, 128, (layer.outputs, layer.inputs // layer.groups, *layer.kernel))
        feeds[x] = rng.integers(0, 255, shape).astype(dtype)
        ins.append(helper.make_tensor_value_info(x, kind, shape))
        # A linear layer gives floats: a quantised output of Gemm runs on a reference kernel in OpenVINO.
        outs.append(helper.make_tensor_value_info(y, kind if quantised else TensorProto.FLOAT, None))
        constants.append(numpy_helper.from_array(weight.astype(np.int8 if integer else np.float32), w))
        constants.append(numpy_helper.from_array(np.zeros(layer.outputs, np.float32), f"b{k}"))
        if integer:
            constants.append(numpy_helper.from_array(np.full(layer.outputs, 1e-3, np.float32), f"ws{k}"))
            constants.append(numpy_helper.from_array(np.zeros(layer.outputs, np.int8), f"wz{k}"))
            nodes.append(helper.make_node("DequantizeLinear", [x, "s", "z"], [f"xd{k}"]))
            nodes.append(helper.make_node("DequantizeLinear", [w, f"ws{k}", f"wz{k}"], [f"wd{k}"], axis=0))
            x, w = f"xd{k}", f"wd{k}"
        if layer.kernel:
            settings = {"kernel_shape": layer.kernel, "strides": layer.stride, "dilations": layer.dilation}
            pads = layer.padding * 2
            last = f"r{k}" if quantised else y
            op = helper.make_node("Conv", [x, w, f"b{k}"], [f"c{k}"], name, group=layer.groups, pads=pads, **settings)
            nodes += [op, helper.make_node("Relu", [f"c{k}"], [last])]
        else:
            nodes.append(helper.make_node("Gemm", [x, w, f"b{k}"], [y], name, transB=1))
        if quantised:
            nodes.append(helper.make_node("QuantizeLinear", [f"r{k}", "s", "z"], [y]))
    graph = helper.make_graph(nodes, "layers", ins, outs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), feeds
