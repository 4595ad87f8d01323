"""Precision: fp32 or bf16, and which memory layout, by the clock of this machine."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice, product
from typing import Any

import torch

from trimtab.core.context import Context
from trimtab.core.store import digest
from trimtab.graph.model import Graph
from trimtab.hardware.machine import machine
from trimtab.train.data import size, stream
from trimtab.train.recipe import Recipe
from trimtab.train.step import advance, begin

_GAIN = 0.95
"""Anything but plain fp32 must take at most this share of its time."""


def concrete(graph: Graph, context: Context, recipe: Recipe) -> Recipe:
    """The recipe with its precision and layout settled: the fastest combination of what it leaves open.

    Each combination trains a copy for a few interleaved steps; the shortest are compared, since
    other work on the machine only ever adds time. bf16 without channels-last images is left out
    where the layout is open: slower than with them on an AMD EPYC. With a store the answer
    is kept, for all networks of the same operators and inputs (a network and what was cut from it),
    so that a run that is started again computes in the same precision.
    """
    images = any(len(spec.shape) == 4 for spec in graph.inputs)
    layouts = [recipe.channels_last] if recipe.channels_last is not None else [False, True] if images else [False]
    precisions: list[Any] = ["fp32", "bf16"] if recipe.precision == "auto" else [recipe.precision]
    pairs = [(c, p) for c, p in product(layouts, precisions) if c or p == "fp32" or len(layouts) == 1]
    choices = [replace(recipe, precision=p, channels_last=c) for c, p in pairs]
    if len(choices) == 1 or context.train is None:
        return choices[0]
    if context.store is None:
        return choices[_fastest(graph, context, choices)]
    batch = next(iter(stream(context.train, recipe.seed)))[2]
    operators = sorted({str(node.target) for node in graph.nodes()})
    inputs = [[spec.shape, str(spec.dtype)] for spec in graph.inputs]
    settings = [[c.precision, c.channels_last, c.optimiser, c.distil is not None] for c in choices]
    where = [machine().processor, torch.__version__, torch.get_num_threads(), context.device]
    name = f"precision-{digest(operators, inputs, settings, size(batch), where)}"
    chosen = context.store.once(name, lambda: {"choice": _fastest(graph, context, choices)})
    return choices[int(chosen["choice"])]


def _fastest(graph: Graph, context: Context, choices: list[Recipe], rounds: int = 3) -> int:
    """The index of the choice with the shortest step; the first one in doubt."""
    trainings = [begin(graph, context, replace(choice, lr=0.0)) for choice in choices]
    times: list[list[float]] = [[] for _ in choices]
    with torch.random.fork_rng():
        for _, _, batch in islice(stream(context.train or (), choices[0].seed), rounds + 1):
            for taken, training, choice in zip(times, trainings, choices, strict=True):
                before = time.perf_counter()
                advance(training, batch, context.task, replace(choice, lr=0.0))
                taken.append(time.perf_counter() - before)
    shortest = [min(taken[1:]) for taken in times]
    best = min(range(len(choices)), key=lambda i: shortest[i])
    return best if shortest[best] < _GAIN * shortest[0] else 0
