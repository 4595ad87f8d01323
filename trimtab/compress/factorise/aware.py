"""Aware: factors that keep a layer's outputs on the data, where plain ones keep its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.compress.factorise.build import chained
from trimtab.compress.factorise.layers import Whole
from trimtab.compress.factorise.shapes import Ranks, parts
from trimtab.compress.factorise.weights import balanced, decomposed
from trimtab.compress.quantise.watch import watch
from trimtab.graph.model import Graph
from trimtab.hardware.layer import Layer

SAMPLES = 256
"""Calibration samples that moments are of."""
CHUNK = 32
"""Samples that run through the network at once."""
DAMPING = 0.01
"""Of the mean energy of an input, added to every input: what the data does not show is not thrown away."""


@dataclass
class Moments:
    """Sums over rows, such as the outputs of a layer at every place."""

    count: int = 0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """More rows, [L, n]."""
        rows = rows.double()  # squares of a large mean would leave nothing of a small variance
        self.count += len(rows)
        self.first = self.first + rows.sum(0)
        self.second = self.second + rows.T @ rows

    @property
    def mean(self) -> Tensor:
        """[n]."""
        return torch.as_tensor(self.first) / self.count

    @property
    def covariance(self) -> Tensor:
        """[n, n]."""
        return torch.as_tensor(self.second) / self.count - torch.outer(self.mean, self.mean)


def chunks(graph: Graph, inputs: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """At most `SAMPLES` samples of batches, `CHUNK` at a time; whole batches where an input has no batch to split."""
    if any(spec.shape[:1] != (None,) for spec in graph.inputs):
        return list(inputs)
    found, left = [], SAMPLES
    for batch in inputs:
        batch = tuple(t[:left] for t in batch)
        left -= len(batch[0])
        pieces = [torch.split(t, CHUNK) for t in batch]
        found += list(zip(*pieces, strict=True))
        if left <= 0:
            break
    return found


def outputs_of(graph: Graph, layers: Sequence[Whole], inputs: Sequence[tuple[Tensor, ...]]) -> dict[str, Moments]:
    """Mean and covariance of each layer's outputs, its bias with them.

    Args:
        graph: evaluating.
        layers: of it.
        inputs: of calibration.
    """
    found = {layer.name: Moments() for layer in layers}

    def seen(layer: Whole) -> Callable[[Tensor], None]:
        return lambda value: found[layer.name].add(_rows(layer, value))

    watch(graph, chunks(graph, inputs), {layer.node: seen(layer) for layer in layers})
    return found


def weighted(weight: Tensor, seen: Moments) -> Tensor:
    """W (C + damping) W^T, with C the covariance of what a layer reads: [O, O].

    Args:
        weight: float64 [O, I, k...].
        seen: the moments of the layer's outputs, whose covariance is W C W^T.
    """
    flat = weight.flatten(1)
    product = flat @ flat.T
    # W C W^T has the trace of W W^T times the mean energy of an input, weighted as W weights it
    energy = float(seen.covariance.trace() / product.trace().clamp_min(1e-300))
    return seen.covariance + DAMPING * energy * product


def spectrum(weight: Tensor, seen: Moments) -> Tensor:
    """The singular values of a weight whose inputs are weighted by the data, W C^1/2, largest first."""
    values: Tensor = torch.linalg.eigvalsh(weighted(weight, seen)).clamp_min(0)
    return values.sqrt().flip(0)


def projected(weight: Tensor, bias: Tensor, rank: int, seen: Moments) -> tuple[list[Tensor], Tensor]:
    """The two factors of least E |(W - U V)(x - E x)|^2, and the bias that keeps the mean of the outputs.

    W' = U U^T W with U the principal directions of the outputs: the SVD of W C^1/2 without a root of C or its
    inverse, which need not exist. The mean of the outputs stays by b' = E y - U U^T (E y - b).

    Args:
        weight: float64 [O, I, k...].
        bias: the layer's [O].
        rank: how many directions.
        seen: the moments of its outputs.

    Source: Zhang et al. (2016), Accelerating Very Deep Convolutional Networks, section 3.1 (eq. 3 to 6); the same
    for linear layers as Wang et al. (2025), SVD-LLM, section 3.1 (whitening).
    """
    _, vectors = torch.linalg.eigh(weighted(weight, seen))
    u = vectors[:, -rank:].flip(1)  # [O, R]
    v = u.T @ weight.flatten(1)  # [R, I k]
    root = v.norm(dim=1).clamp_min(1e-300).sqrt()
    first = (v / root[:, None]).reshape(rank, *weight.shape[1:])
    last = (u * root).reshape(*u.shape, *[1] * (weight.ndim - 2))
    return [first, last], seen.mean - u @ (u.T @ (seen.mean - bias))


def refitted(
    graph: Graph, method: str, layers: Mapping[str, tuple[Whole, Ranks]], inputs: Sequence[tuple[Tensor, ...]]
) -> dict[str, tuple[list[Tensor], Tensor]]:
    """Factors whose last one is fitted to the layer's outputs on the data, and the bias that keeps their mean.

    min over A of E |y - A z|^2 + damping |A - A_0|^2, z what the factors before give, A_0 the plain last factor;
    means apart. Of a linear layer's tensor train the bias alone.

    Args:
        graph: evaluating.
        method: not `svd`, which `projected` solves whole.
        layers: with their ranks, by name.
        inputs: of calibration.

    Source: Jaderberg et al. (2014), section 3 (reconstructing outputs); in closed form ours.
    """
    tensors = graph.tensors()
    factors = {name: decomposed(method, layer.matrix(tensors), ranks) for name, (layer, ranks) in layers.items()}
    sums = {name: Moments() for name in layers}
    held: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda value: held.__setitem__(name, value)

    def add(name: str) -> Callable[[Tensor], None]:
        layer, ranks = layers[name]

        def seen(value: Tensor) -> None:
            chain = parts(method, layer.shape, ranks)
            z = _columns(layer, held[layer.source], chain, factors[name])
            sums[name].add(torch.cat([z, _rows(layer, value)], 1))

        return seen

    sources = {layer.source: keep(layer.source) for layer, _ in layers.values()}
    nodes = {layer.node: add(name) for name, (layer, _) in layers.items()}
    both = {n: _then(nodes[n], sources[n]) for n in nodes.keys() & sources.keys()}
    watch(graph, chunks(graph, inputs), {**sources, **nodes, **both})
    return {name: _solved(layers[name][0], factors[name], sums[name]) for name in layers}


def _then(a: Callable[[Tensor], None], b: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    def both(value: Tensor) -> None:
        a(value)
        b(value)

    return both


def _solved(layer: Whole, factors: list[Tensor], seen: Moments) -> tuple[list[Tensor], Tensor]:
    mean, both = seen.mean, seen.covariance
    n = len(mean) - layer.shape.outputs  # numbers that the last factor reads
    if not layer.shape.kernel:  # what the factors give stands in z itself
        return factors, mean[n:] - mean[:n]
    start = factors[-1].flatten(1)
    inner = both[:n, :n]
    damped = inner + DAMPING * float(inner.diagonal().mean()) * torch.eye(n, dtype=torch.float64)
    change = torch.linalg.solve(damped, (both[n:, :n] - start @ inner).T).T
    last = (start + change).reshape(factors[-1].shape)
    return balanced([*factors[:-1], last]), mean[n:] - last.flatten(1) @ mean[:n]


def _rows(layer: Whole, value: Tensor) -> Tensor:
    """A layer's outputs, one row for each place: [L, O]."""
    return (value.movedim(1, -1) if layer.shape.kernel else value).reshape(-1, layer.shape.outputs)


def _columns(layer: Whole, x: Tensor, chain: Sequence[Layer], factors: Sequence[Tensor]) -> Tensor:
    """What the last factor reads, one row for each place: [L, n]; of a linear layer what all of them give."""
    if not layer.shape.kernel:
        bare = chained(layer.shape, chain, factors, None, x)
        given: Tensor = bare(x).reshape(-1, layer.shape.outputs)
        return given
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(layer.shape.kernel) - 1]
    for part, weight in zip(chain[:-1], factors[:-1], strict=True):
        x = convolve(x, weight.to(x), None, part.stride, part.padding, part.dilation, part.groups)
    last = chain[-1]
    if max(last.kernel) == 1:
        return x.movedim(1, -1).reshape(-1, last.inputs)
    columns = functional.unfold(x, last.kernel, last.dilation, last.padding, last.stride)  # [N, R k, L]
    return columns.movedim(1, -1).reshape(-1, last.weights // last.outputs)
