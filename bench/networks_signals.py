"""Our own small networks on signals, clips and patches, for the coverage bench."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from bench.networks_own import Network, classifier, conv_bn, images


def cnn_1d() -> Network:
    """A 1-d CNN on a signal, with max pooling and flatten."""
    layers: list[nn.Module] = []
    width = 2
    for out in (16, 32, 32):
        layers += [nn.Conv1d(width, out, 5, padding=2), nn.BatchNorm1d(out), nn.ELU(), nn.MaxPool1d(2)]
        width = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(
        2, 2, 64
    )


class CausalBlock(nn.Module):
    """Two dilated causal convolutions and a shortcut; the future is sliced off."""

    def __init__(self, c_in: int, c_out: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.conv1 = nn.Conv1d(c_in, c_out, 3, padding=self.cut, dilation=dilation)
        self.conv2 = nn.Conv1d(c_out, c_out, 3, padding=self.cut, dilation=dilation)
        self.shortcut = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.conv1(x)[:, :, : -self.cut])
        y = F.relu(self.conv2(y)[:, :, : -self.cut])
        return F.relu(y + self.shortcut(x))


class LastStep(nn.Module):
    """The last time step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, -1]


def tcn() -> Network:
    """Temporal convolutional network (Bai et al. 2018)."""
    blocks = [CausalBlock(4, 16, 1), CausalBlock(16, 24, 2), CausalBlock(24, 24, 4)]
    return nn.Sequential(*blocks, LastStep(), nn.Linear(24, 5)), torch.randn(2, 4, 32)


def ds_cnn() -> Network:
    """Depthwise-separable CNN for keyword spotting (Zhang et al. 2017)."""
    layers: list[nn.Module] = [nn.Conv2d(1, 32, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    for _ in range(3):
        layers += [conv_bn(32, 32, 3, groups=32), conv_bn(32, 32, 1)]
    return nn.Sequential(*layers, nn.Dropout(0.2), classifier(32, 12)), torch.randn(2, 1, 49, 10)


class Recurrent(nn.Module):
    """Convolutional front, recurrent layers, and a head on the last step."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(8, 64, 5, 2, 2), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 64, 3, 1, 1))
        self.rnn = kind(64, hidden, batch_first=True)
        self.head = nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(F.relu(self.front(x)).transpose(1, 2))
        return self.head(states[:, -1])


def gru_classifier() -> Network:
    """Convolution and GRU (Cho et al. 2014)."""
    return Recurrent(nn.GRU, 24), torch.randn(2, 8, 24)


def lstm_classifier() -> Network:
    """Convolution and LSTM (Hochreiter & Schmidhuber 1997)."""
    return Recurrent(nn.LSTM, 20), torch.randn(2, 8, 24)


def cnn_3d() -> Network:
    """A 3-d CNN on clips (Tran et al. 2014)."""
    layers: list[nn.Module] = []
    width = 3
    for out in (12, 24, 32):
        layers += [nn.Conv3d(width, out, 3, padding=1), nn.BatchNorm3d(out), nn.ReLU(), nn.MaxPool3d(2)]
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 6)), torch.randn(2, 3, 8, 16, 16)


class MixerBlock(nn.Module):
    """One MLP over the tokens, one over the channels, layer norm before each."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.over_width = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.over_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.over_width(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer over patches."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(MixerBlock(16, width), MixerBlock(16, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def mlp_mixer() -> Network:
    """MLP-Mixer (Tolstikhin et al. 2021): linear layers over tokens and over channels."""
    return Mixer(), images()


SIGNALS: dict[str, Callable[[], Network]] = {
    f.__name__: f for f in (cnn_1d, tcn, ds_cnn, gru_classifier, lstm_classifier, cnn_3d, mlp_mixer)
}
