"""Choose: which sites are swapped for what, together, for the least loss at a cost."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.allocate import Assignment, Factor, allocate
from trimtab.compress.allocate import Site as Place
from trimtab.compress.quantise.staged import CHUNK, compute
from trimtab.compress.swap.learn import Pupil, Teacher, answer, placed, teacher_of
from trimtab.compress.swap.library import SAMPLES, Alternative, calibrated
from trimtab.compress.swap.sites import Site, conflict
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.store import digest
from trimtab.graph.model import Graph
from trimtab.hardware.layer import Layer
from trimtab.run.shapes import calls
from trimtab.train.checkpoint import identity
from trimtab.train.data import take
from trimtab.train.distil import distillation_loss
from trimtab.train.recipe import Distillation

Library = Mapping[tuple[str, str], Alternative]
Prices = Mapping[Layer, float]
COST = "cost"
"""The name of what layers cost: seconds where they are measured, else multiply-adds."""
_SETTINGS = Distillation(temperature=1.0)
_Values = dict[Node, Any]


def prices(graph: Graph, trained: Library, context: Context) -> dict[Layer, float]:
    """What each layer of the network and of its alternatives costs: seconds on the target, or else multiply-adds."""
    shapes = [c.layer for c in calls(graph)]
    for each in trained.values():
        shapes += [*each.site.layers, *each.site.forms[each.kind].layers]
    once = list(dict.fromkeys(shapes))
    return {s: float(s.macs) for s in once} if context.times is None else dict(context.times(once))


def cheapest(trained: Library, error: float, price: Prices) -> dict[str, str]:
    """For each site the cheapest kind within an error; of a block and its parts the way that saves more.

    Args:
        trained: the alternatives.
        error: relative and squared, at most.
        price: of every layer; what does not cost less than the site itself is never taken.
    """
    best: dict[str, Alternative] = {}
    for each in trained.values():
        held = best.get(each.site.name)
        able = each.error is not None and each.error <= error and saved(each, price) > 0
        if able and (held is None or saved(each, price) > saved(held, price)):
            best[each.site.name] = each
    taken: list[Alternative] = []
    for each in sorted(best.values(), key=lambda a: -len(a.site.nodes)):
        inside = [a for a in best.values() if set(a.site.nodes) < set(each.site.nodes)]
        free = not any(conflict(each.site, other.site) for other in taken)
        if free and saved(each, price) >= sum(saved(a, price) for a in inside):
            taken.append(each)
    return {a.site.name: a.kind for a in best.values() if a in taken}


def saved(each: Alternative, price: Prices) -> float:
    """What an alternative costs less than its site."""
    return _sum(each.site.layers, price) - _sum(each.site.forms[each.kind].layers, price)


def _sum(layers: Sequence[Layer], price: Prices) -> float:
    return sum(price[layer] for layer in layers)


@torch.no_grad()
def losses(graph: Graph, trained: Library, context: Context) -> dict[tuple[str, str], float]:
    """What each alternative alone adds to the loss: divergence from the original's outputs, on calibration data.

    KL divergence of classes, mean squared difference of others; at most 256 samples. What lies before a site is
    computed once for all.

    Raises:
        InputError: there are no calibration data.
    """
    if not context.calibrate:
        raise InputError("Swap: share: no calibration data", do="Give calibrate= or train= to the Task.")
    every = list(trained.values())
    weights = [digest(a.site.name, a.kind, dict(a.module.state_dict())) for a in every]
    name = f"swap-losses-{digest(identity(graph), SAMPLES, calibrated(graph, context), *weights)}"

    def measure() -> list[float]:
        return _measured(graph, every, context)

    found = context.store.once(name, measure) if context.store is not None else measure()
    return {(a.site.name, a.kind): max(value, 0.0) for a, value in zip(every, found, strict=True)}


def _measured(graph: Graph, every: Sequence[Alternative], context: Context) -> list[float]:
    teacher = teacher_of(graph, [a.site for a in every], context.device)
    pupils = [Pupil(a.site, a.kind, a.module.to(context.device)) for a in every]
    sums, count = [0.0] * len(every), 0
    below = {p.site.name: _below(teacher, p.site) for p in pupils}
    for batch in take(context.calibrate, SAMPLES):
        whole = placed(batch, teacher.graph, "calibrate")
        for inputs in zip(*(torch.split(x, CHUNK) for x in whole), strict=True):
            values = _values(teacher.graph, inputs)
            named = {node.name: value for node, value in values.items()}
            expected = _outputs(teacher.graph, values)
            for i, pupil in enumerate(pupils):
                context.progress("losses of alternatives", i, len(pupils))
                found = answer(teacher, pupil, tuple(named[n] for n in pupil.site.inputs))
                changed = _from(teacher.graph, values, below[pupil.site.name], found)
                sums[i] += len(inputs[0]) * float(distillation_loss(changed, expected, None, _SETTINGS))
            count += len(inputs[0])
    for a in every:
        a.module.cpu()
    return [total / max(count, 1) for total in sums]


def _values(graph: Graph, inputs: Sequence[Tensor]) -> _Values:
    """The value of every node, each as it was made: what writes into another's value writes into a copy."""
    state: _Values = dict(zip(graph.net.graph.find_nodes(op="placeholder"), inputs, strict=True))
    made = dict(state)
    for node in graph.net.graph.nodes:
        compute(graph, node, state)
        if node.op not in ("placeholder", "output"):
            made[node] = state[node]
    return made


