"""Sensitivity: what each choice at each site costs in loss, from calibration data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from trimtab.core.context import Context
from trimtab.core.space import Axis
from trimtab.core.store import digest
from trimtab.core.task import unpack
from trimtab.graph.blocks import remove
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.surgery import cut
from trimtab.pipeline.allocate import Factor, Site
from trimtab.pipeline.space import Space
from trimtab.train.distil import distillation_loss
from trimtab.train.recipe import Distillation

SAMPLES = 256
"""Calibration samples that a sensitivity is from."""
_SETTINGS = Distillation(temperature=1.0)


@dataclass(frozen=True)
class _Reference:
    """Inputs and the original's outputs on them; `live` with batch norms that use the statistics of the batch."""

    inputs: tuple[tuple[Tensor, ...], ...]
    outputs: tuple[Any, ...]
    live: tuple[Any, ...]


def sensitivities(space: Space, graph: Graph, context: Context, key: str) -> list[Site]:
    """The loss that each choice of each axis adds alone: divergence from the original's outputs.

    KL divergence of classes, mean squared difference of other outputs. A cut network normalises by
    the statistics of the same samples, and so does the original that it is compared with; each is
    stored when it is measured.

    Args:
        space: its axes.
        graph: the original.
        context: its `calibrate` batches are used, nothing else.
        key: the hash of the original and of the data.
    """
    reference = _reference(graph, context)
    sites = []
    for k, axis in enumerate(space.axes):
        context.progress("sensitivity", k, len(space.axes))
        name = digest("sensitivity", key, axis, SAMPLES)

        def measure(axis: Axis = axis) -> list[float]:
            return [0.0, *(_loss(space, graph, axis, choice, reference, context) for choice in axis.choices[1:])]

        found = context.store.once(name, measure) if context.store else measure()
        # A choice cannot help: what is below zero, or below a smaller cut, is noise.
        sites.append(Site(axis.name, tuple(np.maximum.accumulate(np.maximum(found, 0.0)))))
    context.progress("sensitivity", len(space.axes), len(space.axes))
    return sites


def refunds(space: Space, sites: Sequence[Site]) -> tuple[list[Site], list[Factor]]:
    """Sites and factors in which a narrower layer, or an integer one, costs no loss once its block is removed."""
    inside = {p: name for name, block in space.blocks.items() for p in block.parameters}
    plain, factors = [], []
    for site in sites:
        kind, _, name = site.name.partition(":")
        members = [m.parameter for m in space.groups[name].members] if kind == "Prune" else [f"{name}.weight"]
        homes = {inside.get(p) for p in members}
        block = homes.pop() if len(homes) == 1 and kind != "RemoveBlocks" else None
        if block is None:
            plain.append(site)
            continue
        plain.append(Site(site.name, (0.0,) * len(site.loss)))
        factors.append(Factor((site.name, f"RemoveBlocks:{block}"), loss=np.array([[loss, 0.0] for loss in site.loss])))
    return plain, factors


def _reference(graph: Graph, context: Context) -> _Reference:
    names = [s.name for s in graph.inputs]
    inputs, count = [], 0
    for batch in context.calibrate:
        flat, _ = unpack(batch, names, "calibrate")
        inputs.append(tuple(_laid_out(t[: SAMPLES - count]) for t in flat))
        count += flat[0].shape[0]
        if count >= SAMPLES:
            break
    original = set_mode(graph.copy(), False)
    with torch.no_grad():
        outputs = tuple(original(*flat) for flat in inputs)
        live = _with_batch_statistics(original)
        return _Reference(tuple(inputs), outputs, tuple(live(*flat) for flat in inputs))


def _laid_out(tensor: Tensor) -> Tensor:
    """Images channels-last, in which convolutions run faster on a CPU."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _loss(space: Space, graph: Graph, axis: Axis, choice: Any, reference: _Reference, context: Context) -> float:
    kind, _, name = axis.name.partition(":")
    if kind == "Quantise":
        return _divergence(_rounded(set_mode(graph.copy(), False), f"{name}.weight"), reference, reference.outputs)
    if kind == "RemoveBlocks":
        changed = remove(graph, [name])
    else:
        changed = cut(graph, {name: sorted(space.order[name][:choice])})
    return _divergence(_with_batch_statistics(set_mode(changed, False)), reference, reference.live)


def _with_batch_statistics(graph: Graph) -> Graph:
    """Batch norms that use the statistics of the batch itself, in place: recalibrated in the same pass."""
    for node in graph.nodes(torch.ops.aten.batch_norm.default):
        node.args = (*node.args[:5], True, *node.args[6:])
    graph.net.recompile()
    return graph


def _divergence(run: Any, reference: _Reference, expected: tuple[Any, ...]) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for inputs, outputs in zip(reference.inputs, expected, strict=True):
            n = inputs[0].shape[0]
            total += n * float(distillation_loss(run(*inputs), outputs, None, _SETTINGS))
            count += n
    return total / max(count, 1)


def _rounded(graph: Graph, weight: str) -> Any:
    """The graph as a function, with one layer's weight and input rounded to 8 bits by their range."""
    chosen = {
        n for n in graph.nodes() if len(n.args) > 1 and isinstance(n.args[1], Node) and n.args[1].target == weight
    }

    class OneLayer(Interpreter):
        def run_node(self, n: Node) -> Any:
            if n not in chosen:
                return super().run_node(n)
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            x, w, *rest = args
            low, high = x.min().clamp(max=0), x.max().clamp(min=0)
            scale = ((high - low) / 255).clamp(min=1e-12)
            zero = torch.round(-low / scale)
            x = ((x / scale + zero).round().clamp(0, 255) - zero) * scale
            step = (w.flatten(1).abs().amax(1) / 127).clamp(min=1e-12).reshape(-1, *[1] * (w.ndim - 1))
            return n.target(x, (w / step).round() * step, *rest, **kwargs)  # type: ignore[operator]

    def run(*inputs: Tensor) -> Any:
        values = OneLayer(graph.net).run(*inputs)
        return values[0] if graph.bare else dict(zip(graph.outputs, values, strict=True))

    return run
