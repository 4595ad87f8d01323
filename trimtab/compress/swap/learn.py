"""Learn: all alternatives of all sites trained side by side, from one pass of the original over the data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.compress.quantise.staged import Staged, compute
from trimtab.compress.swap.sites import Site, tail
from trimtab.core.context import Context
from trimtab.core.errors import InputError, TrimtabError
from trimtab.core.task import Batch
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.train.checkpoint import held_interrupt
from trimtab.train.data import checked, stream
from trimtab.train.loop import CHECKPOINT_SECONDS
from trimtab.train.recipe import Recipe, rate

SAMPLES = 64
"""Of each batch that are learnt from: features have many positions, and there are many alternatives."""
_TINY = 1e-12


@dataclass
class Pupil:
    """An alternative under training: it changes in place.

    Args:
        site: where it stands.
        kind: what it is.
        module: takes the values of `site.reads(kind)`, gives that of `site.gives(kind)`.
    """

    site: Site
    kind: str
    module: nn.Module

    @property
    def name(self) -> str:
        """Of the site, with the kind."""
        return f"{self.site.name}: {self.kind}"


@dataclass(frozen=True)
class Teacher:
    """The original, evaluating.

    Args:
        graph: an own copy on the device to train on, images channels-last, in which convolutions run faster.
        behind: for each site's name, its layer's node and those of its norm and activation.
    """

    graph: Graph
    behind: Mapping[str, tuple[Node, ...]]


def teacher_of(graph: Graph, sites: Sequence[Site], device: str) -> Teacher:
    """The original as what alternatives of some sites learn from."""
    own = set_mode(graph.copy() if graph.device == torch.device(device) else graph.to(device), False)
    own.net.requires_grad_(False)
    if any(len(spec.shape) == 4 for spec in own.inputs):
        own.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nodes: dict[str, Node] = {n.name: n for n in own.net.graph.nodes}
    return Teacher(own, {s.name: (nodes[s.layer], *tail(nodes[s.layer])) for s in sites})


def placed(batch: Batch, graph: Graph, where: str) -> tuple[Tensor, ...]:
    """The inputs of a batch on the graph's device, images channels-last."""
    inputs, _ = checked(batch, graph, where)
    found = (x.to(graph.device) for x in inputs)
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in found)


def features(
    graph: Graph, sites: Sequence[Site], inputs: tuple[Tensor, ...], ends: bool = True
) -> Iterator[tuple[Site, tuple[Tensor, ...], Tensor]]:
    """What goes into each site, and what comes out of it, as one run of the network comes by.

    Args:
        graph: evaluating.
        sites: of it.
        inputs: of the network.
        ends: what comes out behind the norm and the activation (else what an alternative itself should give).
    """
    out = {site.name: site.end if ends else site.layer for site in sites}
    wanted = dict.fromkeys(n for s in sites for n in (*s.inputs, out[s.name]))
    state = Staged(graph, [inputs], wanted)
    place = {name: state.place[state.named[name]] for name in wanted}
    last = {name: max(place[out[s.name]] for s in sites if name in (*s.inputs, out[s.name])) for name in wanted}
    held: dict[str, Tensor] = {}
    for name in sorted(wanted, key=place.__getitem__):
        held[name] = state.take(name)[0]
        for site in sites:
            if out[site.name] == name:
                yield site, tuple(held[n] for n in site.inputs), held[name]
        held = {n: value for n, value in held.items() if last[n] > place[name]}


