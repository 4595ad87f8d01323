"""Our own small networks on images, for the coverage bench: one for each way in which channels are tied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Network = tuple[nn.Module, Any]


def conv_bn(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


def classifier(width: int, classes: int = 10) -> nn.Sequential:
    """Global average pooling and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def images(size: int = 32, batch: int = 2, channels: int = 3) -> torch.Tensor:
    """A batch of square images."""
    return torch.randn(batch, channels, size, size)


def vgg_bn() -> Network:
    """VGG with batch norm (Simonyan & Zisserman 2014): a chain, then flattened pixels and two linear layers."""
    layers: list[nn.Module] = []
    width = 3
    for out in (16, 32, 64):
        layers += [conv_bn(width, out), conv_bn(out, out), nn.MaxPool2d(2)]
        width = out
    head = [nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *head), images()


class DenseLayer(nn.Module):
    """Norm first, 1 x 1 bottleneck, 3 x 3, concatenated to its input."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


def densenet() -> Network:
    """DenseNet (Huang et al. 2016): every layer reads all before it through concatenations."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    width = 16
    for block in range(3):
        for _ in range(3):
            layers.append(DenseLayer(width, 8))
            width += 8
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if block < 2:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, classifier(width)), images()


class InceptionBlock(nn.Module):
    """Four branches of different kernels, concatenated."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.one = conv_bn(width, out, 1)
        self.three = nn.Sequential(conv_bn(width, out, 1), conv_bn(out, 2 * out))
        self.five = nn.Sequential(conv_bn(width, out // 2, 1), conv_bn(out // 2, out, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(width, out, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def inception() -> Network:
    """Inception (Szegedy et al. 2014)."""
    blocks = [InceptionBlock(24, 12), InceptionBlock(60, 16), nn.MaxPool2d(2), InceptionBlock(80, 16)]
    return nn.Sequential(conv_bn(3, 24, stride=2), *blocks, nn.Dropout(0.4), classifier(80)), images()


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are convolved; then the two halves are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv_bn(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        still, moved = x.chunk(2, 1)
        y = torch.cat([still, self.branch(moved)], 1)
        b, c, h, w = y.shape
        return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def shufflenet() -> Network:
    """ShuffleNet V2 (Ma et al. 2018): chunk, concatenate, channel shuffle."""
    stages: list[nn.Module] = [conv_bn(3, 24, stride=2)]
    for c_in, c_out in ((24, 32), (32, 64)):
        stages += [conv_bn(c_in, c_out, stride=2), ShuffleUnit(c_out), ShuffleUnit(c_out)]
    return nn.Sequential(*stages, conv_bn(64, 96, 1), classifier(96)), images()


class UNet(nn.Module):
    """Encoder, transposed-convolution decoder, skips by concatenation."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv_bn(3, width), conv_bn(width, width))
        self.down2 = nn.Sequential(conv_bn(width, 2 * width), conv_bn(2 * width, 2 * width))
        self.middle = nn.Sequential(conv_bn(2 * width, 4 * width), conv_bn(4 * width, 4 * width))
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = conv_bn(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join1 = conv_bn(2 * width, width)
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = self.up2(self.middle(F.max_pool2d(two, 2)))
        y = self.join2(torch.cat([two, y], 1))
        return self.out(self.join1(torch.cat([one, self.up1(y)], 1)))


def unet() -> Network:
    """U-Net (Ronneberger et al. 2015)."""
    return UNet(), images()


class Pyramid(nn.Module):
    """Feature pyramid with one head shared by all levels: boxes and classes of every anchor."""

    def __init__(self, width: int = 24, classes: int = 5, anchors: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.stages = nn.ModuleList([conv_bn(3, 16, stride=2), conv_bn(16, 32, stride=2), conv_bn(32, 48, stride=2)])
        self.lateral = nn.ModuleList([nn.Conv2d(c, width, 1) for c in (16, 32, 48)])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(3)])
        self.tower = nn.Sequential(conv_bn(width, width), conv_bn(width, width))
        self.score, self.box = nn.Conv2d(width, anchors * classes, 1), nn.Conv2d(width, anchors * 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2, mode="nearest")
        towers = [self.tower(smooth(level)) for smooth, level in zip(self.smooth, levels, strict=True)]
        flat = {"scores": (self.score, self.classes), "boxes": (self.box, 4)}
        return {k: torch.cat([self._rows(m(t), n) for t in towers], 1) for k, (m, n) in flat.items()}

    @staticmethod
    def _rows(x: torch.Tensor, n: int) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, n)


