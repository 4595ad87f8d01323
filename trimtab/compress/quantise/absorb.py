"""Absorb: move a channel's constant part from the layer that makes it into the biases of those that read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.compress.quantise.follow import shifts
from trimtab.compress.quantise.layer import LINEAR, TRANSPOSED, Layer, constant
from trimtab.compress.quantise.links import Link
from trimtab.compress.quantise.watch import watch
from trimtab.core.context import Context
from trimtab.graph.model import Graph, place
from trimtab.graph.modes import set_mode
from trimtab.train.data import checked, size

_ATEN = torch.ops.aten
_DEVIATIONS = 3.0
_PLAIN = {_ATEN.linear.default, _ATEN.addmm.default}


def normed(graph: Graph, folded: Graph) -> dict[str, Tensor]:
    """beta - 3 abs(gamma) for each layer that a batch norm was folded into, by its node's name: [channels].

    With batch norm's output normal of mean beta and deviation gamma, 99.87 % of the values lie above it.
    """
    found = {}
    kept, tensors = {n.name for n in folded.nodes(_ATEN.batch_norm.default)}, graph.tensors()
    for node in graph.nodes(_ATEN.batch_norm.default):
        layer, gamma, beta = node.args[:3]
        if node.name in kept or not isinstance(layer, Node):
            continue
        mean = tensors[str(node.args[3].target)]  # type: ignore[union-attr]
        width = torch.ones_like(mean) if gamma is None else tensors[str(gamma.target)]  # type: ignore[union-attr]
        centre = torch.zeros_like(mean) if beta is None else tensors[str(beta.target)]  # type: ignore[union-attr]
        found[layer.name] = (centre - _DEVIATIONS * width.abs()).detach().double().cpu()
    return found


def bounds(graph: Graph, pairs: Sequence[Link], norms: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
    """For each layer whose biases can be absorbed, how low its results reach, by its node's name: [channels].

    Args:
        graph: folded, not equalised.
        pairs: of this graph.
        norms: from `normed`.
        context: with calibration (or validation) inputs, if there are any.
    """
    able = [link for link in pairs if _able(link)]
    batches = [b for b in (context.calibrate or context.validate) if size(b)]
    names = [link.maker.node.name for link in able]
    low = {name: norms[name] for name in names if name in norms}
    if not batches or not able:
        return low

    def lower(layer: Layer) -> Callable[[Tensor], None]:
        def show(value: Tensor) -> None:
            least = value.detach().movedim(layer.dim, 0).flatten(1).amin(1).double().cpu()
            name = layer.node.name
            low[name] = torch.minimum(low[name], least) if name in low else least

        return show

    shows = {link.maker.node.name: lower(link.maker) for link in able}
    watch(set_mode(graph.copy(), False), [checked(b, graph, "calibrate")[0] for b in batches], shows)
    return low


def _able(link: Link) -> bool:
    """Whether a constant added to a channel arrives as the same constant at every element that is read."""
    return (
        link.maker.bias is not None
        and all(shifts(node) for node in link.path)
        and all(_unpadded(reader.layer) for reader in link.readers)
    )


def _unpadded(layer: Layer) -> bool:
    """Whether every output sums over the whole kernel, and the layer has a place for a bias of its own."""
    node = layer.node
    if node.target in LINEAR:
        return node.target in _PLAIN and _alone(layer)
    padding = node.args[4] if len(node.args) > 4 else 0
    whole = padding == "valid" or (not isinstance(padding, str) and not any(torch.tensor(padding).reshape(-1)))
    return node.target not in TRANSPOSED and whole and _alone(layer)


def _alone(layer: Layer) -> bool:
    bias = next((n for n in layer.node.all_input_nodes if n.target == layer.bias), None)
    return bias is None or len(bias.users) == 1


def absorb(graph: Graph, values: dict[str, Tensor], link: Link, low: Tensor) -> None:
    """b1 <- b1 - c, b2 <- b2 + W2 c, with c = max(0, low), in place (eq. 12 to 15).

    Args:
        graph: gets a bias where a reader has none.
        values: weights and biases, float64 by name.
        link: whose channels are shifted, those that are free.
        low: the least value of each channel: [channels].
    """
    shift = torch.where(link.free, low.clamp_min(0), torch.zeros_like(low))
    if link.maker.bias is None or not bool(shift.any()):
        return
    values[link.maker.bias] = values[link.maker.bias] - shift
    for reader in link.readers:
        known = reader.source >= 0
        read = torch.where(known, shift[reader.source.clamp_min(0)], shift.new_zeros(()))
        added = constant(reader.layer, values[reader.layer.weight], read)
        name = reader.layer.bias or _fresh(graph, reader.layer, added)
        values[name] = values[name] + added if name in values else added


def _fresh(graph: Graph, layer: Layer, like: Tensor) -> str:
    """The name of a layer's bias, a zero one where it had none."""
    node = layer.node
    if len(node.args) > 2 and isinstance(node.args[2], Node):
        return str(node.args[2].target)
    name = f"{layer.name}.bias"
    while name in graph.tensors():
        name += "_absorbed"
    weight = graph.tensors()[layer.weight]
    place(graph.net, name, nn.Parameter(weight.new_zeros(like.shape), weight.requires_grad))
    with graph.net.graph.inserting_before(node):
        bias = graph.net.graph.get_attr(name)
    node.args = (*node.args[:2], bias, *node.args[3:])
    return name
