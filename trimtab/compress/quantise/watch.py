"""Watch: what passes through single nodes as a graph runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from trimtab.graph.model import Graph


class _Watching(Interpreter):
    """Runs a graph and shows the value of some nodes."""

    def __init__(self, graph: Graph, shows: Mapping[str, Callable[[Tensor], None]]) -> None:
        super().__init__(graph.net)
        self.shows = shows

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.shows:
            # an operator in place may overwrite it later, so it is read now
            self.shows[n.name](value)
        return value


def watch(graph: Graph, inputs: Iterable[tuple[Tensor, ...]], shows: Mapping[str, Callable[[Tensor], None]]) -> None:
    """Run a graph on batches and call `shows[name]` with the value of each named node, without gradients.

    Args:
        graph: evaluating.
        inputs: batches of its inputs.
        shows: what to call, by node name.
    """
    watching = _Watching(graph, shows)
    with torch.no_grad():
        for batch in inputs:
            watching.run(*batch)
