"""Table: what one layer costs by shape, precision and device, found once and kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.core.store import Store, cache_folder, digest
from trimtab.core.target import Target
from trimtab.graph.model import EXAMPLE_BATCH, Graph
from trimtab.hardware.layer import Layer
from trimtab.run.device import Device

A = torch.ops.aten
CONVOLUTIONS = (A.conv1d.default, A.conv2d.default, A.conv3d.default)
LAYERS = (*CONVOLUTIONS, A.linear.default)


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


def measure(
    shapes: Iterable[Layer], device: Device, target: Target, version: str
) -> dict[tuple[Layer, str], dict[str, float]]:
    """What each layer costs at each precision of a device, from the table or asked of the device now.

    Args:
        shapes: the layers.
        device: that they run on.
        target: gives batch and threads.
        version: of what measures; what was kept under another one does not count.

    Returns:
        `latency` in s, and `energy` in J where the device knows it, by layer and precision.
    """
    store = Store(cache_folder() / "layers")
    keys = {
        (layer, p): digest("layer", layer, p, device.name, target.runtime, target.batch, target.threads, version)
        for layer in shapes
        for p in device.precisions
    }
    missing = [entry for entry, key in keys.items() if store.get(key) is None]
    for precision in device.precisions:
        todo = list(dict.fromkeys(layer for layer, p in missing if p == precision))
        for layer, costs in (device.layers(todo, precision, target) if todo else {}).items():
            store.put(keys[layer, precision], costs)
    return {entry: dict(store.get(key) or {}) for entry, key in keys.items()}