def answer(teacher: Teacher, pupil: Pupil, inputs: tuple[Tensor, ...]) -> Tensor:
    """What an alternative gives at its site's end: behind the original's own norm and activation."""
    site = pupil.site
    value: Tensor = pupil.module(*inputs[: len(site.reads(pupil.kind))])
    if site.gives(pupil.kind) == site.end:
        return value
    first, *rest = teacher.behind[site.name]
    values: dict[Any, Any] = {first: value}
    for node in rest:
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                compute(teacher.graph, source, values)
        compute(teacher.graph, node, values)
    result: Tensor = values[rest[-1] if rest else first]
    return result


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """||found - wanted||^2 / ||wanted||^2, each over the whole batch."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(_TINY)


def learn(graph: Graph, pupils: Sequence[Pupil], context: Context, recipe: Recipe, name: str) -> None:
    """Train alternatives, in place, to give what the original gives at their sites.

        min over w of ||g(f_w(x)) - y||^2 / ||y||^2

    with x and y the original's features before and behind the site, and g the original's norm and activation.
    One run of the original serves all of them, and each has its optimiser: one alone learns what it learns
    among others. With a store, the state is kept every 20 s and at Ctrl-C.

    Args:
        graph: the original.
        pupils: the alternatives.
        context: its training data, or calibration data without; labels are not needed.
        recipe: steps, optimiser, rates and the order of data.
        name: of the unfinished training in the store.

    Raises:
        InputError: there are no data. TrimtabError: an error became NaN or infinite.

    Source: Li et al. (2020), Blockwisely Supervised Neural Architecture Search with Knowledge Distillation,
    equation 5; Molchanov et al. (2022), LANA, section 3.2; Bercovich et al. (2024), Puzzle, section 3.
    """
    learners = [p for p in pupils if any(True for _ in p.module.parameters())]
    if not learners or recipe.steps == 0:
        return
    sites = list({p.site.name: p.site for p in learners}.values())
    teacher = teacher_of(graph, sites, context.device)
    by_site = {s.name: [p for p in learners if p.site.name == s.name] for s in sites}
    optimisers = {p.name: _optimiser(p.module, recipe) for p in learners}
    state = _State(learners, optimisers, context, name)
    kept = time.monotonic()
    with held_interrupt() as held:
        for epoch, index, batch in stream(data_of(context), recipe.seed, state.restored()):
            if state.steps >= recipe.steps:
                return
            inputs = _some(placed(batch, teacher.graph, "train"), teacher.graph)
            for site, x, y in features(teacher.graph, sites, inputs):
                for pupil in by_site[site.name]:
                    _step(teacher, pupil, optimisers[pupil.name], x, y, rate(recipe, state.steps))
            state.steps, state.position = state.steps + 1, (epoch, index + 1)
            if held.frames or time.monotonic() - kept > CHECKPOINT_SECONDS:
                state.keep()
                kept = time.monotonic()
            held.release()
            context.progress("train alternatives", state.steps, recipe.steps)


def _some(inputs: tuple[Tensor, ...], graph: Graph) -> tuple[Tensor, ...]:
    """The first `SAMPLES` of a batch, where every input has them along its first dimension."""
    batched = all(spec.shape[:1] == (None,) for spec in graph.inputs)
    return tuple(x[:SAMPLES] for x in inputs) if batched else inputs


def data_of(context: Context) -> Iterable[Batch]:
    """Batches to learn from, labels or not: those to train on, else those to calibrate on."""
    if context.train is not None:
        return context.train
    if not context.calibrate:
        raise InputError(
            "Swap: no data to learn from", do="Give train= or calibrate= to the Task, or swap(train=None, ...)."
        )
    return context.calibrate


def errors(graph: Graph, pupils: Sequence[Pupil], batches: Sequence[Batch], context: Context) -> dict[str, float]:
    """The relative squared error of each alternative at its site, over all batches, by `Pupil.name`."""
    sites = list({p.site.name: p.site for p in pupils}.values())
    teacher = teacher_of(graph, sites, context.device)
    noise = {p.name: 0.0 for p in pupils}
    signal = dict.fromkeys((s.name for s in sites), 0.0)
    for batch in batches:
        for site, x, y in features(teacher.graph, sites, placed(batch, teacher.graph, "calibrate")):
            signal[site.name] += float(y.double().square().sum())
            for pupil in (p for p in pupils if p.site.name == site.name):
                with torch.no_grad():
                    noise[pupil.name] += float((answer(teacher, pupil, x) - y).double().square().sum())
    return {p.name: noise[p.name] / max(signal[p.site.name], _TINY) for p in pupils}


def _step(
    teacher: Teacher, pupil: Pupil, optimiser: torch.optim.Optimizer, x: tuple[Tensor, ...], y: Tensor, lr: float
) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr
    with torch.enable_grad():
        loss = distance(answer(teacher, pupil, x), y)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
    if not math.isfinite(float(loss.detach())):
        raise TrimtabError("Swap: the error is not finite", where=pupil.name, do="Lower lr in train.")
    optimiser.step()


def _optimiser(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)


@dataclass
class _State:
    """How far a training of alternatives is, and how that is kept."""

    pupils: Sequence[Pupil]
    optimisers: Mapping[str, torch.optim.Optimizer]
    context: Context
    name: str
    steps: int = 0
    position: tuple[int, int] = (0, 0)

    def keep(self) -> None:
        """Store it."""
        if self.context.store is None:
            return
        tensors = {}
        for pupil in self.pupils:
            for key, p in pupil.module.named_parameters():
                tensors[f"net/{pupil.name}/{key}"] = p.detach()
                slots = self.optimisers[pupil.name].state.get(p, {})
                tensors |= {f"optimiser/{pupil.name}/{key}/{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
        tensors["position"] = torch.tensor([self.steps, *self.position])
        self.context.store.put(self.name, {"training": "unfinished"}, tensors)

    @torch.no_grad()
    def restored(self) -> tuple[int, int]:
        """Put back what was stored; where in the data it goes on."""
        store = self.context.store
        if store is None or store.get(self.name) is None:
            return self.position
        tensors = store.tensors(self.name)
        self.steps, *position = (int(n) for n in tensors["position"])
        self.position = (position[0], position[1])
        for pupil in self.pupils:
            for key, p in pupil.module.named_parameters():
                p.copy_(tensors[f"net/{pupil.name}/{key}"])
                head = f"optimiser/{pupil.name}/{key}/"
                for path, value in tensors.items():
                    if path.startswith(head):
                        slot = torch.empty_like(p).copy_(value) if value.shape == p.shape and value.ndim else value
                        self.optimisers[pupil.name].state[p][path.removeprefix(head)] = slot
        return self.position
