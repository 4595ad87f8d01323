"""Swap: parts of a network replaced by cheaper kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.compress.swap.choose import Library, Prices, cheapest, losses, prices, programme
from trimtab.compress.swap.kinds import KEPT, KINDS
from trimtab.compress.swap.library import Alternative, Choice, library, swapped
from trimtab.compress.swap.sites import Site, conflict, sites
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.model import Graph
from trimtab.train.recipe import Recipe

_MEANT = ("steps", "optimiser", "lr", "weight_decay", "seed")
"""Settings of `Distil` that training block by block has."""


def _train() -> dict[str, Any]:
    return {"steps": 200}


@dataclass(frozen=True)
class Swap:
    """Replace parts of a network by cheaper kinds, each trained to give what its part gave.

    Give one of `blocks`, `error` and `share`. `resolve` turns the others into kinds by site, and a plan holds these
    only. What counts as cost is the time that a device's latency table gives for the layers (`trimtab compress`), or
    multiply-adds where there is no table; a kind that does not cost less than what it stands for is not taken.

    A convolution: `separable` (depthwise, then 1x1), `grouped`, `bottleneck` (1x1, kernel, 1x1), `stacked` (5x5 as
    two 3x3, 7x7 as three), `strips` (1xk, kx1), `identity`. A residual block: `convolution` (one 3x3), `identity`.
    Attention: `pooling` (a mean over neighbours and over all), `linear`. A feed-forward part: `narrow`, `narrower`
    (a half and a quarter of its units).

    Args:
        blocks: for a site's name its kind.
        kinds: that may be chosen.
        error: at each site, the cheapest kind whose relative squared error, on the calibration data and behind the
            part's norm and activation, is at most this.
        share: of the cost of all layers that may be left: the kinds of the least loss, chosen together and exactly;
            a kind's loss is the divergence of the outputs with it alone.
        train: settings of `Distil`, of which steps, optimiser, lr, weight_decay and seed count: how alternatives are
            trained against the original's features, all in one pass; None leaves them as they begin.

    Raises:
        InputError: a site or kind is unknown, two sites lie in each other, or there are no data to learn from.

    Source: Li et al. (2020), Blockwisely Supervised Neural Architecture Search with Knowledge Distillation (DNA),
    equation 5; Molchanov et al. (2022), LANA; Bercovich et al. (2024), Puzzle.
    """

    blocks: Mapping[str, str] | None = None
    kinds: tuple[str, ...] = KINDS
    error: float | None = None
    share: float | None = None
    train: Mapping[str, Any] | None = field(default_factory=_train)

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each site: `kept`, or what may stand in for it."""
        return tuple(Axis(f"Swap:{s.name}", (KEPT, *self.of(s))) for s in self.places(graph, context))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with the chosen kinds, trained."""
        settled = self.resolve(graph, context)
        chosen = settled._chosen(graph, context)
        return swapped(graph.copy(), list(settled.library(graph, context, chosen).values()))

    def resolve(self, graph: Graph, context: Context) -> Swap:
        """The same with `blocks` in place of `error`."""
        self.check()
        if self.blocks is not None:
            self._chosen(graph, context)
            return self
        trained = self.library(graph, context, self.choices(graph, context))
        price = prices(graph, trained, context)
        if any(each.error is None for each in trained.values()):
            raise InputError("Swap: no data to measure errors on", do="Give calibrate= or train= to the Task.")
        if self.error is not None:
            return replace(self, blocks=cheapest(trained, self.error, price), error=None)
        return replace(self, blocks=self._together(graph, context, trained, price), share=None)

    def check(self) -> Swap:
        """The technique itself, or InputError naming the setting that is wrong."""
        given = [n for n in ("blocks", "error", "share") if getattr(self, n) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise InputError("Swap", got=got, expected="one of blocks, error and share")
        unknown = [k for k in self.kinds if k not in KINDS]
        if unknown or not self.kinds:
            got = repr(unknown[0]) if unknown else "none"
            raise InputError("Swap: kinds", got=got, expected=f"some of {', '.join(KINDS)}")
        for name, value in (("error", self.error), ("share", self.share)):
            if value is not None and not 0 < value < 1:
                raise InputError(f"Swap: {name}", got=value, expected="a share above 0 and below 1")
        self.recipe()
        return self

    def recipe(self) -> Recipe | None:
        """How alternatives are trained; None for not at all."""
        if self.train is None:
            return None
        other = [k for k in self.train if k not in _MEANT]
        if other:
            raise InputError(f"Swap: train: {other[0]}", got="a setting of whole networks", expected=", ".join(_MEANT))
        settings = {"optimiser": "adamw", "lr": 0.003, "weight_decay": 0.0, **self.train}
        training: Distil = made(Distil, settings)
        return training.recipe()

    def places(self, graph: Graph, context: Context) -> tuple[Site, ...]:
        """The sites that have some of the kinds."""
        return tuple(s for s in sites(graph, context.task.keep) if self.of(s))

    def of(self, site: Site) -> tuple[str, ...]:
        """Those of a site's kinds that may be chosen."""
        return tuple(k for k in site.kinds if k in self.kinds)

    def choices(self, graph: Graph, context: Context) -> tuple[Choice, ...]:
        """Every site with every kind that it may have."""
        return tuple((s, k) for s in self.places(graph, context) for k in self.of(s))

    def library(self, graph: Graph, context: Context, choices: Sequence[Choice]) -> dict[tuple[str, str], Alternative]:
        """Trained alternatives by site and kind; see `library`."""
        return library(graph, choices, context, self.recipe())

    def _together(self, graph: Graph, context: Context, trained: Library, price: Prices) -> dict[str, str]:
        every = programme(graph, trained, losses(graph, trained, context), price)
        found = every.chosen(float(self.share or 0.0) * every.whole)
        if found is None:
            least = every.cost(every.least()) / every.whole
            raise InputError("Swap: share", got=self.share, expected=f"{least:.2f} or more: no kinds here cost less")
        return found

    def _chosen(self, graph: Graph, context: Context) -> tuple[Choice, ...]:
        """The sites that `blocks` names, in graph order, with their kinds."""
        wanted = dict(self.blocks or {})
        known = {s.name: s for s in sites(graph, context.task.keep)}
        for name, kind in wanted.items():
            if name not in known:
                some = ", ".join(known) or "none: nothing here has a cheaper kind"
                raise InputError("Swap: no such site", got=repr(name), expected=f"one of {some}")
            if kind not in known[name].kinds:
                raise InputError("Swap", where=name, got=repr(kind), expected=" or ".join(known[name].kinds))
        found = tuple((s, wanted[s.name]) for s in known.values() if s.name in wanted)
        for i, (a, _) in enumerate(found):
            for b, _ in found[i + 1 :]:
                if conflict(a, b):
                    raise InputError("Swap", where=a.name, got=f"a part of {b.name}", expected="one of the two")
        return found
