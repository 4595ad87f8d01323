"""Build: the chain of layers that takes a layer's place, as a module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from trimtab.compress.factorise.shapes import divided
from trimtab.hardware.layer import Layer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def chained(
    shape: Layer, chain: Sequence[Layer], weights: Sequence[Tensor], bias: Tensor | None, like: Tensor
) -> nn.Module:
    """A module that computes a layer as a chain of layers.

    Args:
        shape: of the layer.
        chain: the layers that it becomes.
        weights: theirs, in order.
        bias: of the last one [O]; None for none.
        like: a tensor of their dtype.
    """
    if not shape.kernel and len(chain) > 2:
        return _Train(shape, weights, bias, like)
    parts = [
        _layer(part, weight, bias if k == len(chain) - 1 else None, like)
        for k, (part, weight) in enumerate(zip(chain, weights, strict=True))
    ]
    return nn.Sequential(*parts).eval()


def _layer(part: Layer, weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Module:
    has = bias is not None
    without_start: Any = nn.utils.skip_init  # random numbers drawn for a start would change those of others
    if not part.kernel:
        made = without_start(nn.Linear, part.inputs, part.outputs, has)
    else:
        made = without_start(
            _CONVOLUTIONS[len(part.kernel) - 1],
            part.inputs,
            part.outputs,
            part.kernel,
            part.stride,
            part.padding,
            part.dilation,
            part.groups,
            has,
        )
    made.weight = nn.Parameter(weight.to(like.dtype).contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias.to(like.dtype).contiguous())
    layer: nn.Module = made
    return layer


class _Train(nn.Module):
    """A linear layer as a tensor train: each core takes in one factor of the inputs, and gives one of the outputs.

    Source: Novikov et al. (2015), Tensorizing Neural Networks, eq. 5, from the last core to the first.
    """

    def __init__(self, shape: Layer, weights: Sequence[Tensor], bias: Tensor | None, like: Tensor) -> None:
        super().__init__()
        self.inputs, self.outputs = divided(shape.inputs), divided(shape.outputs)
        self.cores = nn.ParameterList(nn.Parameter(w.to(like.dtype).contiguous()) for w in weights)
        self.bias = None if bias is None else nn.Parameter(bias.to(like.dtype).contiguous())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """[B, ..., I] -> [B, ..., O]; all sides but the first are as they were captured."""
        behind = [int(n) for n in x.shape[1:-1]]
        made = 1  # outputs that the cores so far have given
        y = x.reshape(-1, math.prod(self.inputs[:-1]), 1, self.inputs[-1])
        for k, core in zip(reversed(range(len(self.inputs))), self.cores, strict=True):
            y = nn.functional.linear(y, core)  # [B, n_1..n_(k-1), made, r m_k]
            m, rank = self.outputs[k], core.shape[0] // self.outputs[k]
            n, rest = (self.inputs[k - 1], math.prod(self.inputs[: k - 1])) if k else (1, 1)
            y = y.reshape(-1, rest, n, made, rank, m).permute(0, 1, 5, 3, 2, 4)
            made *= m
            y = y.reshape(-1, rest, made, n * rank)  # [B, n_1..n_(k-2), made, n_(k-1) r]
        y = y.reshape(-1, *behind, made)
        return y if self.bias is None else y + self.bias
