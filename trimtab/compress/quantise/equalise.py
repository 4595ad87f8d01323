"""Equalise: weights of one width across a tensor's channels, without changing what the network computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.quantise.absorb import absorb, bounds, normed
from trimtab.compress.quantise.layer import CONVOLUTIONS, LINEAR, TRANSPOSED, largest
from trimtab.compress.quantise.links import Link, left, links, rescale, skipped
from trimtab.compress.quantise.technique import refuse_quantised
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph, shaped
from trimtab.graph.modes import set_mode

_ATEN = torch.ops.aten
_CLIPPED = {_ATEN.hardtanh.default: _ATEN.relu.default, _ATEN.hardtanh_.default: _ATEN.relu_.default}
_SIX = {_ATEN.relu6.default: _ATEN.relu.default, _ATEN.relu6_.default: _ATEN.relu_.default}
_CLOSE = 1e-5
"""Factors this near to 1 end the iteration."""
_DEAD = 2.0**-24
"""A channel whose largest weight is below this share of its layer's largest has no width to speak of."""


@dataclass(frozen=True)
class Equalise:
    """Cross-layer equalisation: each channel as wide in the layer that makes it as in those that read it.

        W1 <- S^-1 W1,    b1 <- S^-1 b1,    W2 <- W2 S,    s_i = sqrt(r1_i r2_i) / r2_i

    with r_i = max abs(w) of channel i, over all pairs of layers until nothing changes (eq. 8 to 11). Then one scale
    for a whole weight tensor fits all of its channels. The network computes what it did, because what lies between
    has g(s x) = s g(x): relu, leaky relu, pooling, reshaping. A channel that anything else reads (a residual sum)
    keeps its scale. Batch norm is folded first, so the result evaluates.

    High biases are absorbed into the layers that read them (section 4.1.3), where these pad nothing and all values
    between stay positive:

        b1 <- b1 - c,    b2 <- b2 + W2 c,    c_i = max(0, beta_i - 3 gamma_i) of the folded batch norm

    and no more than the least value on calibration inputs, where there are any: on these nothing changes. Without
    them one value in a thousand may be clipped.

    Args:
        iterations: over all pairs, at most.
        absorb: whether to absorb high biases.
        relu6: `keep` leaves layers before a relu6 as they are; `replace` makes it a relu, as the paper does: then
            the network computes something else where values exceed 6.
        skip: names of layers whose channels keep their scale: exact, a prefix, or a pattern.

    Raises:
        InputError: the network is quantised already, or a setting is wrong.

    Source: Nagel et al. (2019), Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.1.
    Where we differ: any number of readers, concatenations and gates (eq. 11 with r2 the widest reader's), and the
    bound on c.
    """

    iterations: int = 100
    absorb: bool = True
    relu6: Literal["keep", "replace"] = "keep"
    skip: tuple[str, ...] = ()

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each layer whose channels could be equalised: whether they are."""
        folded, _ = self._folded(graph)
        names = dict.fromkeys(link.maker.name for link in _pairs(links(folded, _WEIGHTED), self.skip))
        return tuple(Axis(f"Equalise:{name}", (False, True)) for name in names)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph, batch norm folded, with equalised weights."""
        if self.iterations < 1:
            raise InputError("Equalise: iterations", got=self.iterations, expected="1 or more")
        refuse_quantised(graph, "Equalise")
        folded, notes = self._folded(graph)
        found = links(folded, _WEIGHTED)
        pairs = _pairs(found, self.skip)
        held = _held(folded, pairs)
        low = bounds(folded, pairs, normed(graph, folded), context) if self.absorb else {}
        factors = equalised(held, pairs, self.iterations)
        for link in pairs:
            if link.maker.node.name in low:
                absorb(folded, held, link, low[link.maker.node.name] / factors[link.maker.weight])
        for name, value in held.items():
            folded.tensors()[name].detach().copy_(value)
        folded.net.recompile()
        return shaped(folded).note(*notes, *left("Equalise", found))

    def _folded(self, graph: Graph) -> tuple[Graph, list[str]]:
        """The graph as it is deployed, its relu6 replaced where that is asked, and what was done."""
        folded = for_inference(set_mode(graph.copy(), False))
        if self.relu6 == "keep":
            return folded, []
        if self.relu6 != "replace":
            raise InputError("Equalise: relu6", got=repr(self.relu6), expected="keep or replace")
        found = [node for node in folded.nodes() if _is_relu6(node)]
        for node in found:
            node.target, node.args = (_CLIPPED | _SIX)[node.target], node.args[:1]  # type: ignore[index]
        count = f"Equalise made {len(found)} relu6 a relu: values above 6 are no longer clipped."
        return folded, [count] if found else []


_WEIGHTED = {*CONVOLUTIONS, *TRANSPOSED, *LINEAR}


def _is_relu6(node: Node) -> bool:
    return node.target in _SIX or (node.target in _CLIPPED and tuple(node.args[1:3]) == (0, 6))


def _pairs(found: Sequence[Link], skip: Sequence[str]) -> list[Link]:
    """The links with something to equalise, without those that `skip` names."""
    usable = [link for link in found if bool(link.free.any())]
    names = skipped([link.maker.name for link in usable], skip, "Equalise")
    return [link for link in usable if link.maker.name not in names]


def _held(graph: Graph, pairs: Sequence[Link]) -> dict[str, Tensor]:
    """The weights and biases that may change, in float64."""
    layers = [layer for link in pairs for layer in (link.maker, *(r.layer for r in link.readers))]
    names = {name for layer in layers for name in (layer.weight, layer.bias)}
    return {name: tensor.detach().double().cpu() for name, tensor in graph.tensors().items() if name in names}


def equalised(weights: dict[str, Tensor], pairs: Sequence[Link], iterations: int) -> dict[str, Tensor]:
    """Equalise weights and biases, float64 by name, in place.

    Returns: by the maker's weight, what its channels were divided by: [channels].
    """
    factors = {link.maker.weight: torch.ones(len(link.free), dtype=torch.float64) for link in pairs}
    for _ in range(iterations):
        most = 0.0
        for link in pairs:
            factor = _factor(weights, link)
            rescale(weights, link, factor)
            factors[link.maker.weight] *= factor
            most = max(most, float(factor.log().abs().max()))
        if most < _CLOSE:
            break
    return factors


def _factor(weights: dict[str, Tensor], link: Link) -> Tensor:
    """s_i = sqrt(r1_i r2_i) / r2_i (eq. 11), 1 for a channel that is not free or has no width: [channels]."""
    made = largest(link.maker, weights[link.maker.weight], made=True)
    each = [r.widest(largest(r.layer, weights[r.layer.weight], made=False), len(made)) for r in link.readers]
    read = torch.stack(each).amax(0)
    alive = link.free & (made > made.amax() * _DEAD) & (read > read.amax() * _DEAD)
    return torch.where(alive, (made / read).sqrt(), torch.ones_like(made))
