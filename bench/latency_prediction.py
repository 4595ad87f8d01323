"""Latency prediction on this processor: networks never timed, from a table of layers and a few whole networks.

    python bench/latency_prediction.py --measure FOLDER      # one occasion: the table, then all networks, timed
    python bench/latency_prediction.py --table FOLDER FOLDER # predict the second occasion from the first

Random networks of three families (ResNet, MobileNet, 1-d CNN): 60 to calibrate with and 200 to predict. Each is timed
in ONNX Runtime at one thread and batch 1. An occasion is a process of its own, at another time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trimtab.core.store import write_json  # noqa: E402
from trimtab.core.target import Target  # noqa: E402
from trimtab.graph.capture import capture  # noqa: E402
from trimtab.graph.modes import set_mode  # noqa: E402
from trimtab.hardware.layer import Layer  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.pipeline.predict import calibrate, features, layer_model  # noqa: E402
from trimtab.pipeline.table import layers, measure  # noqa: E402
from trimtab.run.cpu import Cpu  # noqa: E402
from trimtab.run.export import export_onnx  # noqa: E402
from trimtab.run.measure import measure as time_sessions  # noqa: E402
from trimtab.run.onnxruntime import OnnxRuntime  # noqa: E402

CALIBRATION, TEST = 60, 200
FAMILIES = ("resnet", "mobilenet", "cnn1d")


class Residual(nn.Module):
    """Two convolutions of which the inner width is free, and a shortcut."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(inputs, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(inner, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        short = stride > 1 or inputs != outputs
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if short else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(self.one(x)) + self.short(x))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project (Sandler et al. 2018)."""

    def __init__(self, inputs: int, wide: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False), nn.BatchNorm2d(wide)),
            *(nn.ReLU6(), nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class Head(nn.Module):
    """Mean over all positions, then a linear layer."""

    def __init__(self, body: nn.Module, width: int, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.body, self.linear, self.dims = body, nn.Linear(width, 10), dims

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.body(x).mean(self.dims))


def network(family: str, seed: int) -> tuple[nn.Module, Tensor]:
    """A random network of a family with its example input."""
    rng = np.random.default_rng([FAMILIES.index(family), seed])

    def pick(values: Any) -> int:
        return int(rng.choice(values))

    torch.manual_seed(seed)
    if family == "cnn1d":
        width, parts = pick([8, 16, 24, 32]), []
        inputs = 1
        for _ in range(pick(range(3, 9))):
            parts += [nn.Conv1d(inputs, width, pick([3, 5, 7, 9]), pick([1, 2]), 4), nn.BatchNorm1d(width), nn.ReLU()]
            inputs, width = width, min(pick([width, width + 8, 2 * width]), 160)
        return Head(nn.Sequential(*parts), inputs, (2,)), torch.randn(2, 1, pick([500, 1000, 2000]))
    side = pick([32, 48, 64])
    inputs = width = pick([16, 24, 32])
    parts = [nn.Conv2d(3, width, 3, 1 if family == "resnet" else 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for stage in range(3):
        width = pick([width, width + 8, 2 * width]) if stage else width
        for block in range(pick(range(1, 5))):
            stride = 2 if stage and not block else 1
            if family == "resnet":
                parts.append(Residual(inputs, max(8, 8 * round(width * rng.uniform(0.3, 1.0) / 8)), width, stride))
            else:
                parts.append(Inverted(inputs, inputs * pick([2, 3, 4, 6]), width, pick([3, 5]), stride))
            inputs = width
    return Head(nn.Sequential(*parts), inputs, (2, 3)), torch.randn(2, 3, side, side)


def occasion(folder: Path) -> None:
    """Time every network, five at a time against each other, and the table of their layers."""
    folder.mkdir(parents=True, exist_ok=True)
    target, device = Target(runtime="onnxruntime"), Cpu("onnxruntime")
    graphs = {name: _graph(*name.split("-")) for name in _names()}
    shapes = dict.fromkeys(s for graph in graphs.values() for s in layers(graph).values())
    start = time.monotonic()
    table = measure(shapes, device, target, f"bench {folder.name} {device.version()}")
    rows = [[list(vars(s).items()), v["latency"]] for (s, p), v in table.items() if p == "fp32"]
    print(f"{len(shapes)} layer shapes in {time.monotonic() - start:.0f} s", file=sys.stderr)
    found = json.loads((folder / "times.json").read_text())["seconds"] if (folder / "times.json").exists() else {}
    names = [n for n in graphs if n not in found]
    for i in range(0, len(names), 5):
        group = names[i : i + 5]
        for name in group:  # networks differ in their inputs: each is measured alone, one after the other
            path = folder / "network.onnx"
            export_onnx(graphs[name], path)
            session = OnnxRuntime().load(path, 1, 1)
            inputs = [t.numpy() for t in graphs[name].example(1)]
            found[name] = time_sessions({"": session}, inputs, 0.8)[""].median_s
            session.close()
        write_json(folder / "times.json", {"seconds": found, "table": rows, "when": time.strftime("%Y-%m-%d %H:%M")})
        print(f"{len(found)}/{len(graphs)}", file=sys.stderr, flush=True)


def _names() -> list[str]:
    return [f"{FAMILIES[i % 3]}-{i}" for i in range(CALIBRATION + TEST)]


def _graph(family: str, seed: str) -> Any:
    model, example = network(family, int(seed))
    return set_mode(capture(model.eval(), example), False)


def report(first: Path, second: Path) -> None:
    """Predict the second occasion from the first, and write the table."""
    from scipy.stats import spearmanr

    a, b = (json.loads((f / "times.json").read_text()) for f in (first, second))
    table = {Layer(**{k: tuple(v) if isinstance(v, list) else v for k, v in s}): seconds for s, seconds in a["table"]}
    names = _names()
    rng = np.random.default_rng(0)
    unseen = set(rng.permutation(len(table))[: len(table) // 5].tolist())
    known = {s: v for i, (s, v) in enumerate(table.items()) if i not in unseen}
    model = layer_model(known)
    rows = {
        "table of every layer": lambda shapes: [table[s] for s in shapes],
        "a fifth of the layers never timed": lambda shapes: [known[s] if s in known else model([s])[0] for s in shapes],
    }
    lines = []
    floor = np.array([b["seconds"][n] / a["seconds"][n] - 1 for n in names[CALIBRATION:]])
    graphs = {n: _graph(*n.split("-")) for n in names}
    truth = np.array([b["seconds"][n] for n in names[CALIBRATION:]])
    for title, row in rows.items():
        found = {n: features(graphs[n], row) for n in names}
        predictor = {
            family: calibrate(
                [found[n] for n in names[:CALIBRATION] if n.startswith(family)],
                [a["seconds"][n] for n in names[:CALIBRATION] if n.startswith(family)],
                "this processor",
            )
            for family in FAMILIES
        }
        guess = np.array([found[n] @ np.array(predictor[n.split("-")[0]].weights) for n in names[CALIBRATION:]])
        off = guess / truth - 1
        for family in ("all", *FAMILIES):
            mine = np.array([family in ("all", n.split("-")[0]) for n in names[CALIBRATION:]])
            lines.append(
                f"| {title} | {family} | {mine.sum()} | {100 * np.mean(np.abs(off[mine]) <= 0.10):.1f} % |"
                f" {100 * np.mean(np.abs(off[mine]) <= 0.05):.1f} % |"
                f" {100 * np.sqrt(np.mean(off[mine] ** 2)):.2f} % |"
                f" {spearmanr(guess[mine], truth[mine]).statistic:.4f} |"
            )
    here = machine()
    text = [
        "# Latency prediction",
        "",
        f"`python bench/latency_prediction.py`, {time.strftime('%Y-%m-%d')}, on {here.processor}, {here.cores} cores.",
        f"ONNX Runtime, fp32, batch 1, one thread. {CALIBRATION} networks and {len(table)} layer shapes timed on",
        f"{a['when']}; {TEST} other networks predicted from them and timed on {b['when']} in another process.",
        "",
        "| layers from | family | networks | within 10 % | within 5 % | root mean square | Spearman |",
        "|---|---|---|---|---|---|---|",
        *lines,
        "",
        f"The floor: the same networks timed on both occasions differ by more than 10 % in"
        f" {100 * np.mean(np.abs(floor) > 0.10):.1f} % of cases, median {100 * np.median(floor):+.1f} %, spread"
        f" {100 * np.std(floor):.1f} %. The model of layers never timed is {100 * model.error:.1f} % off (median).",
    ]
    (ROOT / "bench" / "results" / "latency_prediction.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="FOLDER")
    parser.add_argument("--table", type=Path, nargs=2, metavar="FOLDER")
    given = parser.parse_args()
    if given.measure:
        occasion(given.measure)
    if given.table:
        report(*given.table)
