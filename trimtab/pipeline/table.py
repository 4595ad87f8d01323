"""Latency table: seconds of one layer by shape, precision and runtime, measured once and kept."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.core.errors import ExportError
from trimtab.core.store import Store, cache_folder, digest
from trimtab.core.target import Target
from trimtab.graph.model import EXAMPLE_BATCH, Graph
from trimtab.run.kernels import kernel_times

A = torch.ops.aten
CONVOLUTIONS = (A.conv1d.default, A.conv2d.default, A.conv3d.default)
LAYERS = (*CONVOLUTIONS, A.linear.default)
PRECISIONS = ("fp32", "int8")
_REORDER = re.compile(r"abcd|acdb|Reorder|Transpose", re.IGNORECASE)
"""Names of the layout changes that a runtime puts at the borders of a branch."""


@dataclass(frozen=True)
class Layer:
    """The shape of one convolution or linear layer: all that its time depends on.

    Args:
        inputs: channels or features in.
        outputs: channels or features out.
        kernel: its sides; empty for a linear layer.
        spatial: sides of the input, or rows of a linear layer (without the batch).
        stride: per side.
        padding: per side.
        dilation: per side.
        groups: of a convolution.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    spatial: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.outputs * (self.inputs // self.groups) * int(np.prod(self.kernel))

    @property
    def macs(self) -> int:
        """Multiply-adds for one sample (EQUATIONS 1)."""
        sides = zip(self.spatial, self.kernel, self.stride, self.padding, self.dilation, strict=False)
        out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides] if self.kernel else self.spatial
        return self.weights * int(np.prod(out, dtype=int))


def layers(graph: Graph) -> dict[str, Layer]:
    """The layers of a graph that the table can time, by the name of their weight, once each."""
    found: dict[str, Layer] = {}
    for node in graph.nodes(*LAYERS):
        layer = _layer(node)
        weight = node.args[1]
        if layer is not None and isinstance(weight, Node) and weight.op == "get_attr":
            found.setdefault(str(weight.target), layer)
    return found


def _layer(node: Node) -> Layer | None:
    shape = tuple(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
    weight = tuple(node.args[1].meta["val"].shape)  # type: ignore[union-attr]
    if node.target == A.linear.default:
        return Layer(weight[1], weight[0], spatial=(int(np.prod(shape[:-1], dtype=int)) // EXAMPLE_BATCH or 1,))
    given: list[Any] = list(node.args[3:])
    defaults: list[Any] = [[1], [0], [1], 1]
    stride, padding, dilation, groups = given + defaults[len(given) :]
    sides = len(weight) - 2
    if isinstance(padding, str):
        return None

    def each(value: Any) -> tuple[int, ...]:
        values = [value] if isinstance(value, int) else list(value)
        return tuple(int(v) for v in (values * sides if len(values) == 1 else values))

    return Layer(shape[1], weight[0], weight[2:], shape[2:], each(stride), each(padding), each(dilation), int(groups))


def measure(shapes: Iterable[Layer], target: Target, runtime: str, machine: str) -> dict[tuple[Layer, str], float]:
    """Seconds of each layer in fp32 and int8 on the runtime, from the table or measured now.

    All layers that are not in the table are measured as branches of one model, each kernel timed
    by the runtime's own profiler, so that conversions at the borders do not count.

    Args:
        shapes: the layers.
        target: gives batch and threads.
        runtime: its name.
        machine: identity of this machine and of the runtime's version.
    """
    store = Store(cache_folder() / "layers")
    keys = {
        (layer, p): digest("layer", layer, p, runtime, target.batch, target.threads, machine)
        for layer in shapes
        for p in PRECISIONS
    }
    missing = [entry for entry, key in keys.items() if store.get(key) is None]
    for precision in PRECISIONS:
        todo = list(dict.fromkeys(layer for layer, p in missing if p == precision))
        for chunk in (todo[i : i + 64] for i in range(0, len(todo), 64)):
            for layer, seconds in _time(chunk, precision, target, runtime).items():
                store.put(keys[layer, precision], {"seconds": seconds})
    return {entry: float(store.get(key)["seconds"]) for entry, key in keys.items()}  # type: ignore[index]


def _time(shapes: Sequence[Layer], precision: str, target: Target, runtime: str) -> dict[Layer, float]:
    model, feeds = _branches(shapes, precision, target.batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        path.write_bytes(model.SerializeToString())
        times = kernel_times(path, runtime, feeds, threads=target.threads)
    found = {}
    for k, layer in enumerate(shapes):
        name = f"layer{k:03d}"
        own = [seconds for node, seconds in times.items() if name in node and not _REORDER.search(node)]
        if not own:
            raise ExportError(f"latency table: {runtime} names no kernel for a layer", where=layer, got=sorted(times))
        found[layer] = max(own)
    return found


def _branches(shapes: Sequence[Layer], precision: str, batch: int) -> tuple[Any, dict[str, np.ndarray]]:
    """One ONNX model with a branch for each layer; a quantised one as the runtimes fuse it (u8 in, s8 weight)."""
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
