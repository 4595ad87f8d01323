"""Sensitivity: what each choice at each site costs in loss, from calibration data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from trimtab.compress.allocate import Factor, Site
from trimtab.compress.factorise.aware import Moments, outputs_of
from trimtab.compress.factorise.layers import wholes
from trimtab.compress.factorise.technique import low_rank
from trimtab.compress.quantise.ranges import weight_scales
from trimtab.core.context import Context
from trimtab.core.space import Axis
from trimtab.core.store import digest
from trimtab.core.task import unpack
from trimtab.graph.blocks import remove
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.surgery import cut
from trimtab.pipeline.space import BITS, LOW_RANK, Space
from trimtab.train.distil import distillation_loss
from trimtab.train.recipe import Distillation

SAMPLES = 256
"""Calibration samples that a sensitivity is from."""
_SETTINGS = Distillation(temperature=1.0)


@dataclass(frozen=True)
class Reference:
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
    reference = reference_of(graph, context)
    seen = _seen(space, graph, reference)
    sites = []
    for k, axis in enumerate(space.axes):
        context.progress("sensitivity", k, len(space.axes))
        name = digest("sensitivity", key, axis, SAMPLES)

        def measure(axis: Axis = axis) -> list[float]:
            return [0.0, *(_loss(space, graph, axis, choice, reference, seen) for choice in axis.choices[1:])]

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


def reference_of(graph: Graph, context: Context, live: bool = True) -> Reference:
    """Up to `SAMPLES` calibration samples with the original's outputs on them; without `live`, those once."""
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
        if not live:
            return Reference(tuple(inputs), outputs, outputs)
        moving = _with_batch_statistics(original)
        return Reference(tuple(inputs), outputs, tuple(moving(*flat) for flat in inputs))


def _laid_out(tensor: Tensor) -> Tensor:
    """Images channels-last, in which convolutions run faster on a CPU."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _seen(space: Space, graph: Graph, reference: Reference) -> dict[str, Moments]:
    """The moments of the outputs of the layers that have ranks to choose from."""
    names = [axis.name.partition(":")[2] for axis in space.axes if axis.name.startswith("Factorise:")]
    known, _ = wholes(graph)
    return outputs_of(set_mode(graph.copy(), False), [known[n] for n in names], reference.inputs) if names else {}


def _loss(
    space: Space, graph: Graph, axis: Axis, choice: Any, reference: Reference, seen: Mapping[str, Moments]
) -> float:
    kind, _, name = axis.name.partition(":")
    if kind == "Quantise":
        run = rounded(set_mode(graph.copy(), False), f"{name}.weight", BITS[choice])
        return divergence(run, reference, reference.outputs)
    if kind == "RemoveBlocks":
        changed = remove(graph, [name])
    elif kind == "Factorise":
        changed = low_rank(graph, LOW_RANK, {name: (wholes(graph)[0][name], (choice,))}, seen=seen)
    else:
        changed = cut(graph, {name: sorted(space.order[name][:choice])})
    return divergence(_with_batch_statistics(set_mode(changed, False)), reference, reference.live)


def _with_batch_statistics(graph: Graph) -> Graph:
    """Batch norms that use the statistics of the batch itself, in place: recalibrated in the same pass."""
    for node in graph.nodes(torch.ops.aten.batch_norm.default):
        node.args = (*node.args[:5], True, *node.args[6:])
    graph.net.recompile()
    return graph


def divergence(run: Any, reference: Reference, expected: tuple[Any, ...]) -> float:
    """The mean distillation loss at temperature 1 of what `run` gives on the inputs, to the expected outputs."""
    total, count = 0.0, 0
    with torch.no_grad():
        for inputs, outputs in zip(reference.inputs, expected, strict=True):
            n = inputs[0].shape[0]
            total += n * float(distillation_loss(run(*inputs), outputs, None, _SETTINGS))
            count += n
    return total / max(count, 1)


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """A weight on the levels of so many bits, a scale for each output channel: what `Quantise` gives a layer.

    Fewer than 8 bits clip where that lowers the squared error, as their steps in a plan ask for.
    """
    top = 2 ** (bits - 1) - 1
    scale = weight_scales(weight, top, 0, "minmax" if bits >= 8 else "mse")
    step = scale.reshape(-1, *[1] * (weight.ndim - 1))
    levels: Tensor = (weight.detach() / step).round().clamp(-top, top)
    return levels * step


def rounded(graph: Graph, weight: str, bits: int = 8, activation: bool = True) -> Any:
    """The graph as a function, with one layer's weight rounded to `bits`, and its input to 8 bits by its range.

    Args:
        graph: evaluating; its batch norms may follow: they change a channel's scale, and not its levels.
        weight: the name of the layer's weight.
        bits: of the weight.
        activation: round the layer's input too.
    """
    reads = {n for n in graph.nodes() if any(_is(a, weight) for a in n.all_input_nodes)}
    coarse = rounded_weight(graph.tensors()[weight], bits)

    class OneLayer(Interpreter):
        def run_node(self, n: Node) -> Any:
            if _is(n, weight):
                return coarse
            if n not in reads or not activation:
                return super().run_node(n)
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            plain = zip(n.args, args, strict=True)
            inputs = tuple(_byte(a) if isinstance(old, Node) and old.op != "get_attr" else a for old, a in plain)
            return n.target(*inputs, **kwargs)  # type: ignore[operator]

    def run(*inputs: Tensor) -> Any:
        values = OneLayer(graph.net).run(*inputs)
        return values[0] if graph.bare else dict(zip(graph.outputs, values, strict=True))

    return run


def weight_of(graph: Graph, layer: str) -> str:
    """The name of a layer's weight: its module's `weight`, else the first matrix or kernel in it."""
    tensors = graph.tensors()
    inside = (name for name, t in tensors.items() if name.rpartition(".")[0] == layer and t.ndim > 1)
    return next((name for name in (f"{layer}.weight", layer) if name in tensors), None) or next(inside)


def _is(node: Node, parameter: str) -> bool:
    return node.op == "get_attr" and node.target == parameter


def _byte(x: Tensor) -> Tensor:
    """A tensor on the 256 levels of its range."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = torch.round(-low / scale)
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale
