"""The networks of the benches of compression, each trained once to its plateau by trimtab's own loop.

    python bench/compression_networks.py [NAME ...]

trains those that are not there yet (a training that was stopped goes on) and prints what they score. The data are
described beside `task_of`; weights are kept in runs/networks, under the hash of network, recipe and data.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import cifar10  # noqa: E402
import speech  # noqa: E402
from once import once  # noqa: E402

import trimtab as tt  # noqa: E402
from trimtab.core.context import Progress, quiet  # noqa: E402
from trimtab.core.errors import InputError  # noqa: E402
from trimtab.train.recipe import Recipe  # noqa: E402

RUNS = ROOT / "runs" / "networks"


class Vgg(nn.Module):
    """VGG-11 with batch norm for 32 x 32 images: eight 3 x 3 convolutions, five halvings, one linear layer.

    The full widths, as the literature on compression has them: 9.2 M parameters and 153 M multiply-adds. Its layers
    are few and wide, so that a processor comes near its peak: a step takes about as long as one of ResNet-56.

    Source: Simonyan & Zisserman (2015), configuration A, with the classifier of Li et al. (2017).
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for wide in (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0):  # 0 halves the image
            if not wide:
                layers.append(nn.MaxPool2d(2))
                continue
            outputs = wide * width
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] to [N, 10]."""
        return self.classifier(self.features(x).flatten(1))  # [N, 512, 1, 1] before


class LeNet300(nn.Module):
    """LeNet-300-100: three linear layers, 266,610 parameters.

    Source: LeCun et al. (1998), Gradient-based learning applied to document recognition; the ReLU of Han et al. (2016).
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] to [N, 10]."""
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


class LeNet5(nn.Module):
    """LeNet-5 as Caffe ships it, which Deep Compression compressed: 431,080 parameters.

    Source: Jia et al. (2014), Caffe, examples/mnist/lenet.prototxt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] to [N, 10]."""
        x = functional.max_pool2d(self.conv1(x), 2)  # [N, 20, 12, 12]
        x = functional.max_pool2d(self.conv2(x), 2)  # [N, 50, 4, 4]
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


CHARACTERS, LENGTH = 96, 128
"""Of the small GPT: its vocabulary, and how many characters it reads at once."""


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, width] to the same."""
        n, length, width = x.shape
        parts = (f(x).view(n, length, self.heads, width // self.heads).transpose(1, 2)
                 for f in (self.query, self.key, self.value))  # fmt: skip
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)  # [N, heads, L, width / heads]
        return self.out(mixed.transpose(1, 2).reshape(n, length, width))


class Layer(nn.Module):
    """Attention and a feed-forward part, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, width] to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """A small GPT over characters: 4 layers of 128, 4 heads; 834,000 parameters.

    Source: Radford et al. (2019), Language Models are Unsupervised Multitask Learners, for the order of norms.
    """

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(CHARACTERS, width)
        self.places = nn.Parameter(torch.empty(LENGTH, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Characters int64 [N, L] to logits of the next ones [N, L, CHARACTERS]."""
        return self.head(self.norm(self.layers(self.tokens(ids) + self.places)))


def vgg() -> tt.Task:
    """CIFAR-10, JPEG images: even test images to choose on, odd ones to prove on."""
    folder = cifar10.data_folder()
    x, y = cifar10.images(_file("cifar10_train_jpeg.npz", folder))
    test_x, test_y = cifar10.images(_file("cifar10_test_jpeg.npz", folder))
    return tt.Task(
        model=seeded(Vgg),
        example=cifar10.normalise(test_x[:2]),
        train=tt.Arrays(x, y, batch=128, shuffle=True, transform=cifar10.augment),
        calibrate=tt.Arrays(x[::97], None, batch=128, transform=cifar10.normalise),
        validate=tt.Arrays(test_x[0::2], test_y[0::2], batch=100, transform=cifar10.normalise),
        test=tt.Arrays(test_x[1::2], test_y[1::2], batch=100, transform=cifar10.normalise),
        loss=functional.cross_entropy,
        score=tt.accuracy,
        name="cifar10-vgg11",
        fingerprint="cifar10-jpeg-1",
    )


def lenet(model: Callable[[], nn.Module], name: str) -> tt.Task:
    """MNIST: 10,000 images to train on; even test images to choose on, odd ones to prove on."""
    (x, y), (test_x, test_y) = (_digits(part) for part in ("train10k", "t10k"))
    return tt.Task(
        model=seeded(model),
        example=scaled(x[:2]),
        train=tt.Arrays(x, y, batch=50, shuffle=True, transform=warped),
        calibrate=tt.Arrays(x[::19], None, batch=100, transform=scaled),
        validate=tt.Arrays(test_x[0::2], test_y[0::2], batch=100, transform=scaled),
        test=tt.Arrays(test_x[1::2], test_y[1::2], batch=100, transform=scaled),
        loss=functional.cross_entropy,
        score=tt.accuracy,
        name=name,
        fingerprint="mnist-10k-1",
    )


