"""Small networks with sites of every part that `Swap` knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Wide(nn.Module):
    """A 3x3 stem, a 5x5, a 7x7 with a stride, a residual block, a plain 3x3, a linear head with one hidden layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.five = nn.Conv2d(width, width, 5, padding=2)
        self.seven = nn.Conv2d(width, width, 7, stride=2, padding=3, bias=False)
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.hidden, self.linear = nn.Linear(width, 32), nn.Linear(32, 4)
        for bn in (self.bn, self.bn1, self.bn2):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.normal_(bn.running_mean, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.seven(torch.relu(self.five(x))))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(y)))
        x = torch.relu(self.last(x))
        return self.linear(torch.relu(self.hidden(x.mean((2, 3)))))


class Layer(nn.Module):
    """A transformer's layer: attention, then two linear layers, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, how: str) -> None:
        super().__init__()
        self.heads, self.how = heads, how
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.how == "hand":
            y = (q @ k.transpose(-1, -2) / 2.0).softmax(-1) @ v
        else:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.how == "causal")
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Sequence(nn.Module):
    """Two layers over 24 tokens of 16 values, and a head."""

    def __init__(self, how: str = "whole") -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(16, 4, how) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