def _below(teacher: Teacher, site: Site) -> list[Node]:
    """A site's end, and what depends on it, in order."""
    end = teacher.behind[site.name][-1]
    found = {end}
    for node in teacher.graph.net.graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return [n for n in teacher.graph.net.graph.nodes if n in found and n.op != "output"]


def _from(graph: Graph, values: _Values, below: Sequence[Node], found: Tensor) -> Any:
    """The outputs with another value at a site's end."""
    changed: Any = ChainMap({below[0]: found}, values)
    for node in below[1:]:
        compute(graph, node, changed)
    return _outputs(graph, changed)


def _outputs(graph: Graph, values: Any) -> Any:
    nodes: Any = graph.net.graph.output_node().args[0]
    named = {name: values[node] for name, node in zip(graph.outputs, nodes, strict=True)}
    return next(iter(named.values())) if graph.bare else named


@dataclass(frozen=True)
class Programme:
    """The choice of all sites together, for `allocate`.

    Args:
        places: the sites with the losses of their choices, as they are for the first.
        factors: their costs.
        rest: what no site accounts for.
        kinds: for each site the kinds of its choices after the first.
        around: for each site in a block the block, while that is a site too.
        lost: the loss of each kind at each site.
    """

    places: tuple[Place, ...]
    factors: tuple[Factor, ...]
    rest: float
    kinds: Mapping[str, tuple[str, ...]]
    around: Mapping[str, str]
    lost: Mapping[tuple[str, str], float]

    @property
    def whole(self) -> float:
        """The cost of the network as it is."""
        return self.rest + sum(float(f.costs[COST][(0,) * len(f.sites)]) for f in self.factors)

    def chosen(self, bound: float) -> dict[str, str] | None:
        """The kinds of least loss at a cost of at most `bound`, by site; None where there are none."""
        point = allocate(self.places, self.factors, {COST: bound - self.rest}, tie=COST)
        return None if point is None else self.read(point)

    def least(self) -> dict[str, str]:
        """The kinds of the least cost, whatever they lose."""
        free = [Place(p.name, (0.0,) * len(p.loss)) for p in self.places]
        point = allocate(free, [replace(f, loss=f.costs[COST]) for f in self.factors], {}, tie=COST)
        return self.read(point) if point is not None else {}

    def cost(self, blocks: Mapping[str, str]) -> float:
        """Of a choice."""
        point = {n: 1 + some.index(blocks[n]) if n in blocks else 0 for n, some in self.kinds.items()}
        return self.rest + sum(float(f.costs[COST][tuple(point[s] for s in f.sites)]) for f in self.factors)

    def read(self, point: Assignment) -> dict[str, str]:
        """A solution as kinds by site; what lies in a swapped block goes with it."""
        swapped = {n: self.kinds[n][i - 1] for n, i in point.items() if i > 0}
        return {n: k for n, k in swapped.items() if self.around.get(n) not in swapped}


def programme(graph: Graph, trained: Library, loss: Mapping[tuple[str, str], float], price: Prices) -> Programme:
    """The choice of all sites together.

    A part of a block costs and loses what it does only while the block stays as it is: the two have one factor.

    Args:
        graph: the network.
        trained: the alternatives.
        loss: of each.
        price: of every layer.
    """
    known = {a.site.name: a.site for a in trained.values()}
    kinds = {name: tuple(k for n, k in trained if n == name) for name in known}
    around = dict(_around(list(known.values())))
    places, factors = [], []
    for name, site in known.items():
        inner = {n for s in known.values() if around.get(s.name) == name for n in s.nodes}
        kept = [c.layer for c in calls(graph) if c.node in site.nodes and c.node not in inner]
        own = kept if inner else site.layers
        cost = np.array([_sum(layers, price) for layers in (own, *(site.forms[k].layers for k in kinds[name]))])
        lost = np.array([0.0, *(loss[name, k] for k in kinds[name])])
        if name not in around:
            places.append(Place(name, tuple(lost)))
            factors.append(Factor((name,), {COST: cost}))
            continue
        places.append(Place(name, (0.0,) * len(lost)))
        only = np.eye(1, 1 + len(kinds[around[name]]))  # 1 where the block stays
        factors.append(Factor((name, around[name]), {COST: cost[:, None] * only}, loss=lost[:, None] * only))
    covered = {n for s in known.values() for n in s.nodes}
    rest = _sum([c.layer for c in calls(graph) if c.node not in covered], price)
    return Programme(tuple(places), tuple(factors), rest, kinds, around, loss)


def _around(known: Sequence[Site]) -> Iterator[tuple[str, str]]:
    for site in known:
        for other in known:
            if other.part == "block" and set(site.nodes) < set(other.nodes):
                yield site.name, other.name
