"""Before: the training that makes a network ready to be pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from trimtab.compress.prune.places import readings
from trimtab.compress.prune.rules import Slimming, Soft, Softly
from trimtab.compress.prune.scores import scales, scored_members
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.graph.coupling import Group
from trimtab.graph.model import Graph
from trimtab.train.rule import Rule

RULES = ("slimming", "soft")


@dataclass(frozen=True)
class Shaping:
    """What `Prune.before` says beside how to train.

    Args:
        rule: `slimming` (Liu et al. 2017) or `soft` (He et al. 2018).
        strength: lambda of `slimming`.
        every: steps between two choices of `soft`.
    """

    rule: Literal["slimming", "soft"]
    strength: float = 1e-4
    every: int = 100


@dataclass(frozen=True)
class Before:
    """A training under a rule, before the first cut."""

    shaping: Shaping
    training: Distil

    def resolve(self, graph: Graph, context: Context) -> Before:
        """The same with the precision and layout settled."""
        return replace(self, training=self.training.resolve(graph, context))

    def settings(self) -> dict[str, Any]:
        """As `Prune.before` has them: the shaping's, and what is not a default of the training."""
        plain = asdict(Distil(steps=self.training.steps))
        own = {k: v for k, v in asdict(self.training).items() if k == "steps" or v != plain[k]}
        return {**asdict(self.shaping), **own}

    def trained(self, graph: Graph, groups: Sequence[Group], counts: Mapping[str, int], context: Context) -> Graph:
        """The network trained so that units can be cut from these groups.

        Args:
            graph: the network.
            groups: that may be cut.
            counts: for `soft` how many units each of them keeps.
            context: with training data.
        """
        rule = _slimming(graph, groups, self.shaping) if self.shaping.rule == "slimming" else None
        return self.training.fit(graph, context, (rule or _soft(graph, groups, counts, self.shaping.every),))


def before_of(settings: Mapping[str, Any]) -> Before:
    """The training that `Prune.before` describes.

    Raises:
        InputError: a setting is unknown, missing, of a wrong type or out of range.
    """
    own = {k: v for k, v in settings.items() if k in ("rule", "strength", "every")}
    rest = {k: v for k, v in settings.items() if k not in own}
    if "rule" not in own:
        raise InputError("Prune: before", got="no rule", expected=f"rule: {' or '.join(RULES)}")
    shaping: Shaping = made(Shaping, own)
    if shaping.strength <= 0:
        raise InputError("Prune: before: strength", got=shaping.strength, expected="above 0")
    if shaping.every < 1:
        raise InputError("Prune: before: every", got=shaping.every, expected="1 or more")
    training: Distil = made(Distil, rest)
    training.recipe()
    return Before(shaping, training)


def _slimming(graph: Graph, groups: Sequence[Group], shaping: Shaping) -> Rule:
    reached = {m.parameter for g in groups for m in g.members}
    found = tuple(name for name in scales(graph) if name in reached)
    if not found:
        raise InputError("Prune: before: slimming", got="a network without batch norms in what can be cut")
    return Slimming(found, shaping.strength)


def _soft(graph: Graph, groups: Sequence[Group], counts: Mapping[str, int], every: int) -> Rule:
    read = readings(graph, groups)
    return Soft(
        tuple(
            Softly(g.name, counts[g.name], tuple(scored_members(graph, g, "l2")), tuple(r.member for r in read[g.name]))
            for g in groups
            if counts.get(g.name, g.size) < g.size and read[g.name]
        ),
        every,
    )
