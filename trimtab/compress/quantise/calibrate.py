"""Calibrate: the values that each tensor takes on the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from trimtab.compress.quantise.ranges import BINS, Histogram
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.graph.model import Graph
from trimtab.train.data import checked, size

_RANDOM_BATCHES = 4
_RANDOM_SIZE = 32
_FORGETS = 0.01
"""Share of a new batch in the moving average of ranges, at least."""
Inputs = tuple[Tensor, ...]


def calibration_inputs(graph: Graph, context: Context, who: str = "Quantise") -> tuple[list[Inputs], str | None]:
    """The inputs to calibrate on, checked, and a note where they are not calibration data.

    Random normal inputs are taken only where the task has no data at all.

    Raises:
        InputError: the data is empty, misses an input, does not fit, is not finite, or is constant.
    """
    batches, where, note = context.calibrate, "calibrate", None
    if not batches and context.validate:
        batches, where = context.validate, "validate"
        note = "Calibrated on the inputs of the validation data: the task gives neither calibrate nor train."
    if not batches:
        if context.task.calibrate is not None or context.task.train is not None:
            raise InputError(
                f"{who}: no calibration data", got="no batch", expected="at least one", do="Give calibrate= batches."
            )
        random = [graph.example(_RANDOM_SIZE, context.seed + i) for i in range(_RANDOM_BATCHES)]
        return random, "Calibrated on random normal inputs: the task has no data. Give calibrate= for true ranges."
    if not any(size(batch) for batch in batches):
        raise InputError(f"{who}: {where}", got="batches without a sample", expected="at least one sample")
    inputs = [checked(batch, graph, where)[0] for batch in batches if size(batch)]
    for i, spec in enumerate(graph.inputs):
        values = [batch[i] for batch in inputs]
        if spec.dtype.is_floating_point and all(bool((v == values[0].flatten()[0]).all()) for v in values):
            raise InputError(
                f"{who}: {where}", where=spec.name, got="the same value everywhere", expected="inputs as in use"
            )
    return inputs, note


class _Watching(Interpreter):
    """Runs a graph and shows the value of some nodes."""

    def __init__(self, graph: Graph, names: Sequence[str], show: Callable[[str, Tensor], None]) -> None:
        super().__init__(graph.net)
        self.names, self.show = frozenset(names), show

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            # an operator in place may overwrite it later, so it is read now
            self.show(n.name, value)
        return value


def histograms(graph: Graph, shares: Mapping[str, str], inputs: Sequence[Inputs]) -> dict[str, Histogram]:
    """The values of tensors, those that share a range together.

    Two passes: the first finds each range and the moving average of the batches' ranges, the second counts in
    `BINS` equal bins.

        m <- m + max(0.01, 1 / t) (x_t - m)    for x_t, the least (greatest) value in batch t

    Args:
        graph: evaluating.
        shares: node name to the name whose range it shares.
        inputs: the calibration inputs.

    Returns: for each name that ranges are shared under, its histogram.

    Raises:
        InputError: a tensor inside the network becomes NaN or infinite.

    Source: Jacob et al. (2018), section 3.1, for the moving average; the first 100 batches weigh alike in ours,
    where theirs forgets a start that it has trained through.
    """
    ends = _Ends(shares)
    counts: dict[str, Tensor] = {name: torch.zeros(BINS, dtype=torch.float64) for name in shares.values()}

    def count(name: str, value: Tensor) -> None:
        first = shares[name]
        low, high, _ = ends.found[first]
        if low == high:
            counts[first][0] += value.numel()
        else:
            counts[first] += torch.histc(value.detach().float(), BINS, low, high).double().cpu()

    with torch.no_grad():
        for show, close in ((ends.widen, ends.close), (count, None)):
            watching = _Watching(graph, tuple(shares), show)
            for batch in inputs if shares else ():
                watching.run(*batch)
                if close is not None:
                    close()
    return {name: Histogram(*ends.found[name][:2], counts[name], ends.found[name][2]) for name in counts}


class _Ends:
    """The least and greatest values of tensors, over all batches and on average."""

    def __init__(self, shares: Mapping[str, str]) -> None:
        self.shares = shares
        self.batches = 0
        self.now: dict[str, tuple[float, float]] = {}
        self.found: dict[str, tuple[float, float, tuple[float, float]]] = {}

    def widen(self, name: str, value: Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(value.detach()))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise InputError(
                "Quantise: NaN or infinity inside the network", where=name, do="Check the data and weights."
            )
        first = self.shares[name]
        least, most = self.now.get(first, (low, high))
        self.now[first] = (min(least, low), max(most, high))

    def close(self) -> None:
        """A batch is through."""
        self.batches += 1
        share = max(_FORGETS, 1 / self.batches)
        for name, (low, high) in self.now.items():
            least, most, (a, b) = self.found.get(name, (low, high, (low, high)))
            average = (a + share * (low - a), b + share * (high - b))
            self.found[name] = (min(least, low), max(most, high), average)
        self.now = {}
