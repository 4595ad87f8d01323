"""Handwritten digits, 8x8 pixels: a small residual network, trained here in a few seconds.

trimtab fit digits --max-drop 0.02 --hours 0.02
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.core.task import Arrays, Task, accuracy


class Residual(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] to the same."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(y)))


class Digits(nn.Module):
    """A stem, a residual block at 8x8, a step down, two blocks at 4x4, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(32)
        self.block1 = Residual(32)
        self.down = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(64)
        self.block2 = Residual(64)
        self.block3 = Residual(64)
        self.classify = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 8, 8] to [N, 10]."""
        x = self.block1(functional.relu(self.stem_norm(self.stem(x))))
        x = functional.relu(self.down_norm(self.down(x)))
        out: Tensor = self.classify(self.block3(self.block2(x)).mean((2, 3)))
        return out


def scale(images: Tensor) -> Tensor:
    """Pixels 0 to 16 to about zero mean and unit variance."""
    return (images - 4.9) / 6.0


def shift(images: Tensor) -> Tensor:
    """`scale` of images moved by up to one pixel, all of a batch alike."""
    x, y = (int(n) for n in torch.randint(-1, 2, (2,)))
    return scale(torch.roll(images, (y, x), (2, 3)))


def task() -> Task:
    """1,797 digits: 997 to train on, 400 to choose on and 400 to prove on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)  # [N, 1, 8, 8]
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, validate, test = order[:997], order[997:1397], order[1397:]
    return Task(
        model=trained(shift_batches(images[train], labels[train])),
        example=scale(images[:2]),
        train=shift_batches(images[train], labels[train]),
        calibrate=Arrays(images[train[:256]], None, batch=64, transform=scale),
        validate=Arrays(images[validate], labels[validate], batch=100, transform=scale),
        test=Arrays(images[test], labels[test], batch=100, transform=scale),
        loss=functional.cross_entropy,
        score=accuracy,
        name="digits",
        fingerprint="scikit-learn-digits-1",
    )


def shift_batches(images: Tensor, labels: Tensor) -> Arrays:
    """Shuffled batches of 32 to train on."""
    return Arrays(images, labels, batch=32, shuffle=True, transform=shift)


def trained(data: Arrays, epochs: int = 12) -> Digits:
    """The network, trained from a fixed seed on one thread, so that every call gives the same weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # the caller's random numbers are left as they were
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _trained(data, epochs)
    finally:
        torch.set_num_threads(threads)


def _trained(data: Arrays, epochs: int) -> Digits:
    network = Digits()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.05, total_steps=epochs * len(data))
    for _ in range(epochs):
        for images, labels in data:
            optimiser.zero_grad()
            functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()
