"""A small residual network with option-A shortcuts, a depthwise layer and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut that halves the image and pads the channels where they differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1 if inputs == outputs else 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(x + y)


class Small(nn.Module):
    """16 channels, then 32; a depthwise convolution before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32))
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.linear = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(functional.relu(self.bn(self.conv(x)))))
        return self.linear(functional.relu(self.depthwise(x)).mean((2, 3)))


def small(seed: int = 0) -> Small:
    """The network with seeded weights, evaluating."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small().eval()


def lively(x: Tensor, seed: int = 0) -> Small:
    """The network with statistics of these images and outputs that tell them apart, evaluating."""
    network = small(seed)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
        network.train()(x)
        network.eval()
        outputs = network(x)
        network.linear.weight *= 4 / outputs.std(0)[:, None]
        network.linear.bias.zero_()
        network.linear.bias -= network(x).mean(0)
    return network
