"""Spoken digits and a small convolutional network: `trimtab fit examples/speech.py --max-drop 0.01`.

The Free Spoken Digit Dataset, five speakers, one second at 8 kHz: recordings 0 to 4 of each digit and speaker are
its official test set, 5 to 9 are kept here to choose on, and 10 to 49 train. What the network reads is the logarithm
of mel energies: 32 bands, 64 frames. The first call trains for some minutes and keeps the weights.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from once import once
from torch import Tensor, nn
from torch.nn import functional

import trimtab as tt
from trimtab.core.errors import InputError
from trimtab.train.recipe import Recipe

RATE = 8000
WINDOW, HOP, BANDS, FRAMES = 256, 125, 32, 64
RECIPE = Recipe(steps=1200, lr=0.05, weight_decay=1e-3, precision="fp32", channels_last=True)


class Block(nn.Module):
    """A 3 x 3 convolution, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return functional.relu(self.bn(self.conv(x)))


class Speech(nn.Module):
    """Six convolutions and a classifier: 285,000 parameters, 15 M multiply-adds."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.stem = Block(1, w, 2)
        self.layers = nn.Sequential(
            Block(w, 2 * w, 2), Block(2 * w, 2 * w), Block(2 * w, 4 * w, 2), Block(4 * w, 4 * w)
        )
        self.classify = nn.Linear(4 * w, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 32, 64] to [N, 10]."""
        x = self.layers(self.stem(x))  # [N, 128, 4, 8]
        return self.classify(x.mean((2, 3)))


def mel_filters() -> Tensor:
    """Triangles on the mel scale, from 60 Hz to half the rate: [WINDOW / 2 + 1, BANDS].

    Source: Davis & Mermelstein (1980); mel(f) = 2595 log10(1 + f / 700) of O'Shaughnessy (1987).
    """
    mel = torch.linspace(2595 * math.log10(1 + 60 / 700), 2595 * math.log10(1 + RATE / 1400), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hertz = torch.linspace(0, RATE / 2, WINDOW // 2 + 1).unsqueeze(1)
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def log_mel(waves: Tensor) -> Tensor:
    """int16 [N, 8000] to the standardised logarithm of mel energies [N, 1, BANDS, FRAMES]."""
    scaled = waves.float() / 32768
    spectrum = torch.stft(
        scaled, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True, pad_mode="constant"
    )
    energy = mel_filters().T @ spectrum.abs().square()[:, :, :FRAMES]  # [N, BANDS, FRAMES]
    return ((energy + 1e-4).log().unsqueeze(1) + 4.5) / 4.0


def vary(features: Tensor) -> Tensor:
    """Features moved by up to 8 frames, made louder or softer, with a band and a span of time left out.

    Source: Park et al. (2019), SpecAugment, section 2, without time warping.
    """
    n = len(features)
    place = (torch.arange(FRAMES) - torch.randint(-8, 9, (n, 1))).clamp(0, FRAMES - 1)
    moved = features.gather(3, place[:, None, None].expand_as(features)) + 0.3 * torch.randn(n, 1, 1, 1)
    for dim, most in ((2, 6), (3, 12)):
        size = features.shape[dim]
        start, width = torch.randint(size, (n, 1)), torch.randint(most, (n, 1))
        index = torch.arange(size)
        out = (index >= start) & (index < start + width)
        moved = moved.masked_fill(out[:, None, :, None] if dim == 2 else out[:, None, None], moved.mean())
    return moved


def untrained() -> tt.Task:
    """The data, and the network with random weights."""
    given = os.environ.get("TRIMTAB_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    path = folder / "fsdd_8khz.npz"
    if not path.is_file():
        raise InputError("speech: a file is missing", where=path, do="Set TRIMTAB_DATA to the folder that holds it.")
    with np.load(path, allow_pickle=False) as data:
        x, y = log_mel(torch.from_numpy(data["x"])), torch.from_numpy(data["y"].astype(np.int64))
        test, number = torch.from_numpy(data["test"]), torch.from_numpy(data["index"].astype(np.int64))
    choose = ~test & (number < 10)
    train = ~test & ~choose
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Speech()
    return tt.Task(
        model=model,
        example=x[:2],
        train=tt.Arrays(x[train], y[train], batch=50, shuffle=True, transform=vary),
        calibrate=tt.Arrays(x[train][::4], None, batch=50),
        validate=tt.Arrays(x[choose], y[choose], batch=50),
        test=tt.Arrays(x[test], y[test], batch=50),
        loss=functional.cross_entropy,
        score=tt.accuracy,
        name="speech",
        fingerprint="fsdd-8khz-1",
    )


def task() -> tt.Task:
    """The trained network and its data."""
    return once(untrained(), RECIPE)