def gpt() -> tt.Task:
    """Trained on WikiText-2's validation text; the test text is halved, every other window to choose on."""
    text, unseen = _text("wikitext2_valid.txt.gz"), _text("wikitext2_test.txt.gz")
    known = {c: i + 1 for i, (c, _) in enumerate(Counter(text).most_common(CHARACTERS - 1))}
    train, test = (torch.tensor([known.get(c, 0) for c in part]) for part in (text, unseen))
    x, y = windows(train, LENGTH // 2)
    test_x, test_y = (part[::5] for part in windows(test, LENGTH))  # a fifth: 1,963 windows, 251,000 characters
    return tt.Task(
        model=seeded(Gpt),
        example=x[:2],
        train=tt.Arrays(x, y, batch=32, shuffle=True),
        calibrate=tt.Arrays(x[::128], None, batch=32),
        validate=tt.Arrays(test_x[0::2], test_y[0::2], batch=50),
        test=tt.Arrays(test_x[1::2], test_y[1::2], batch=50),
        loss=next_character,
        score=tt.perplexity,
        name="wikitext2-gpt",
        fingerprint="wikitext2-characters-1",
    )


def next_character(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy in nats of a character, of logits [N, L, CHARACTERS] against int64 [N, L]."""
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def windows(ids: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Stretches of LENGTH, one every `step`, and the same moved by one: both [N, LENGTH]."""
    return ids[:-1].unfold(0, LENGTH, step).contiguous(), ids[1:].unfold(0, LENGTH, step).contiguous()


def scaled(images: Tensor) -> Tensor:
    """Pixels uint8 [N, 1, 28, 28] to about zero mean and unit variance."""
    return (images.float() / 255 - 0.1307) / 0.3081


def warped(images: Tensor) -> Tensor:
    """`scaled` of images turned by up to 12 degrees, sized and slanted by up to a tenth, moved by up to 2 pixels."""
    n = len(images)
    turn, slant, size = 0.2 * _spread(n), 0.1 * _spread(n), 1 + 0.1 * _spread(n)
    rows = [turn.cos() * size, -turn.sin() * size + slant, _spread(n) / 7]
    rows += [turn.sin() * size, turn.cos() * size, _spread(n) / 7]
    grid = functional.affine_grid(torch.stack(rows, 1).reshape(n, 2, 3), list(images.shape), align_corners=False)
    return scaled(functional.grid_sample(images.float(), grid, align_corners=False))


def _spread(n: int) -> Tensor:
    return 2 * torch.rand(n) - 1


@dataclass(frozen=True)
class Network:
    """One network of the benches.

    Args:
        task: its data, with random weights from a fixed seed.
        recipe: that brings it to its plateau; None where the weights come with the data.
    """

    task: Callable[[], tt.Task]
    recipe: Recipe | None = None


NETWORKS: dict[str, Network] = {
    "resnet56": Network(lambda: cifar10.resnet_task(9)),
    "resnet20": Network(lambda: cifar10.resnet_task(3)),
    "vgg": Network(vgg, Recipe(390 * 30, lr=0.1, precision="bf16", channels_last=True)),
    "speech": Network(speech.untrained, speech.RECIPE),
    "lenet300": Network(
        lambda: lenet(LeNet300, "mnist-lenet300"), Recipe(200 * 60, lr=0.05, precision="fp32", channels_last=False)
    ),
    "lenet5": Network(
        lambda: lenet(LeNet5, "mnist-lenet5"), Recipe(200 * 40, lr=0.02, precision="fp32", channels_last=False)
    ),
    "gpt": Network(
        gpt, Recipe(547 * 8, "adamw", 2e-3, 0.1, clip=1.0, warmup=0.05, precision="fp32", channels_last=False)
    ),
}
"""By name. Precision and layout are settled: the same recipe gives the same weights whatever the clock says."""


def trained(name: str, folder: Path = RUNS, progress: Progress = quiet, steps: int | None = None) -> tt.Task:
    """A task with its trained network; trained now, to its plateau, where nothing did before.

    Args:
        name: one of `NETWORKS`.
        folder: where weights are kept.
        progress: called as training goes on.
        steps: fewer than the recipe's, to try something out; kept apart from the full training.
    """
    if name not in NETWORKS:
        raise InputError("networks", got=name, expected=", ".join(NETWORKS))
    network = NETWORKS[name]
    if network.recipe is None:
        return network.task()
    recipe = network.recipe if steps is None else replace(network.recipe, steps=steps)
    return once(network.task(), recipe, folder, progress)


def seeded(model: Callable[[], nn.Module]) -> nn.Module:
    """A network with random weights that are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model()


def _digits(part: str) -> tuple[Tensor, Tensor]:
    with np.load(_file(f"mnist_{part}.npz"), allow_pickle=False) as data:
        return torch.from_numpy(data["x"]).unsqueeze(1), torch.from_numpy(data["y"].astype(np.int64))


def _text(name: str) -> str:
    with gzip.open(_file(name), "rt", encoding="utf-8") as file:
        return file.read()


def _file(name: str, folder: Path | None = None) -> Path:
    path = (folder or cifar10.data_folder()) / name
    if not path.is_file():
        raise InputError("networks: a file is missing", where=path, do="Set TRIMTAB_DATA to the folder that holds it.")
    return path


def main() -> None:
    """Train what is not there yet, and print what each network scores."""
    from trimtab.graph.capture import capture
    from trimtab.train.evaluate import evaluate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--steps", type=int, help="fewer than the recipe's, to try something out")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where weights are kept")
    given = parser.parse_args()
    for name in given.names or NETWORKS:
        start, last = time.monotonic(), [time.monotonic()]

        def show(what: str, done: int, total: int, name: str = name, last: list[float] = last) -> None:
            if time.monotonic() - last[0] > 10:
                last[0] = time.monotonic()
                print(f"{name}: {what} {done}/{total}", file=sys.stderr, flush=True)

        task = trained(name, given.runs, show, given.steps)
        graph, score = capture(task.model, task.example), task.scored()
        assert score is not None
        found = {half: evaluate(graph, getattr(task, half) or (), score, half) for half in ("validate", "test")}
        said = ", ".join(f"{half} {metric.value:.4f} {metric.interval}" for half, metric in found.items())
        weights = sum(p.numel() for p in task.model.parameters())
        print(f"{name}: {weights:,} parameters, {score.name}: {said}; {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
