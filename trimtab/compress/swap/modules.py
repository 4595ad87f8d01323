"""Modules: the alternatives as modules, which are spliced into a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.compress.swap.kinds import Form
from trimtab.hardware.layer import Layer

WINDOW = 3
"""Tokens that are averaged."""


class Same(nn.Module):
    """The input, as a copy that what comes behind may write into."""

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x.clone()


def chain(form: Form, weights: Sequence[Tensor], bias: Tensor | None) -> nn.Module:
    """Convolutions one behind another.

    Args:
        form: their names and shapes.
        weights: of each.
        bias: of the last one; None where it has none.
    """
    found = nn.Sequential()
    for i, (name, layer, weight) in enumerate(zip(form.names, form.layers, weights, strict=True)):
        found.add_module(name, _convolution(layer, weight, bias if i == len(weights) - 1 else None))
    return found


def _convolution(layer: Layer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d}[len(layer.kernel)]
    settings = (layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups)
    made: nn.Module = kind(layer.inputs, layer.outputs, *settings, bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(weight)  # type: ignore[operator]
        if bias is not None:
            made.bias.copy_(bias)  # type: ignore[operator]
    return made


class FeedForward(nn.Module):
    """Two linear layers with an activation function between.

    Args:
        first: weight [units, inputs] and bias.
        second: weight [outputs, units] and bias.
        activation: of the part that it stands for.
    """

    def __init__(
        self,
        first: tuple[Tensor, Tensor | None],
        second: tuple[Tensor, Tensor | None],
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.first, self.second, self.activation = _linear(*first), _linear(*second), activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        out: Tensor = self.second(self.activation(self.first(x)))
        return out


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


class Pooling(nn.Module):
    """Tokens mixed without looking at them: a window of `WINDOW`, all of them, and the token itself.

        y = a mean(window) + b mean(all) + c v,   with a, b, c learnt for each head

    Where attention looks back only, so do window and mean. PoolFormer has the window alone, less the token.

    Args:
        heads: of the values; 1 where they have no dimension for heads.
        causal: look back only.

    Source: Yu et al. (2022), MetaFormer Is Actually What You Need for Vision, section 3.2, equation 4.
    """

    def __init__(self, heads: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        start = torch.tensor([0.5, 0.5, 0.0]).reshape(3, 1, 1, 1)
        self.share = nn.Parameter(start.repeat(1, heads, 1, 1))  # [3, heads, 1, 1]

    def forward(self, v: Tensor) -> Tensor:
        """[N, heads, tokens, width], or [N, tokens, width], to the same."""
        x = v if v.ndim == 4 else v.unsqueeze(1)
        if self.causal:
            count = torch.ones_like(x[:, :, :, :1]).cumsum(2)  # 1, 2, 3, ... for each token
            whole = x.cumsum(2)
            padded = functional.pad(x, (0, 0, WINDOW - 1, 0))
            near = functional.avg_pool2d(padded, (WINDOW, 1), 1) * (WINDOW / count.clamp(max=WINDOW))
            far = whole / count
        else:
            near = functional.avg_pool2d(x, (WINDOW, 1), 1, (WINDOW // 2, 0), count_include_pad=False)
            far = x.mean(2, keepdim=True)
        y = self.share[0] * near + self.share[1] * far + self.share[2] * x
        return y if v.ndim == 4 else y.squeeze(1)


class LinearAttention(nn.Module):
    """Attention without the matrix of all pairs of tokens.

        y_i = phi(q_i) (sum_j phi(k_j)^T v_j) / (phi(q_i) . sum_j phi(k_j)),   phi(x) = elu(W x) + 1

    In the paper W is the identity, with which ours starts, scaled as softmax scales products; it is learnt for
    each head (as in Zhang et al. 2024, The Hedgehog & the Porcupine) to give what softmax gave.

    Args:
        heads: of the values; 1 where they have no dimension for heads.
        width: of a query.
        transposed: keys come as [..., width, tokens].

    Source: Katharopoulos et al. (2020), Transformers are RNNs, equations 5 and 7.
    """

    def __init__(self, heads: int, width: int, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        eye = torch.eye(width).repeat(heads, 1, 1) * width**-0.25
        self.query, self.key = nn.Parameter(eye.clone()), nn.Parameter(eye.clone())  # [heads, width, width]

    def forward(self, v: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Values, queries and keys [N, heads, tokens, width], or without heads, to what values are."""
        k = k.transpose(-1, -2) if self.transposed else k
        whole = v.ndim == 4
        v, q, k = (x if whole else x.unsqueeze(1) for x in (v, q, k))
        q, k = (functional.elu(x @ w) + 1 for x, w in ((q, self.query), (k, self.key)))
        sums = k.transpose(-1, -2) @ v  # [N, heads, width, width of values]
        weight = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
        y = (q @ sums) / (weight + 1e-6)
        return y if whole else y.squeeze(1)
