"""Table: what one layer costs by shape, precision and device, found once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from trimtab.core.store import Store, cache_folder, digest
from trimtab.core.target import Target
from trimtab.hardware.layer import Layer
from trimtab.run.device import Device


def measure(
    shapes: Iterable[Layer], device: Device, target: Target, version: str, precisions: Sequence[str] | None = None
) -> dict[tuple[Layer, str], dict[str, float]]:
    """What each layer costs at precisions of a device, from the table or asked of the device now.

    Args:
        shapes: the layers.
        device: that they run on.
        target: gives batch and threads.
        version: of what measures; what was kept under another one does not count.
        precisions: some of the device's; None for all.

    Returns:
        `latency` in s, and `energy` in J where the device knows it, by layer and precision.
    """
    store, wanted = Store(cache_folder() / "layers"), device.precisions if precisions is None else precisions
    keys = {
        (layer, p): digest("layer", layer, p, device.name, target.runtime, target.batch, target.threads, version)
        for layer in shapes
        for p in wanted
    }
    missing = [entry for entry, key in keys.items() if store.get(key) is None]
    for precision in wanted:
        todo = list(dict.fromkeys(layer for layer, p in missing if p == precision))
        for layer, costs in (device.layers(todo, precision, target) if todo else {}).items():
            store.put(keys[layer, precision], costs)
    return {entry: dict(store.get(key) or {}) for entry, key in keys.items()}


def seconds_of(
    device: Device, target: Target, precision: str | None = None
) -> Callable[[Sequence[Layer]], dict[Layer, float]]:
    """A function from layers to their seconds on a device in one of its precisions, the first by default."""
    precision = precision or device.precisions[0]

    def seconds(shapes: Sequence[Layer]) -> dict[Layer, float]:
        found = measure(shapes, device, target, device.version(), (precision,))
        return {layer: found[layer, precision]["latency"] for layer in shapes}

    return seconds
