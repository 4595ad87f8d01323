"""Technique: what can be done to a network to make it smaller or faster."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from trimtab.core.context import Context
from trimtab.core.space import Axis
from trimtab.graph.model import Graph


@runtime_checkable
class Technique(Protocol):
    """A frozen dataclass of settings that are JSON values, with two pure methods.

    To add one: one file, one line in `trimtab.compress.__all__`, one row in the docs. The contract
    tests find it there.
    """

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """What could be chosen in this network: one axis for each place, with what may be done there."""
        ...

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The network with what the settings say done to it; `graph` itself is left as it was."""
        ...
