"""Augmentation of image batches, drawn from torch's global generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.core.errors import InputError


def crop_and_flip(images: Tensor, pad: int = 4) -> Tensor:
    """Shift each image by up to `pad` pixels in each direction, zeros coming in, and mirror half of them.

    Args:
        images: [N, C, H, W], any type.
        pad: pixels, 0 or more.

    Returns:
        [N, C, H, W], of the same type.

    Source: He et al. 2015, section 4.2.
    """
    if images.ndim != 4 or pad < 0:
        raise InputError("augment: crop_and_flip", got=f"{list(images.shape)}, pad={pad}", expected="[N, C, H, W]")
    n, channels, height, width = images.shape
    padded = functional.pad(images, (pad, pad, pad, pad))
    wide = width + 2 * pad
    top = torch.randint(2 * pad + 1, (n, 1))
    left = torch.randint(2 * pad + 1, (n, 1))
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns) + left  # [N, W]
    rows = torch.arange(height) + top  # [N, H]
    index = (rows.unsqueeze(2) * wide + columns.unsqueeze(1)).reshape(n, 1, height * width)  # [N, 1, H W]
    flat = padded.reshape(n, channels, -1)  # [N, C, H' W']
    return flat.gather(2, index.expand(n, channels, -1)).reshape(images.shape)
