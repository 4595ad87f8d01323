"""A small network and a task that it can learn, for the tests of training."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from trimtab.core.context import Context
from trimtab.core.task import Arrays, Task, accuracy
from trimtab.graph.capture import capture


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(dropout)
        self.linear = nn.Linear(8, 4)

    def forward(self, image):
        return self.linear(self.drop(functional.relu(self.bn1(self.conv1(image))).mean((2, 3))))


def noisy(images):
    """Augmentation that draws random numbers."""
    return images + 0.1 * torch.randn(images.shape)


def images(n=40, seed=0):
    """Images whose label shows: [n, 3, 8, 8] and [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    return torch.randn(n, 3, 8, 8, generator=generator) + labels.reshape(-1, 1, 1, 1) - 1.5, labels


def task(dropout=0.0, transform=noisy, **changes):
    torch.manual_seed(0)
    net = Net(dropout).eval()
    x, y = images()
    whole = Task(
        model=net,
        example=x[:2],
        train=Arrays(x, y, batch=8, shuffle=True, transform=transform),
        validate=Arrays(*images(seed=1), batch=16),
        loss=functional.cross_entropy,
        score=accuracy,
    )
    return replace(whole, **changes)


def setting(dropout=0.0, transform=noisy, store=None, progress=None, **changes):
    """A graph and its context, the graph itself being the teacher."""
    made = task(dropout, transform, **changes)
    graph = capture(made.model, made.example)
    more = {"progress": progress} if progress else {}
    return graph, Context(made, teacher=graph, store=store, **more)


def same(a, b):
    """Whether two graphs have equal tensors, bit for bit."""
    mine, theirs = a.tensors(), b.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
