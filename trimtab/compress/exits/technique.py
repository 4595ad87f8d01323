"""Exits: answers on the way, for inputs that need no more."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch

from trimtab.compress.exits.answers import Answers, answered, told, value_on
from trimtab.compress.exits.calibration import temperature
from trimtab.compress.exits.heads import NAME, Confidence, Head, classes, confidence, heads, key
from trimtab.compress.exits.teach import taught, with_exits
from trimtab.compress.exits.thresholds import NEVER, Chosen, Costs, choose, outcome
from trimtab.compress.quantise.technique import refuse_quantised
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.chain import Link, chain
from trimtab.graph.count import total
from trimtab.graph.macs import macs
from trimtab.graph.model import EXAMPLE_BATCH, Graph
from trimtab.graph.modes import set_mode

_LATE = 0.95
"""An exit behind this share of the work saves nothing."""
_STEPS = 300


def _training() -> dict[str, Any]:
    return {"steps": _STEPS}


@dataclass(frozen=True)
class Exits:
    """Early exits: a sample that is easy leaves a chain of blocks early, with the answer of a small head there.

    y(x) = z_k(x) for the least k with confidence(z_k(x) / T_k) >= tau_k, else the network's own z(x) (eq. 10)

    The heads learn from the network's own end; each T_k makes its head's confidence true (calibration), and the
    thresholds are those of the least expected cost whose drop on the data to choose on is at most `max_drop`. Exits
    that do not pay are left out. A batch leaves early when all its samples do.

    Args:
        at: names of places, or how many to spread evenly over the network's multiply-adds; None for 4.
        train: settings of `Distil` that the heads are trained by, such as `{"steps": 300, "lr": 0.05}`.
        threshold: tau of each place, null for one that is left out, or one number for all; None: chosen.
        max_drop: of the task's score (of agreement with the end, where there are no labels), for that choice.
        confidence: `probability`, `entropy` or `margin`, each from 0 to 1.
        layers: of each head before its mean over positions; 0 for the mean and the linear layer alone.
        width: of these layers; None doubles the channels each time, up to what the classifier reads.
        temperature: T of each place; None: where the likelihood of the labels is greatest.
        joint: whether the network is trained with its heads; else it stays as it is, and so do its own answers.

    Raises:
        InputError: the network is no classifier, no chain of blocks, or quantised already; a place is unknown;
            a threshold is to be chosen and there is no data.

    Source: Teerapittayanon, McDanel & Kung (2016), BranchyNet; Kaya, Hong & Dumitras (2019), Shallow-Deep Networks,
    section 4; Zhang et al. (2019), Be Your Own Teacher, for the training; Guo et al. (2017), On Calibration of Modern
    Neural Networks, section 4.2, for T. The choice of thresholds by the multiplier of Lagrange is ours.
    """

    at: int | tuple[str, ...] | None = None
    train: Mapping[str, Any] = field(default_factory=_training)
    threshold: float | tuple[float | None, ...] | None = None
    max_drop: float = 0.005
    confidence: Confidence = "probability"
    layers: int = 1
    width: int | None = None
    temperature: tuple[float, ...] | None = None
    joint: bool = False

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each block of the chain: whether it has an exit."""
        return tuple(Axis(f"Exits:{link.name}", (False, True)) for link in chain(graph) if link.share < _LATE)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with heads and the choice among their answers, evaluating."""
        return self._made(graph, context)[1]

    def resolve(self, graph: Graph, context: Context) -> Exits:
        """The same with places, thresholds and temperatures as numbers, and the training's precision settled."""
        return self._made(graph, context)[0]

    def _made(self, graph: Graph, context: Context) -> tuple[Exits, Graph]:
        training = self._checked(graph)
        links = spread(places(graph), self.at)
        base = set_mode(graph.copy(), False)
        fresh = heads(base, links, self.layers, self.width, training.seed)
        base, trained, recipe = taught(base, links, fresh, context, training.recipe(), self.joint)
        answers = answered(base, links, trained, context)
        degrees = self._temperatures(links, answers)
        calibrated = {k: _divided(head, t) for (k, head), t in zip(trained.items(), degrees, strict=True)}
        costs = _costs(base, links, calibrated)
        taus, chosen = self._thresholds(links, answers, degrees, costs, graph, context)
        made = _built(base, links, calibrated, taus, self.confidence)
        made = made.note(*told(links, answers, degrees, taus, chosen)) if answers else made
        shown = tuple(None if t >= NEVER else t for t in taus)
        plan = {**_training(), **self.train, "precision": recipe.precision, "channels_last": recipe.channels_last}
        names = tuple(link.name for link in links)
        return replace(self, at=names, train=plan, threshold=shown, temperature=tuple(degrees)), made

    def _checked(self, graph: Graph) -> Distil:
        refuse_quantised(graph, "Exits")
        classes(graph)
        if any(name.startswith(f"{NAME}.") for name in graph.tensors()):
            raise InputError("Exits: the network has exits already", do="Start from the network without them.")
        if self.confidence not in get_args(Confidence):
            raise InputError("Exits: confidence", got=repr(self.confidence), expected=", ".join(get_args(Confidence)))
        for name, value, least in (
            ("max_drop", self.max_drop, 0),
            ("layers", self.layers, 0),
            ("width", self.width, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"Exits: {name}", got=value, expected=f"{least} or more")
        given = self.threshold
        for tau in given if isinstance(given, Sequence) else (given,):
            if tau is not None and not 0 <= tau <= 1:
                raise InputError("Exits: threshold", got=tau, expected="a confidence from 0 to 1")
        training: Distil = made(Distil, {**_training(), **self.train})
        return training

    def _temperatures(self, links: Sequence[Link], answers: Answers | None) -> list[float]:
        if self.temperature is not None:
            given = [float(t) for t in self.temperature]
            if len(given) != len(links) or any(t <= 0 for t in given):
                raise InputError("Exits: temperature", got=given, expected=f"{len(links)} numbers above 0")
            return given
        if answers is None:
            return [1.0] * len(links)
        return [round(temperature(answers.logits[:, k], answers.labels), 4) for k in range(len(links))]

    def _thresholds(
        self,
        links: Sequence[Link],
        answers: Answers | None,
        degrees: Sequence[float],
        costs: Costs,
        graph: Graph,
        context: Context,
    ) -> tuple[tuple[float, ...], Chosen | None]:
        taus: tuple[float, ...] | None = None
        if isinstance(self.threshold, (int, float)):
            taus = (float(self.threshold),) * len(links)
        elif self.threshold is not None:
            taus = tuple(NEVER if t is None else float(t) for t in self.threshold)
            if len(taus) != len(links):
                raise InputError("Exits: threshold", got=f"{len(taus)} of them", expected=f"{len(links)}, one a place")
        if answers is None:
            if taus is None:
                raise InputError(
                    "Exits: no data to choose thresholds on", do="Give validate= or calibrate= to the Task."
                )
            return taus, None
        logits = answers.logits / torch.tensor([*degrees, 1.0])[None, :, None]
        sure = torch.cat([confidence(logits[:, k], self.confidence) for k in range(len(links))], 1)
        value = value_on(answers, graph, context)
        found = choose(logits, sure, costs, value, self.max_drop) if taus is None else None
        found = found or outcome(logits, sure, taus or (), costs, value)
        return found.thresholds, found


def places(graph: Graph) -> tuple[Link, ...]:
    """Where exits can be: ends of blocks, before nearly all is done.

    Raises:
        InputError: there is none.
    """
    found = tuple(link for link in chain(graph) if link.share < _LATE)
    if not found:
        got = "no value that all later ones are computed from"
        raise InputError("Exits: the network is no chain of blocks", got=got, expected="blocks that follow each other")
    return found


def spread(found: Sequence[Link], at: int | Sequence[str] | None) -> tuple[Link, ...]:
    """The places of these names, or as many as asked for, spread evenly over the work."""
    if at is None or isinstance(at, int):
        count = 4 if at is None else at
        if count < 1:
            raise InputError("Exits: at", got=count, expected="1 or more, or names of places")
        wanted = [(i + 1) / (count + 1) for i in range(count)]
        chosen = {min(found, key=lambda link: abs(link.share - share)) for share in wanted}
        return tuple(link for link in found if link in chosen)
    known = {link.name: link for link in found}
    if not at:
        raise InputError("Exits: at", got="no names", expected=f"some of {', '.join(known)}")
    for name in at:
        if name not in known:
            raise InputError("Exits: at", got=repr(name), expected=f"some of {', '.join(known)}")
    return tuple(link for link in found if link.name in at)


def _built(
    graph: Graph, links: Sequence[Link], found: Mapping[str, Head], taus: Sequence[float], kind: Confidence
) -> Graph:
    used = [(link, tau) for link, tau in zip(links, taus, strict=True) if tau < NEVER]
    if not used:
        return graph.note("Exits: none pays within the drop that is allowed: the network has none.")
    some = [link for link, _ in used]
    return with_exits(graph, some, {link.name: found[link.name] for link in some}, [t for _, t in used], kind)


def _divided(head: Head, degree: float) -> Head:
    """A head whose logits are divided by its temperature: its last layer's weights are."""
    fresh = copy.deepcopy(head)
    with torch.no_grad():
        for parameter in fresh.linear.parameters():
            parameter.div_(degree)
    return fresh


def _costs(graph: Graph, links: Sequence[Link], found: Mapping[str, Head]) -> Costs:
    """Multiply-adds until each place and of each head, over those of the network."""
    own = EXAMPLE_BATCH * total(graph, 1).macs
    whole = with_exits(graph, links, found, [0.5] * len(links), "probability")
    added = {link.name: 0 for link in links}
    for node in whole.nodes():
        read = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        for link in links:
            if any(name.startswith(f"{NAME}.heads.{key(link.name)}.") for name in read):
                added[link.name] += macs(node)
    return Costs(tuple(link.share for link in links), tuple(added[link.name] / own for link in links))
