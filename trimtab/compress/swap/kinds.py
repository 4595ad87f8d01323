"""Kinds: what may stand in for a part of a network, as the layers that it consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from trimtab.hardware.layer import Layer

KEPT = "kept"
"""The choice of a site that stays as it is."""
GROUPS = 4
"""Of a grouped convolution."""
SHARE = 4
"""A bottleneck has one channel for so many."""


@dataclass(frozen=True)
class Form:
    """What an alternative consists of.

    Args:
        names: of its layers.
        layers: their shapes, in the order in which they run.
    """

    names: tuple[str, ...]
    layers: tuple[Layer, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds for one sample."""
        return sum(layer.macs for layer in self.layers)


def separable(layer: Layer) -> Form | None:
    """A kernel for each channel, then a 1x1 convolution over channels.

    Source: Howard et al. (2017), MobileNets, section 3.1; no activation between (Chollet 2017, Xception, section 4.7),
    so that it can begin as the nearest to the convolution that it stands for.
    """
    depthwise = replace(layer, outputs=layer.inputs, groups=layer.inputs)
    return Form(("depthwise", "pointwise"), (depthwise, _point(layer.inputs, layer.outputs, depthwise)))


def grouped(layer: Layer) -> Form | None:
    """The same convolution in `GROUPS` groups of channels (Krizhevsky et al. 2012, section 3.5)."""
    if layer.inputs % GROUPS or layer.outputs % GROUPS or min(layer.inputs, layer.outputs) < 2 * GROUPS:
        return None
    return Form(("grouped",), (replace(layer, groups=GROUPS),))


def bottleneck(layer: Layer) -> Form | None:
    """1x1 to few channels, the kernel there, 1x1 back (He et al. 2016, section 4.1), without activations between."""
    few = max(8, -(-max(layer.inputs, layer.outputs) // SHARE // 8) * 8)
    if few >= min(layer.inputs, layer.outputs):
        return None
    ones = (1,) * len(layer.kernel)
    reduce = Layer(layer.inputs, few, ones, layer.spatial, ones, (0,) * len(ones), ones)
    inner = replace(layer, inputs=few, outputs=few)
    return Form(("reduce", "inner", "expand"), (reduce, inner, _point(few, layer.outputs, inner)))


def stacked(layer: Layer) -> Form | None:
    """5x5 as two 3x3, 7x7 as three (Szegedy et al. 2016, section 3.1), without activations between.

    The last one has the stride. Zeros are padded a ring for each kernel, or none at all.
    """
    count = (layer.kernel[0] - 1) // 2
    square = len(layer.kernel) == 2 and layer.kernel in ((5, 5), (7, 7)) and layer.dilation == (1, 1)
    if not square or layer.padding not in ((0, 0), (count, count)):
        return None
    pads = (1, 1) if layer.padding[0] else (0, 0)
    found, width, spatial = [], layer.inputs, layer.spatial
    for i in range(count):
        stride = layer.stride if i == count - 1 else (1, 1)
        found.append(Layer(width, layer.outputs, (3, 3), spatial, stride, pads, (1, 1)))
        width, spatial = layer.outputs, found[-1].result
    return Form(("first", "second", "third")[:count], tuple(found))


def strips(layer: Layer) -> Form | None:
    """1xk, then kx1 (Szegedy et al. 2016, section 3.2), over as many channels as the narrower side; of 3x3, half."""
    if len(layer.kernel) != 2 or layer.kernel[0] < 3 or layer.kernel[1] < 3:
        return None
    width = min(layer.inputs, layer.outputs)
    width = max(8, -(-width // 16) * 8) if max(layer.kernel) == 3 else width
    (k, m), (s, t), (p, q), (d, e) = layer.kernel, layer.stride, layer.padding, layer.dilation
    across = Layer(layer.inputs, width, (1, m), layer.spatial, (1, t), (0, q), (1, e))
    down = Layer(width, layer.outputs, (k, 1), across.result, (s, 1), (p, 0), (d, 1))
    return Form(("across", "down"), (across, down))


def nothing(layer: Layer) -> Form | None:
    """The input goes on as it is, where its shape is the output's."""
    return Form((), ()) if layer.inputs == layer.outputs and layer.spatial == layer.result else None


OF_CONVOLUTION: Mapping[str, Callable[[Layer], Form | None]] = {
    "separable": separable,
    "grouped": grouped,
    "bottleneck": bottleneck,
    "stacked": stacked,
    "strips": strips,
    "identity": nothing,
}
"""What may stand in for a convolution."""


def convolution(channels: int, spatial: tuple[int, ...]) -> Form:
    """One 3x3 convolution (of 3 in one dimension): what may stand in for a residual block."""
    ones = (1,) * len(spatial)
    return Form(("convolution",), (Layer(channels, channels, (3,) * len(spatial), spatial, ones, ones, ones),))


NARROW: Mapping[str, int] = {"narrow": 2, "narrower": 4}
"""What may stand in for a feed-forward part: one of a half, or a quarter, of its width."""


def narrow(first: Layer, second: Layer, kind: str) -> Form | None:
    """The two linear layers of a feed-forward part with fewer units between."""
    units = first.outputs // NARROW[kind] // 8 * 8
    if not 8 <= units < first.outputs:
        return None
    return Form(("first", "second"), (replace(first, outputs=units), replace(second, inputs=units)))


KINDS = (*OF_CONVOLUTION, "convolution", *NARROW, "pooling", "linear")
"""All kinds, by the names that `Swap` takes."""


def attention(heads: int, tokens: int, width: int, values: int) -> tuple[Layer, ...]:
    """The products of matrices in attention as linear layers: of queries with keys, and of shares with values."""
    return (Layer(width, tokens, spatial=(tokens,)), Layer(tokens, values, spatial=(tokens,))) * heads


def linear(before: Sequence[Layer], heads: int, tokens: int, width: int, values: int) -> Form:
    """The products in linear attention: the two learnt maps, keys with values, and queries with that.

    Args:
        before: the layers that make queries and keys, which stay.
        heads: of the attention.
        tokens: that see each other.
        width: of a query.
        values: width of a value.
    """
    learnt = Layer(width, width, spatial=(tokens,))
    products = (learnt, learnt, Layer(tokens, values, spatial=(width,)), Layer(width, values, spatial=(tokens,)))
    return Form((), (*before, *products * heads))


def cheaper(forms: Mapping[str, Form | None], layers: Sequence[Layer]) -> dict[str, Form]:
    """Those of some forms that have fewer multiply-adds than the layers that they stand for."""
    macs = sum(layer.macs for layer in layers)
    return {kind: form for kind, form in forms.items() if form is not None and form.macs < macs}


def _point(inputs: int, outputs: int, before: Layer) -> Layer:
    ones = (1,) * len(before.kernel)
    return Layer(inputs, outputs, ones, before.result, ones, (0,) * len(ones), ones)
