"""Small networks, and their quantised graphs, for the tests of run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.compress import Quantise
from trimtab.core.context import Context
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.run.fusable import IntegerSupport


class Residual(nn.Module):
    """Two convolutions with a shortcut of every second pixel and padded channels, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 16, 3, 2, 1)
        self.conv2 = nn.Conv2d(16, 16, 3, 1, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))) + shortcut)
        return self.head(self.drop(x.mean((2, 3))))


class Two(nn.Module):
    """Two inputs and two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(3, 6)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        both = torch.tanh(self.left(a) + self.right(b))
        return {"total": both.sum(-1), "both": both}


class Tokens(nn.Module):
    """Linear layers on [N, T, features], where the exporter transposes weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 24)
        self.fc2 = nn.Linear(24, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def residual() -> tuple[Residual, Graph]:
    torch.manual_seed(0)
    model = Residual().eval()
    model.norm.running_mean += 0.1 * torch.randn(8)
    model.norm.running_var += torch.rand(8)
    return model, capture(model, images())


def quantised(model: nn.Module, example: Tensor, support: IntegerSupport | None = None) -> Graph:
    context = Context(Task(model, example[:2]), calibrate=((example,),), support=support)
    return Quantise().apply(capture(model, example[:2]), context)
