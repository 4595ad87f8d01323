"""CIFAR-10 from JPEG files in an .npz, and the residual networks of He et al. 2015, section 4.2."""

from __future__ import annotations

import io
import itertools
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import trimtab as tt
from trimtab.core.errors import FileError, InputError
from trimtab.core.store import write_atomic
from trimtab.train.augment import crop_and_flip

MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1) * 255
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1) * 255


class Block(nn.Module):
    """Two convolutions and a shortcut; where the shape changes, it takes every second pixel and pads channels."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.pad = stride, (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[N, width_in, H, W] to [N, width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(y + x)


class ResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels with `blocks` blocks each: 6 blocks + 2 layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(*(Block(32 if i else 16, 32, 1 if i else 2) for i in range(blocks)))
        self.layer3 = nn.Sequential(*(Block(64 if i else 32, 64, 1 if i else 2) for i in range(blocks)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] to [N, 10]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def normalise(images: Tensor) -> Tensor:
    """uint8 [N, 3, 32, 32] to float32 of about zero mean and unit variance."""
    return (images.float() - MEAN) / STD


def augment(images: Tensor) -> Tensor:
    """`normalise` of images that are randomly shifted and mirrored."""
    return normalise(crop_and_flip(images))


def resnet_task(blocks: int) -> tt.Task:
    """Fit a ResNet trained on CIFAR-10: even test images to choose on, odd ones to prove on."""
    depth = 6 * blocks + 2
    folder = data_folder()
    model = ResNet(blocks)
    model.load_state_dict(load_file(_file(folder / f"resnet{depth}_cifar10_jpeg.safetensors")))
    x, y = images(_file(folder / "cifar10_train_jpeg.npz"))
    test_x, test_y = images(_file(folder / "cifar10_test_jpeg.npz"))
    return tt.Task(
        model=model.eval(),
        example=normalise(test_x[:2]),
        train=tt.Arrays(x, y, batch=128, shuffle=True, transform=augment),
        calibrate=tt.Arrays(x[::97], None, batch=128, transform=normalise),
        validate=tt.Arrays(test_x[0::2], test_y[0::2], batch=100, transform=normalise),
        test=tt.Arrays(test_x[1::2], test_y[1::2], batch=100, transform=normalise),
        loss=functional.cross_entropy,
        score=tt.accuracy,
        name=f"cifar10-resnet{depth}",
        fingerprint="cifar10-jpeg-1",
    )


def data_folder() -> Path:
    """Where the data are: TRIMTAB_DATA, or `shared/data` beside this project."""
    given = os.environ.get("TRIMTAB_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        raise InputError(
            "cifar10: the data folder is missing",
            where=folder,
            expected="cifar10_{train,test}_jpeg.npz and resnet{20,56}_cifar10_jpeg.safetensors",
            do="Set TRIMTAB_DATA to the folder that holds them.",
        )
    return folder


def _file(path: Path) -> Path:
    if not path.is_file():
        raise InputError("cifar10: a file is missing", where=path, do="Set TRIMTAB_DATA to the folder that holds it.")
    return path


def images(path: Path) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [N, 3, 32, 32] and labels int64 [N] of an .npz, decoded once and then read from a cache."""
    stat = path.stat()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"
    cache = home / f"{path.stem}-{stat.st_size}-{stat.st_mtime_ns}.npy"
    try:
        with np.load(path, allow_pickle=False) as data:
            labels = torch.from_numpy(data["y"].astype(np.int64))
            pixels = _cached(cache, len(labels))
            if pixels is None:
                pixels = _decoded(data)
                _write(cache, pixels)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError("cifar10: not a file of JPEG images", where=path, got=error) from error
    return torch.from_numpy(pixels), labels


def _decoded(data: Mapping[str, np.ndarray]) -> np.ndarray:
    from PIL import Image

    jpeg, offset = data["jpeg"], data["offset"]
    pixels = np.empty((len(offset) - 1, 3, 32, 32), np.uint8)
    for i, (start, end) in enumerate(itertools.pairwise(offset)):
        with Image.open(io.BytesIO(jpeg[start:end].tobytes())) as picture:
            pixels[i] = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    return pixels


def _cached(cache: Path, n: int) -> np.ndarray | None:
    """The cached pixels; None where there are none, or where the file was cut short."""
    if not cache.is_file():
        return None
    try:
        pixels = np.load(cache, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return None
    return pixels if pixels.shape == (n, 3, 32, 32) and pixels.dtype == np.uint8 else None


def _write(cache: Path, pixels: np.ndarray) -> None:
    """A cache that cannot be written (a read-only home) costs time, not the run."""

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, pixels, allow_pickle=False)

    try:
        write_atomic(cache, save)
    except (FileError, OSError):
        return