def fpn_detector() -> Network:
    """Feature pyramid network with a RetinaNet head (Lin et al. 2016, 2017)."""
    return Pyramid(), images()


def espcn() -> Network:
    """Sub-pixel super-resolution (Shi et al. 2016): pixel shuffle at the end and in the middle."""
    first = [nn.Conv2d(1, 32, 5, padding=2), nn.Tanh(), nn.Conv2d(32, 32, 3, padding=1), nn.PReLU(32)]
    second = [nn.Conv2d(32, 64, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(), nn.Conv2d(16, 4, 3, padding=1)]
    return nn.Sequential(*first, *second, nn.PixelShuffle(2)), images(12, channels=1)


class OptionABlock(nn.Module):
    """Basic block; where the shape changes the shortcut takes every second pixel and pads channels with zeros."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.pad = (c_out - c_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(y + short)


def resnet_cifar() -> Network:
    """CIFAR ResNet with option-A shortcuts (He et al. 2015, section 4.2), depth 14."""
    blocks: list[nn.Module] = [conv_bn(3, 16)]
    for c_in, c_out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        blocks += [OptionABlock(c_in, c_out, stride), OptionABlock(c_out, c_out, 1)]
    return nn.Sequential(*blocks, classifier(64)), images()


class Gate(nn.Module):
    """Squeeze and excitation: global pooling, two linear layers, sigmoid, scale."""

    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, reduced), nn.Linear(reduced, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class GatedBlock(nn.Module):
    """Grouped-convolution basic block with a gate and a projection shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(c_in, c_out, 1),
            conv_bn(c_out, c_out, 3, stride, groups=4),
            nn.Conv2d(c_out, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
            Gate(c_out, c_out // 4),
        )
        self.short = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.short(x))


def se_resnext() -> Network:
    """ResNeXt with squeeze and excitation (Xie et al. 2016; Hu et al. 2017)."""
    blocks = [GatedBlock(16, 32, 1), GatedBlock(32, 64, 2)]
    return nn.Sequential(conv_bn(3, 16, stride=2), *blocks, classifier(64)), images()


class SeBasic(nn.Module):
    """Basic block with a gate and an identity shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2, self.gate = nn.BatchNorm2d(width), Gate(width, width // 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.gate(self.bn2(self.conv2(self.conv1(x)))))


def se_resnet() -> Network:
    """SE-ResNet (Hu et al. 2017)."""
    blocks = [SeBasic(24), SeBasic(24), conv_bn(24, 48, stride=2), SeBasic(48)]
    return nn.Sequential(conv_bn(3, 24), *blocks, classifier(48)), images()


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def generator() -> Network:
    """Image-to-image generator: instance norm, reflection padding, residual blocks, transposed convolutions."""
    mid = [nn.ReflectionPad2d(1), nn.Conv2d(32, 32, 3), nn.InstanceNorm2d(32, affine=True), nn.ReLU()]
    down = [nn.Conv2d(3, 16, 7, padding=3), nn.InstanceNorm2d(16, affine=True), nn.ReLU()]
    down += [nn.Conv2d(16, 32, 3, 2, 1), nn.InstanceNorm2d(32), nn.ReLU(), Residual(*mid)]
    up = [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.GroupNorm(4, 16), nn.LeakyReLU(0.2), nn.Conv2d(16, 3, 7, padding=3)]
    return nn.Sequential(*down, *up, nn.Tanh()), images(16)


_ALL = (
    vgg_bn,
    densenet,
    inception,
    shufflenet,
    unet,
    fpn_detector,
    espcn,
    resnet_cifar,
    se_resnext,
    se_resnet,
    generator,
)
OWN: dict[str, Callable[[], Network]] = {f.__name__: f for f in _ALL}
