"""Mixed: a number of bits for each layer's weights, of a given average, chosen exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from trimtab.compress.allocate import Factor, Site, allocate
from trimtab.compress.plan import step_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.context import Context, Progress, quiet
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.target import Target, parse
from trimtab.core.task import Task
from trimtab.graph.model import Graph
from trimtab.pipeline.bits import MEASURES
from trimtab.pipeline.prepare import prepare
from trimtab.pipeline.sensitivity import weight_of

Sensitivity = Literal["loss", "sqnr", "hessian"]


def mixed(
    graph: Graph,
    context: Context,
    choices: Sequence[int] = (2, 4, 8),
    bits: float = 4.0,
    sensitivity: Sensitivity = "loss",
) -> dict[str, dict[str, Any]]:
    """The bits of each layer that cost least in all, at an average over the weights: `Quantise`'s `layers`.

        minimise sum_i Omega_i(b_i)  subject to  sum_i n_i b_i <= bits sum_i n_i   (eq. 13-14)

    with n_i weights in layer i, solved exactly (`allocate`).

    Args:
        graph: the network in floating point.
        context: its `calibrate` batches are used, and what its target runs in integers.
        choices: numbers of bits, from 2 to 8.
        bits: the average over all weights that are quantised, at most.
        sensitivity: how Omega is found: `pipeline.bits`.

    Raises:
        InputError: a choice is no number of bits, or none is as small as the average.

    Source: Dong et al. (2020), HAWQ-V2, section 2.3, for the sum that is minimised; the programme is Wang et al.
    (2019), HAQ, as one of integers.
    """
    names, wanted = [axis.name.partition(":")[2] for axis in Quantise().sites(graph, context)], sorted(set(choices))
    if not wanted or not all(isinstance(b, int) and 2 <= b <= 8 for b in wanted):
        raise InputError("mixed: choices", got=tuple(choices), expected="numbers of bits from 2 to 8")
    if bits < wanted[0]:
        raise InputError("mixed: bits", got=bits, expected=f"an average of {wanted[0]} or more")
    if sensitivity not in MEASURES:
        raise InputError("mixed: sensitivity", got=repr(sensitivity), expected=", ".join(MEASURES))
    counts = {name: graph.tensors()[weight_of(graph, name)].numel() for name in names}
    costs = MEASURES[sensitivity](graph, context, names, wanted)
    sites = [Site(name, costs[name]) for name in names]
    factors = [Factor((name,), {"bits": np.array([float(b * counts[name]) for b in wanted])}) for name in names]
    point = allocate(sites, factors, {"bits": bits * sum(counts.values())}, tie="")
    if point is None:
        raise InputError("mixed: no choice of bits was found in time", got=f"{len(names)} layers")
    return {name: {"bits": wanted[point[name]]} for name in names}


def mixed_plan(
    task: Task,
    bits: float = 4.0,
    choices: Sequence[int] = (2, 4, 8),
    sensitivity: Sensitivity = "loss",
    *,
    settings: Mapping[str, Any] | None = None,
    target: Target | str = "cpu",
    seed: int = 0,
    progress: Progress = quiet,
) -> Plan:
    """A plan of one `Quantise` step whose layers have the bits of `mixed`.

    Args:
        task: its model and calibration data.
        bits: the average over all weights that are quantised, at most.
        choices: numbers of bits.
        sensitivity: how a layer's cost is found.
        settings: others of `Quantise`, such as `{"rounding": "adaround"}`.
        target: what it must run on.
        seed: of what is random.
        progress: called as work goes on.
    """
    where = parse(target) if isinstance(target, str) else target
    prepared = prepare(task, where, Goal(max_drop=None), seed, None, progress)
    layers = mixed(prepared.graph, prepared.context, choices, bits, sensitivity)
    return Plan((step_of(Quantise(**{"calibration": "mse", **(settings or {}), "layers": layers})),))
