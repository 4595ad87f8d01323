"""Recalibrate: new running statistics for batch norms, from inputs alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Node

from trimtab.core.errors import InputError
from trimtab.core.task import Batch
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.train.data import checked, size
from trimtab.train.network import Learner

_MEAN, _VAR, _TRAINING, _MOMENTUM = 3, 4, 5, 6
"""Where `aten.batch_norm` has its arguments."""


@torch.no_grad()
def recalibrate_norms(graph: Graph, batches: Iterable[Batch], device: str = "cpu") -> Graph:
    """A graph whose batch norms have the mean and variance of their inputs over `batches`.

    running = sum over batches b of n_b statistic_b / sum of n_b, with each norm's input computed
    under the batches' own statistics; the variance is the unbiased one within batches. Everything
    else evaluates (dropout is off). A graph without batch norms is returned as a copy.

    Args:
        graph: left as it was.
        batches: inputs, with or without labels; some hundred samples suffice.

    Raises:
        InputError: there is no batch of at least two samples.

    Source: Izmailov et al. 2018 (`update_bn`); a cumulative average as batch norm's `momentum=None`.
    """
    scratch = set_mode(graph.copy() if graph.device == torch.device(device) else graph.to(device), False)
    norms = [node for node in scratch.nodes(torch.ops.aten.batch_norm.default) if isinstance(node.args[_MEAN], Node)]
    result = graph.copy()
    if not norms:
        return result
    held = scratch.tensors()
    names = sorted({str(node.args[i].target) for node in norms for i in (_MEAN, _VAR)})  # type: ignore[union-attr]
    for node in norms:
        # momentum 1: after a batch, the running statistics are that batch's own
        node.args = (*node.args[:_TRAINING], True, 1.0, *node.args[_MOMENTUM + 1 :])
    scratch.net.recompile()
    network, total = Learner(scratch), 0
    sums = {name: torch.zeros_like(held[name], dtype=torch.float64) for name in names}
    for batch in batches:
        inputs, _ = checked(batch, graph, "calibrate")
        n = size(batch)
        if n < 2:
            continue
        for name in names:
            held[name].zero_()
        network(*(t.to(device) for t in inputs))
        total += n
        for name in names:
            sums[name] += n * held[name].double()
    if total == 0:
        raise InputError("data: calibrate", got="no batch of two samples or more", expected="at least one")
    for name, tensor in result.tensors().items():
        if name in sums:
            tensor.copy_(sums[name] / total)
    return result
