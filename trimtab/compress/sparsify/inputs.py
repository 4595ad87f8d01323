"""Inputs: masks and updates that look at what each layer reads. Wanda and SparseGPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.quantise import gptq
from trimtab.compress.quantise.gptq import compensated, groups_of, hessian_of, patches, saliences
from trimtab.compress.quantise.staged import Inputs, Staged
from trimtab.compress.quantise.units import CONVOLUTIONS, PRODUCTS, source
from trimtab.compress.sparsify.pattern import Pattern, masks, rows_of, weight_of
from trimtab.compress.sparsify.weights import Weight
from trimtab.core.context import Progress
from trimtab.graph.model import Graph


def seen(graph: Graph, found: Sequence[Weight]) -> list[Weight]:
    """The weights whose layers' inputs are known as a matrix: those of linear layers and of plain convolutions."""
    named = {node.name: node for node in graph.nodes()}
    return [w for w in found if named[w.node].target in CONVOLUTIONS or named[w.node].target in PRODUCTS]


def sparsify(
    graph: Graph,
    found: Sequence[Weight],
    keep: Mapping[str, int],
    pattern: Pattern,
    method: str,
    parts: Sequence[Inputs],
    progress: Progress,
) -> None:
    """Make weights sparse in place, layer by layer in graph order; each sees the inputs that the sparse ones give.

    Args:
        graph: evaluating, the caller's own.
        found: the weights, in graph order.
        keep: how many values of each stay, by name.
        pattern: where zeros may lie.
        method: `wanda` or `sparsegpt`.
        parts: calibration inputs in chunks.
        progress: shows a bar.
    """
    state = Staged(graph, parts)
    for i, w in enumerate(found):
        progress("sparsify", i, len(found))
        node = state.named[w.node]
        state.advance(state.place[node])
        weight = graph.tensors()[w.name]
        inputs = [values[source(node)] for values in state.values]
        rows = rows_of(weight.detach(), w.axis)  # [O, I, K]
        if method == "wanda":
            scores = rows.abs() * input_norms(node, inputs, weight.detach()).reshape(-1, *rows.shape[1:]).to(rows)
            made = rows * masks({w.name: scores}, keep, pattern, by_row=True)[w.name]
        else:
            share = keep.get(w.name, 0) / rows.numel()
            made = sparsegpt(rows, hessian_of(node, inputs, weight.detach()), share, pattern)
        with torch.no_grad():
            weight.copy_(weight_of(made, weight, w.axis))
    progress("sparsify", len(found), len(found))


def input_norms(node: Node, inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """The 2-norm over all samples and places of what each weight of an output channel is multiplied with: [O, n].

    A channel's score is then abs(w) times it.

    Source: Sun et al. (2023), A Simple and Effective Pruning Approach for Large Language Models (Wanda), equation 1.
    """
    total: Tensor | float = 0.0
    for x in inputs:
        columns = patches(node, x, weight) if node.target in CONVOLUTIONS else x.reshape(1, -1, x.shape[-1]).mT
        total = total + columns.double().square().sum(-1)  # [G, n]
    outputs = weight.shape[0] if node.target in CONVOLUTIONS else 1  # one row serves all outputs of a product
    return total.sqrt().repeat_interleave(outputs // groups_of(node), 0)  # type: ignore[union-attr]


def sparsegpt(rows: Tensor, hessian: Tensor, share: float, pattern: Pattern) -> Tensor:
    """Rows with a share of their values left, the others adjusted so that products with the inputs change least.

    Columns are done in order (see `compensated`); those that go, by the least w^2 / U_jj^2, are chosen for each
    block of columns when it is reached, over all rows; of N:M, for each group of M, in each row.

    Args:
        rows: [O, I, K].
        hessian: 2 X X^T of the layer's inputs, [G, n, n] with n = I K, of G groups of outputs.
        share: of values that stay; not read for N:M.
        pattern: `free` or `n:m`; M must divide the block of columns.

    Source: Frantar & Alistarh (2023), SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot,
    algorithm 1 and section 3.4.
    """
    outputs, width, places = rows.shape
    order = torch.arange(width * places)
    if pattern.kind == "n:m":  # groups lie along the inputs: these change fastest
        order = order.reshape(width, places).T.flatten()
    groups = len(hessian)
    weight = rows.flatten(1)[:, order].double().reshape(groups, outputs // groups, -1)  # [G, R, n]
    hessian = hessian[:, order][:, :, order].to(weight)
    sizes = saliences(hessian)[:, None]  # [G, 1, n]
    stays = torch.ones_like(weight, dtype=torch.bool)
    wide = pattern.second if pattern.kind == "n:m" else gptq.BLOCK

    def fixed(j: int, rest: Tensor) -> Tensor:
        if j % wide == 0:
            end = min(j + wide, rest.shape[-1])
            cost = rest[..., j:end].square() / sizes[..., j:end]
            grouped = pattern.kind == "n:m"
            stays[..., j:end] = _in_groups(cost, pattern.first) if grouped else _in_block(cost, j, end, share)
        return rest[..., j] * stays[..., j]

    made = compensated(weight, hessian, fixed).reshape(outputs, -1)
    back = torch.empty_like(made)
    back[:, order] = made
    return back.reshape(rows.shape).to(rows.dtype)


def _in_groups(cost: Tensor, left: int) -> Tensor:
    order = torch.sort(cost, dim=-1, descending=True, stable=True).indices[..., :left]
    return torch.zeros_like(cost, dtype=torch.bool).scatter_(-1, order, True)


def _in_block(cost: Tensor, start: int, end: int, share: float) -> Tensor:
    """The costliest of a block of columns [G, R, B]; counts of blocks add up to the share of all columns."""
    each = cost.shape[0] * cost.shape[1]
    left = round(share * end * each) - round(share * start * each)
    order = torch.sort(cost.flatten(), descending=True, stable=True).indices[:left]
    return torch.zeros(cost.numel(), dtype=torch.bool).scatter_(0, order, True).reshape(cost.shape)
