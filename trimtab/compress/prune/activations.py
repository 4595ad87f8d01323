"""Activations: scores from what the layers that read a group's units get to see. No labels are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from trimtab.compress.prune.gradients import inputs
from trimtab.compress.prune.places import places, readings
from trimtab.compress.prune.units import spread
from trimtab.compress.quantise.watch import watch
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.graph.coupling import Group, Member
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.rules.ties import argument

aten = torch.ops.aten
ACTIVATION_SCORES = ("apoz", "thinet")
LOCATIONS = 10
"""Of each sample, at which an output is looked at (ThiNet, section 3.2.1)."""
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding)
_TINY = 1e-30
Show = Callable[[Tensor], None]


def by_activation(graph: Graph, groups: Sequence[Group], score: str, context: Context) -> dict[str, Tensor]:
    """`apoz` or `thinet`, one value for each unit, float64 [size].

    Raises:
        InputError: there are no inputs, or a group has no layer to look at, or no zeros.
    """
    own = set_mode(graph.copy(), False)
    batches = [tuple(t.to(own.device) for t in batch) for batch in inputs(own, context, score)]
    if score == "apoz":
        return _zeros(own, groups, batches)
    grams = _grams(own, groups, batches, context.seed)
    return {name: greedy(gram) for name, gram in grams.items()}


def _zeros(graph: Graph, groups: Sequence[Group], batches: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """1 - APoZ, where APoZ is the share of zeros among a unit's values, mean over the places where it is read.

    Source: Hu et al. (2016), Network Trimming, eq. 1.
    """
    found = places(graph, groups, readers_only=True)
    alive = {
        (g.name, i): torch.zeros(g.size + 1, dtype=torch.float64) for g in groups for i, _ in enumerate(found[g.name])
    }
    shows: dict[str, list[Show]] = {}
    for group in groups:
        for i, place in enumerate(found[group.name]):
            counts = torch.bincount(torch.tensor(place.units), minlength=group.size + 1).clamp_min(1)

            def show(value: Tensor, sums=alive[group.name, i], place=place, counts=counts) -> None:  # type: ignore[no-untyped-def]
                others = [d for d in range(value.ndim) if d != place.dim]
                share = (value != 0).double().mean(others).cpu()  # [length]
                sums.index_add_(0, torch.tensor(place.units), share / counts[list(place.units)])

            shows.setdefault(place.node, []).append(show)
    _watch(graph, batches, shows)
    result = {}
    for group in groups:
        each = [alive[group.name, i][: group.size] / len(batches) for i, _ in enumerate(found[group.name])]
        if not each or min(float(value.min()) for value in each) >= 1:
            got = "values that are never zero" if each else "units that no layer reads"
            do = "Choose another score or name it in fixed=."
            raise InputError("Prune: score apoz", where=group.name, got=got, expected="zeros, as behind a ReLU", do=do)
        result[group.name] = torch.stack(each).mean(0)
    return result


def _watch(graph: Graph, batches: Sequence[tuple[Tensor, ...]], shows: Mapping[str, Sequence[Show]]) -> None:
    def all_of(each: Sequence[Show]) -> Show:
        def show(value: Tensor) -> None:
            for one in each:
                one(value)

        return show

    watch(graph, batches, {name: all_of(each) for name, each in shows.items()})


def _grams(
    graph: Graph, groups: Sequence[Group], batches: Sequence[tuple[Tensor, ...]], seed: int
) -> dict[str, Tensor]:
    """For each group G[i, j] = sum of c_i c_j, c_i what unit i adds to an output of a layer that reads it.

    The sum is over samples, `LOCATIONS` places and all output channels, divided by the layer's sum of all entries,
    and the mean over the layers.
    """
    nodes: dict[str, Node] = {node.name: node for node in graph.nodes()}
    read = {
        name: [r for r in each if nodes[r.layer].target in (*_CONVOLUTIONS, aten.linear.default)]
        for name, each in readings(graph, groups).items()
    }
    for group in groups:
        if not read[group.name]:
            got = "units that no linear layer and no convolution of images or sequences reads"
            raise InputError(
                "Prune: score thinet", where=group.name, got=got, do="Choose another score or name it in fixed=."
            )
    wanted = {r.layer for each in read.values() for r in each}
    sums: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    shows: dict[str, list[Show]] = {}
    for layer in sorted(wanted):

        def show(value: Tensor, layer: str = layer) -> None:
            rows = _patches(nodes[layer], value, generator)  # [samples, inputs x kernel]
            gram = (rows.T @ rows).cpu()
            sums[layer] = sums[layer] + gram if layer in sums else gram

        shows.setdefault(nodes[layer].all_input_nodes[0].name, []).append(show)
    _watch(graph, batches, shows)
    tensors = graph.tensors()
    result = {}
    for group in groups:
        parts = [_gram(sums[r.layer], tensors[r.member.parameter], r.member) for r in read[group.name]]
        result[group.name] = torch.stack([p / p.sum().clamp_min(_TINY) for p in parts]).mean(0)
    return result


def _patches(node: Node, value: Tensor, generator: torch.Generator) -> Tensor:
    """Some rows of what a layer multiplies with its weights, [rows, inputs x kernel]."""
    value = value.detach().double()
    samples = value.shape[0]
    if node.target is aten.linear.default:
        rows = value.reshape(samples, -1, value.shape[-1])  # [N, places, inputs]
    else:
        rows = _unfolded(node, value).transpose(1, 2)  # [N, places, inputs x kernel]
    if rows.shape[1] > LOCATIONS:
        rows = rows[:, torch.randperm(rows.shape[1], generator=generator)[:LOCATIONS].to(rows.device)]
    return rows.reshape(-1, rows.shape[-1])


def _unfolded(node: Node, value: Tensor) -> Tensor:
    """The patches that a convolution sees: [N, inputs x kernel, places]."""
    weight = node.all_input_nodes[1].meta["val"]
    rank = weight.ndim - 2
    stride, padding, dilation = (
        argument(node, i, n, d) for i, n, d in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    steps, holes = _pair(stride, rank), _pair(dilation, rank)
    kernel = [1] * (2 - rank) + list(weight.shape[2:])
    if isinstance(padding, str):
        wide = [h * (k - 1) if padding == "same" else 0 for h, k in zip(holes, kernel, strict=True)]
        sides = [(w // 2, w - w // 2) for w in wide]
    else:
        sides = [(p, p) for p in _pair(padding, rank, 0)]
    image = value.unsqueeze(2) if rank == 1 else value
    image = functional.pad(image, (*sides[1], *sides[0]))
    return functional.unfold(image, tuple(kernel), dilation=tuple(holes), stride=tuple(steps))


def _pair(value: int | Sequence[int], rank: int, first: int = 1) -> list[int]:
    own = [value] * rank if isinstance(value, int) else list(value) * (rank // len(value))
    return [first] * (2 - rank) + own


def _gram(rows: Tensor, weight: Tensor, member: Member) -> Tensor:
    """G over units from the products of a layer's inputs: (X^T X) o (W^T W), summed over each two units' elements."""
    flat = weight.detach().double().cpu().movedim(member.dim, 1).flatten(1)  # [outputs, inputs x kernel]
    both = rows * (flat.T @ flat)
    kernel = flat.shape[1] // weight.shape[member.dim]
    index, unit = spread(member)
    place = (index[:, None] * kernel + torch.arange(kernel)).reshape(-1)
    units, size = unit.repeat_interleave(kernel), len(member.indices)
    columns = torch.zeros(both.shape[0], size, dtype=torch.float64).index_add(1, units, both[:, place])
    return torch.zeros(size, size, dtype=torch.float64).index_add(0, units, columns[place])


def greedy(gram: Tensor) -> Tensor:
    """For each unit the error when it goes, the one that adds least first each time; never less than before.

    error(T) = sum over i, j in T of G[i, j], the squared norm of what the removed units T added to the outputs

    Args:
        gram: G, [units, units].

    Source: Luo et al. (2017), ThiNet, eq. 6 and algorithm 1; over all output channels in place of sampled ones, and
    without the least squares on the weights that are left (eq. 7), which training does better.
    """
    size = len(gram)
    own, cross = gram.diagonal().clone(), torch.zeros(size, dtype=torch.float64)
    left = torch.ones(size, dtype=torch.bool)
    found = torch.zeros(size, dtype=torch.float64)
    error = most = 0.0
    for rank in range(size):
        added = torch.where(left, own + 2 * cross, torch.inf)
        unit = int(added.argmin())
        error += float(added[unit])
        most = max(most, error)
        found[unit] = most + 1e-12 * (rank + 1)  # equal errors keep the order
        left[unit] = False
        cross += gram[unit]
    return found
