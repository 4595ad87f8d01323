"""Gates: what the loss says of a factor of one on each unit, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.compress.prune.gradients import losses
from trimtab.compress.prune.places import Place, places
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.graph.coupling import Group
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode

GATE_SCORES = ("taylor_gate", "fisher")


def by_gate(graph: Graph, groups: Sequence[Group], score: str, context: Context) -> dict[str, Tensor]:
    """Scores from g = dL/dz of a gate z = 1 on each unit wherever it is read: g = sum a dL/da over the values a read.

    `taylor_gate`: mean over samples of abs(g). Molchanov et al. (2017) divide by the number of values,
    which is the same for all units of a layer, and by the layer's norm; undivided it is the change of the loss.
    `fisher`: mean over samples of g^2 / 2, the second-order change of the loss where it is at its least.

    Args:
        graph: the network.
        groups: of it.
        score: which of the two.
        context: with a loss, mean over its batch, and labelled data.

    Raises:
        InputError: there are none, or a group's units are nowhere read or made.

    Source: Molchanov et al. (2017), Pruning Convolutional Neural Networks for Resource Efficient Inference, eq. 8;
    Theis et al. (2018), Faster Gaze Prediction with Dense Networks and Fisher Pruning, eq. 8 and 9.
    """
    own = set_mode(graph.copy(), False)
    found = places(own, groups)
    for group in groups:
        if not found[group.name]:
            raise InputError(f"Prune: score {score}", where=group.name, got="units that no layer reads or makes")
    switches = _Switches({g.name: g.size for g in groups})
    gated(own, found, switches)
    sums = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in groups}
    batch_of = next((i, s.shape.index(None)) for i, s in enumerate(own.inputs) if None in s.shape)
    count = 0
    own.net.register_forward_pre_hook(lambda _, inputs: switches.fresh(inputs[batch_of[0]].shape[batch_of[1]]))
    for loss, _ in losses(own, context, score):
        rows = next(iter(switches.now.values())).shape[0]
        slopes = torch.autograd.grad(loss, list(switches.now.values()), allow_unused=True)
        for name, slope in zip(switches.now, slopes, strict=True):
            if slope is not None:
                each = slope.double() * rows  # [samples, units]; the loss is a mean over samples
                sums[name] += (each.abs() if score == "taylor_gate" else each.square() / 2).sum(0)
        count += rows
    return {name: value / count for name, value in sums.items()}


class _Switches:
    """The gates of the batch that is running: for each group ones [samples, units]."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.now: dict[str, Tensor] = {}

    def fresh(self, rows: int) -> None:
        """Gates for a new batch."""
        self.now = {name: torch.ones(rows, size, requires_grad=True) for name, size in self.sizes.items()}


class _Gate(nn.Module):
    """Multiplies a value by its group's gates."""

    def __init__(self, switches: _Switches, name: str, place: Place) -> None:
        super().__init__()
        self.switches, self.name, self.place = switches, name, place
        self.units = torch.tensor(place.units)

    def forward(self, value: Tensor) -> Tensor:
        gates = self.switches.now[self.name]
        wide = torch.cat([gates, torch.ones(len(gates), 1)], 1)[:, self.units]  # [samples, length]
        shape = [1] * value.ndim
        rows, dim = self.place.rows, self.place.dim
        # windows and tokens of one sample follow each other where they are rows of their own
        wide = wide.repeat_interleave(value.shape[rows] // len(gates), 0)
        shape[rows], shape[dim] = value.shape[rows], value.shape[dim]
        return value * (wide if rows < dim else wide.T).reshape(shape).to(value)


def gated(graph: Graph, found: Mapping[str, Sequence[Place]], switches: _Switches) -> None:
    """Put gates between the places of each group and the layers that read them there, in place."""
    nodes: dict[str, Node] = {node.name: node for node in graph.net.graph.nodes}
    count = 0
    for name, each in found.items():
        for place in each:
            node, module = nodes[place.node], f"gate_{count}"
            count += 1
            graph.net.add_submodule(module, _Gate(switches, name, place))
            with graph.net.graph.inserting_after(node):
                gate = graph.net.graph.call_module(module, (node,))
            # one gate for each reader: what is derived from a gated value must not be gated twice
            if place.layer == place.node:
                node.replace_all_uses_with(gate, delete_user_cb=lambda user, gate=gate: user is not gate)  # type: ignore[misc]
            else:
                nodes[place.layer].replace_input_with(node, gate)
    graph.net.recompile()
