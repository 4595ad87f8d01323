"""Ways: which share of real inputs takes which way through a network that chooses for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.core.context import Context
from trimtab.core.task import Batch
from trimtab.graph.choices import Choice, choices, opened
from trimtab.graph.model import Graph
from trimtab.train.data import mixed
from trimtab.train.evaluate import outputs

SAMPLES = 1000
"""Inputs that are asked."""


def ways(graph: Graph, batches: Sequence[Batch], split: str, context: Context) -> tuple[str, ...]:
    """A sentence on a network's exits and one on its gates: the share of real inputs that takes each.

    Args:
        graph: as it is deployed.
        batches: of real inputs; without any there is nothing to say.
        split: their name.
        context: its seed and device.
    """
    found = choices(graph)
    if not found or not batches:
        return ()
    some = mixed(batches, SAMPLES, context.seed)
    tests, _ = outputs(opened(graph, list(dict.fromkeys(c.test for c in found))), some, split, context.device)
    held = {c: tests[c.test].reshape(len(tests[c.test]), -1)[:, 0] for c in found}
    exits = _nested(graph, found)
    gates = [c for c in found if c not in exits]
    n = len(next(iter(held.values())))
    told = [_exits(exits, held, n, split)] if exits else []
    return (*told, *([_gates(gates, held, n, split)] if gates else []))


def _nested(graph: Graph, found: Sequence[Choice]) -> list[Choice]:
    """The choices whose answer is the output, or what is left to the next exit, from the first exit on."""
    held: Any = graph.net.graph.output_node().args[0]
    outs = list(held)
    by_node = {c.node: c for c in found}
    node = getattr(outs[0], "name", "") if len(outs) == 1 else ""
    chain: list[Choice] = []
    while node in by_node:
        chain.append(by_node[node])
        node = by_node[node].no
    return chain


def _exits(exits: Sequence[Choice], held: dict[Choice, Tensor], n: int, split: str) -> str:
    left = torch.ones(n, dtype=torch.bool)
    parts = []
    for choice in exits:
        leaves = left & held[choice]
        left = left & ~held[choice]
        parts.append(f"{float(leaves.double().mean()):.1%} at {_short(choice.name)}")
    return f"Of {n} inputs of `{split}`, {', '.join(parts)} leave early and {float(left.double().mean()):.1%} do not."


def _gates(gates: Sequence[Choice], held: dict[Choice, Tensor], n: int, split: str) -> str:
    parts = [f"{float(held[c].double().mean()):.0%} {_short(c.name)}" for c in gates]
    return f"Of {n} inputs of `{split}`, so many run each gated part: {', '.join(parts)}."


def _short(name: str) -> str:
    """Without the names that the technique put before."""
    return name.removeprefix("exits.heads.").removeprefix("gates.").removesuffix(".gate")
