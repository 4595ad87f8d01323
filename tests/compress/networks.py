"""Small networks that the tests of techniques share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """conv-bn-relu, a residual block without a batch norm's scale at one, mean, linear."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, 5)
        for bn in (self.bn1, self.bn2):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.normal_(bn.running_mean, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(y + self.bn2(self.conv2(y)))
        return self.linear(y.mean((2, 3)))


class Inception(nn.Module):
    """Two branches, concatenated, pooled, then a convolution; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.after = nn.Conv2d(10, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        y = torch.relu(self.after(nn.functional.max_pool2d(y, 2)))
        return {"logits": self.linear(y.flatten(1)), "features": y.mean((2, 3))}


class Gated(nn.Module):
    """A squeeze-and-excitation gate and hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.conv(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.last(x * gate)


class Tagger(nn.Module):
    """Tokens and a mask: an embedding whose weight is tied to the head, attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(1, 2) / 4).softmax(-1) @ v) * scale
        return self.head(x)


def image_batch(n: int = 16) -> Tensor:
    """Images [n, 3, 8, 8]."""
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(7))
