"""A small residual network with a task whose samples are of unlike difficulty, for the tests of dynamic networks."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.cifar10 import Block
from trimtab.core.context import Context
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.module import module
from trimtab.train.loop import fit_network
from trimtab.train.recipe import Recipe


class Residual(nn.Module):
    """Two stages of two blocks on 16x16 images, 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1))
        self.linear = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer2(self.layer1(x)).mean((2, 3)))  # type: ignore[no-any-return]


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).double().mean())


def data(samples: int = 192) -> tuple[Tensor, Tensor]:
    """Images of a class's pattern under noise, the pattern ever stronger."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 4
    pattern = torch.randn(4, 3, 16, 16, generator=generator)
    strength = torch.linspace(0.1, 1.5, samples)[:, None, None, None]
    return pattern[y] * strength + torch.randn(samples, 3, 16, 16, generator=generator), y


@cache
def setting() -> tuple[Graph, Context]:
    """The network, trained for some steps, and its context."""
    x, y = data()
    torch.manual_seed(0)
    task = Task(
        Residual().eval(), x[:2], train=Arrays(x, y, batch=32, shuffle=True), validate=Arrays(x, y, batch=64),
        loss=functional.cross_entropy, score=accuracy,
    )  # fmt: skip
    graph = capture(task.model, x[:2])
    trained = fit_network(graph, Context(task), Recipe(30, lr=0.05, precision="fp32", channels_last=False))
    task = Task(module(trained), x[:2], train=task.train, validate=task.validate, loss=task.loss, score=task.score)
    return trained, Context(
        task, teacher=trained, calibrate=((x[::4],),), validate=tuple(task.validate), score=task.scored()
    )
