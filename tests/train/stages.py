"""Networks of stages, for the tests of places: residual ones of any depth and width, plain ones, and a transformer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, of: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(of, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.pad = stride, width - of

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.pad))
        return functional.relu(y + x)


class Residual(nn.Module):
    """Three stages of `blocks` blocks with `width`, 2 `width` and 4 `width` channels."""

    def __init__(self, blocks: int, width: int, classes: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        widths = [width, 2 * width, 4 * width]
        for k, (of, into) in enumerate(zip([width, *widths], widths, strict=False)):
            stage = [Block(of if i == 0 else into, into, 2 if i == 0 and k else 1) for i in range(blocks)]
            self.add_module(f"layer{k + 1}", nn.Sequential(*stage))
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for k in range(3):
            x = self.get_submodule(f"layer{k + 1}")(x)
        return self.linear(x.mean((2, 3)))


class Plain(nn.Module):
    """Convolutions without shortcuts, halving the size after each but the first; `stages` of them."""

    def __init__(self, stages: int, width: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width if i else 3, width, 3, 2 if i else 1, 1) for i in range(stages))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = functional.relu(conv(x))
        return self.head(x.mean((2, 3)))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Sequence(nn.Module):
    """[N, 5, width] through residual layers to 4 classes."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(layers)))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(x)).mean(1))
