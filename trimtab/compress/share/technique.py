"""Share: many weights of a layer have one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.compress.quantise.technique import training_of
from trimtab.compress.share.books import Book, codebook_name, with_books, written
from trimtab.compress.share.kmeans import STARTS, Start, centres_of, nearest, rows_near
from trimtab.compress.share.layers import chosen, shared_layers
from trimtab.compress.share.moments import hessians
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.train.zeros import is_sparse

_BITS = (2, 3, 4, 5, 6, 8)
"""Widths of an index that a search chooses from."""
_PER = ("tensor", "channel", "group")
_ROW = 4
"""Weights in a row of product quantisation, where `block` is not given."""


@dataclass(frozen=True)
class Share:
    """Few values that many weights share: k-means, with centroids that train. The file gets smaller, not faster.

    min over centroids C and assignments of sum_k sum_{w in C_k} |w - c_k|^2, then dL/dc_k = sum of dL/dw over k.

    Batch norms are folded first. The exact zeros of a sparse weight stay zeros: they are a centroid of their own, one
    of the `clusters`. Weights are stored as indices of `bits` bits and a codebook wherever that is smaller.

    Args:
        bits: of an index, 1 to 8: 2^bits clusters. Or give `clusters`.
        clusters: how many values a layer's weights have, 2 to 256.
        per: whether a codebook is of a layer (`tensor`), of an output channel, or of a `group` of these.
        group: output channels that share a codebook, with `per="group"`.
        layers: settings of single layers over these, such as `{"fc1": {"bits": 3}}`: `bits`, `clusters`, `per`,
            `group`, `block`; names as in `skip`, later ones win.
        init: where centroids start: `linear`, `density` or `kmeans++`; `product` always draws by `kmeans++`.
        method: `kmeans` of single weights, or `product`: of rows of `block` weights along a layer's inputs.
        block: weights in a row of product quantisation; the layer's inputs must be a multiple of it.
        weighted: whether errors count by what the layer's inputs make of them on calibration data: the diagonal of
            the layer's Hessian for single weights, its mean block for rows.
        codebook: `fp16` rounds the centroids to that, which takes half of the bytes; `fp32` does not.
        biases: bits for the vectors of the layers chosen (biases, scales of norms); None leaves them.
        train: settings of `Distil` to train the centroids with, such as `{"steps": 300}`; None for none.
        skip: names of layers to leave as they are: exact, a prefix, or a pattern.

    Raises:
        InputError: a setting is out of range, there is nothing to share, or `weighted` has no calibration data.

    Source: Han et al. (2016), Deep Compression, section 3, equations 2 and 3; Gong et al. (2014), Compressing Deep
    Convolutional Networks using Vector Quantization, section 3.3; Stock et al. (2020), And the Bit Goes Down,
    equation 2, whose distance of rows is that of `weighted`. Ours has one codebook for all rows of a layer.
    """

    bits: int | None = None
    clusters: int | None = None
    per: Literal["tensor", "channel", "group"] = "tensor"
    group: int | None = None
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    init: Start = "linear"
    method: Literal["kmeans", "product"] = "kmeans"
    block: int | None = None
    weighted: bool = False
    codebook: Literal["fp16", "fp32"] = "fp16"
    biases: int | None = None
    train: Mapping[str, Any] | None = None
    skip: tuple[str, ...] = ()

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each layer: the bits of an index, or `fp32`."""
        found = shared_layers(_folded(graph), (*context.task.keep, *self.skip))
        return tuple(Axis(f"Share:{name}", (*_BITS, "fp32")) for name in dict.fromkeys(found.values()))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with shared weights, trained where `train` says so."""
        self.check()
        training = None if self.train is None else training_of(self.train)
        own = _folded(graph)
        books = self._books(own, context)
        if training is not None:
            learnt = training.apply(with_books(own, books), context).tensors()
            books = {k: replace(b, values=learnt[codebook_name(k)].detach()) for k, b in books.items()}
        books = {k: replace(b, values=_rounded(b.values, self.codebook)) for k, b in books.items()}
        return written(own, books).note("Share: shared weights make the file smaller, not the network faster.")

    def resolve(self, graph: Graph, context: Context) -> Share:
        """The same with the precision and memory layout of its training settled."""
        if self.train is None:
            return self
        settled = training_of(self.train).resolve(_folded(graph), context)
        found = {"precision": settled.precision, "channels_last": settled.channels_last}
        return replace(self, train={**self.train, **found})

    def check(self) -> Share:
        """The technique itself, or InputError naming the setting that is wrong."""
        if self.method == "product" and self.init != "linear":
            raise InputError("Share: init", got=repr(self.init), expected="none: product quantisation draws its rows")
        if self.init not in STARTS:
            raise InputError("Share: init", got=repr(self.init), expected=f"one of {', '.join(STARTS)}")
        if self.per not in _PER:
            raise InputError("Share: per", got=repr(self.per), expected=f"one of {', '.join(_PER)}")
        if self.biases is not None and not 1 <= self.biases <= 8:
            raise InputError("Share: biases", got=self.biases, expected="1 to 8 bits")
        _clusters({"bits": self.bits, "clusters": self.clusters}, "Share")
        return self

    def _books(self, graph: Graph, context: Context) -> dict[str, Book]:
        """For each weight its codebook and its indices."""
        settings = {k: getattr(self, k) for k in ("bits", "clusters", "per", "group", "block")}
        found = chosen(graph, settings, self.layers, (*context.task.keep, *self.skip), self.biases)
        moments = hessians(graph, context, found) if self.weighted else {}
        books = {}
        for i, (name, said) in enumerate(found.items()):
            context.progress("share", i, len(found))
            seeded = torch.Generator().manual_seed(context.seed)
            weight = graph.tensors()[name].detach()
            count = _clusters(said, f"Share: {name}")
            if self.method == "product" and weight.ndim > 1:
                block = _ROW if said["block"] is None else said["block"]
                books[name] = _rows(name, weight, count, block, moments.get(name), seeded)
            else:
                groups = _groups(name, weight, said)
                books[name] = _single(weight, count, groups, self.init, moments.get(name), seeded)
        context.progress("share", len(found), len(found))
        return books


def _folded(graph: Graph) -> Graph:
    return for_inference(set_mode(graph.copy(), False))


def _clusters(said: Mapping[str, Any], where: str) -> int:
    """The number of clusters that settings ask for."""
    bits, clusters = said["bits"], said["clusters"]
    if (bits is None) == (clusters is None):
        raise InputError(where, got="both bits and clusters" if bits else "neither", expected="bits or clusters")
    if bits is not None and not 1 <= bits <= 8:
        raise InputError(f"{where}: bits", got=bits, expected="1 to 8")
    if clusters is not None and not 2 <= clusters <= 256:
        raise InputError(f"{where}: clusters", got=clusters, expected="2 to 256")
    return 1 << int(bits) if clusters is None else int(clusters)


def _groups(name: str, weight: Tensor, said: Mapping[str, Any]) -> int:
    """How many codebooks a weight has."""
    per, group = said["per"], said["group"]
    if (per == "group") != (group is not None):
        raise InputError("Share: group", where=name, got=repr(group), expected='a number with per="group" only')
    if weight.ndim < 2 or per == "tensor":
        return 1
    size = 1 if per == "channel" else int(group)
    if size < 1 or len(weight) % size:
        raise InputError("Share: group", where=name, got=size, expected=f"a part of {len(weight)} output channels")
    return len(weight) // size


def _single(
    weight: Tensor, count: int, groups: int, init: Start, hessian: Tensor | None, seeded: torch.Generator
) -> Book:
    """Single weights near the centres of their group; where many are zero, entry 0 is zero."""
    flat = weight.reshape(groups, -1).cpu()
    costs = torch.ones_like(flat)
    if hessian is not None:  # [n, n] over the inputs of an output channel
        costs = hessian.diagonal().to(flat).expand(len(weight), -1).reshape(groups, -1)
    sparse = is_sparse(weight)
    values, indices = [flat.new_zeros(1)] if sparse else [], torch.zeros(flat.shape, dtype=torch.int64)
    start = int(sparse)
    for i, (row, cost) in enumerate(zip(flat, costs, strict=True)):
        inside = row != 0 if sparse else torch.ones_like(row, dtype=torch.bool)
        if bool(inside.any()):
            centres = centres_of(row[inside], max(count - sparse, 1), init, cost[inside], seeded)
            indices[i, inside] = nearest(row[inside], centres) + start
            values.append(centres)
            start += len(centres)
    return Book(torch.cat(values)[:, None], indices.reshape(-1), sparse)


def _rows(name: str, weight: Tensor, count: int, block: int, hessian: Tensor | None, seeded: torch.Generator) -> Book:
    """Rows of weights near a layer's centres, in the metric of its inputs: |L^T (v - c)|^2 with L L^T = E[x x^T]."""
    inputs = weight[0].numel()
    if block < 2 or inputs % block:
        raise InputError("Share: block", where=name, got=block, expected=f"a part of its {inputs} inputs, 2 or more")
    rows = weight.reshape(-1, block).cpu().double()
    if hessian is None:
        centres, found = rows_near(rows, count, seeded)
        return Book(centres.to(weight.dtype), found)
    blocks = hessian.cpu().double().reshape(inputs // block, block, inputs // block, block)
    lower = torch.linalg.cholesky(torch.einsum("iaib->ab", blocks) * block / inputs)
    _, found = rows_near(rows @ lower, count, seeded)
    used, found = torch.unique(found, return_inverse=True)  # the mean of the rows is the mean in the metric too
    sizes = torch.bincount(found, minlength=len(used))
    centres = rows.new_zeros(len(used), block).index_add_(0, found, rows) / sizes[:, None]
    return Book(centres.to(weight.dtype), found)


def _rounded(values: Tensor, codebook: str) -> Tensor:
    """Centroids in fp16, where that holds them; what would become zero or infinite stays."""
    half = values.half().to(values.dtype)
    return values if codebook == "fp32" or not bool((half.isfinite() & ((half != 0) | (values == 0))).all()) else half
