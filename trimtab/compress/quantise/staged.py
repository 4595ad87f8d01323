"""Staged: a graph run node by node over all calibration samples, with only those values kept that are still needed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from trimtab.graph.model import EXAMPLE_BATCH, Graph

Inputs = tuple[Tensor, ...]
Values = dict[Node, Any]
CHUNK = 32
"""Samples that are run together."""
MEMORY = 2 * 1024**3
"""Bytes of values that may be held of one network."""
_LEARNT = torch.ops.aten._fake_quantize_learnable_per_tensor_affine.default


def chunks(graph: Graph, inputs: Sequence[Inputs], samples: int, seed: int) -> list[Inputs]:
    """Calibration samples in a seeded random order, in chunks of `CHUNK`, no more than `MEMORY` holds.

    Inputs of which one has no batch dimension stay in the batches that they come in.

    Args:
        graph: what they are run through.
        inputs: the calibration inputs.
        samples: at most so many are taken.
        seed: of the order.
    """
    if not all(None in spec.shape for spec in graph.inputs):
        return list(inputs)
    places = [spec.shape.index(None) for spec in graph.inputs]
    whole = [torch.cat([batch[i] for batch in inputs], place) for i, place in enumerate(places)]
    total = whole[0].shape[places[0]]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    order = order[: min(samples, room(graph))]
    return [
        tuple(value.index_select(place, part.to(value.device)) for value, place in zip(whole, places, strict=True))
        for part in torch.split(order, CHUNK)
    ]


def room(graph: Graph) -> int:
    """How many samples `MEMORY` holds the values of, 1 at least."""
    return max(1, MEMORY // max(1, heaviest(graph)))


def heaviest(graph: Graph) -> int:
    """Bytes of one sample's values that are needed at the same time, at most."""
    nodes = list(graph.net.graph.nodes)
    last, live, most = _last_uses(nodes), 0, 0
    ends: dict[int, int] = {}
    for i, node in enumerate(nodes):
        size = 0 if node.op == "get_attr" else _bytes(node)
        live += size
        ends[last[node]] = ends.get(last[node], 0) + size
        most = max(most, live)
        live -= ends.pop(i, 0)
    return most // EXAMPLE_BATCH


def _bytes(node: Node) -> int:
    leaves = [t for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in leaves)


def _last_uses(nodes: Sequence[Node]) -> dict[Node, int]:
    """For each node the place of its last user, or its own where it has none."""
    last = {node: i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[source] = i
    return last


class Staged:
    """A graph's values on all chunks at one position of its order; it only moves forward.

    Args:
        graph: evaluating. Parameters that change while it moves count from then on.
        parts: the inputs, in chunks.
        keep: names of nodes whose values are held until they are taken.
    """

    def __init__(self, graph: Graph, parts: Sequence[Inputs], keep: Collection[str] = ()) -> None:
        self.graph, self.at = graph, 0
        self.nodes = list(graph.net.graph.nodes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.named = {node.name: node for node in self.nodes}
        self._last = _last_uses(self.nodes)
        self._kept = {self.named[name] for name in keep}
        self._dying: dict[int, list[Node]] = {}
        for node, end in self._last.items():
            self._dying.setdefault(end, []).append(node)
        inputs = [n for n in self.nodes if n.op == "placeholder"]
        self.values: list[Values] = [dict(zip(inputs, part, strict=True)) for part in parts]

    def advance(self, to: int) -> None:
        """Compute the nodes before a position, on every chunk, and forget what nothing after it reads."""
        with torch.no_grad():
            for values in self.values:
                for i in range(self.at, to):
                    compute(self.graph, self.nodes[i], values)
                    for node in self._dying.get(i, ()):
                        if node not in self._kept:
                            values.pop(node, None)
        self.at = max(self.at, to)

    def take(self, name: str) -> list[Tensor]:
        """A node's value on each chunk, computed if it is not yet; no longer held for the caller."""
        node = self.named[name]
        self.advance(self.place[node] + 1)
        self._kept.discard(node)
        over = self._last[node] < self.at
        return [values.pop(node) if over else values[node] for values in self.values]

    def put(self, name: str, value: Tensor) -> None:
        """Replace what every chunk holds of a node that does not depend on the inputs."""
        node = self.named[name]
        for values in self.values:
            if node in values:
                values[node] = value

    def behind(self, end: str, given: Iterable[str] = ()) -> list[Node]:
        """The nodes from the position on that a node depends on, itself last, without those that are given."""
        known = {self.named[name] for name in given}
        wanted, waiting = {self.named[end]}, [self.named[end]]
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if self.place[source] >= self.at and source not in wanted and source not in known:
                    wanted.add(source)
                    waiting.append(source)
        return sorted(wanted, key=self.place.__getitem__)

    def run(self, chunk: int, nodes: Sequence[Node], given: Mapping[str, Tensor]) -> Tensor:
        """The value of the last of `nodes` on one chunk, with the values of some nodes given; nothing is kept."""
        values = dict(self.values[chunk])
        values.update({self.named[name]: value for name, value in given.items()})
        for node in nodes:
            compute(self.graph, node, values)
        result: Tensor = values[nodes[-1]]
        return result


def compute(graph: Graph, node: Node, values: Values) -> None:
    """Write the value of one node into `values`, which holds those of its inputs."""
    if node.op in ("placeholder", "output"):
        return
    if node.op == "get_attr":
        values[node] = attrgetter(str(node.target))(graph.net)
        return
    target: Any = node.target
    args: Any = map_arg(node.args, values.__getitem__)
    kwargs: Any = map_arg(node.kwargs, values.__getitem__)
    if target is _LEARNT:
        # steps are held here: the kernel of the same values whose gradient is that of the input alone
        x, scale, zero, low, high = args[:5]
        zero = zero.detach().round().clamp(low, high).to(torch.int32)
        values[node] = torch.fake_quantize_per_tensor_affine(x, scale.detach(), zero, low, high)
        return
    first: Any = node.args[0] if node.args else None
    schema = getattr(target, "_schema", None)
    if schema is not None and schema.is_mutable and isinstance(first, Node):
        # the same values may be run again: what it writes into must not be theirs
        values[first] = args[0].clone()
        args = (values[first], *args[1:])
    values[node] = target(*args, **kwargs)
