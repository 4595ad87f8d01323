"""Layer: the shape of one convolution or linear layer, all that its cost depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """The shape of one convolution or linear layer.

    Args:
        inputs: channels or features in.
        outputs: channels or features out.
        kernel: its sides; empty for a linear layer.
        spatial: sides of the input, or rows of a linear layer (without the batch).
        stride: per side.
        padding: per side.
        dilation: per side.
        groups: of a convolution.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    spatial: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.outputs * (self.inputs // self.groups) * math.prod(self.kernel)

    @property
    def result(self) -> tuple[int, ...]:
        """Sides of the output; rows of a linear layer."""
        if not self.kernel:
            return self.spatial
        sides = zip(self.spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)

    @property
    def macs(self) -> int:
        """Multiply-adds for one sample (eq. 1)."""
        return self.weights * math.prod(self.result)

    @property
    def activations(self) -> int:
        """Numbers read and written for one sample, the weights apart."""
        return self.inputs * math.prod(self.spatial) + self.outputs * math.prod(self.result)
