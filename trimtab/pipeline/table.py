"""Table: what one layer costs by shape, precision and device, found once and kept."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.core.store import Store, cache_folder, digest
from trimtab.core.target import Target
from trimtab.hardware.layer import Layer
from trimtab.run.device import Device


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
