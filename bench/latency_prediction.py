"""Latency prediction on this processor: networks never timed, from a table of layers and a few whole networks.

    python bench/latency_prediction.py --prepare FOLDER                  # the networks as files: any machine, any load
    python bench/latency_prediction.py --measure FOLDER A [--minutes 12] # one occasion: layers, then networks, timed
    python bench/latency_prediction.py --measure FOLDER B
    python bench/latency_prediction.py --table FOLDER A B                # predict occasion B from occasion A

Random networks of three families (ResNet, MobileNet, 1-d CNN): 60 to calibrate with and 200 to predict. Each is timed
in ONNX Runtime at one thread and batch 1. An occasion is a process of its own, at another time, on a quiet machine.
What is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict
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
from trimtab.pipeline.predict import LEAST, calibrate, features, layer_model  # noqa: E402
from trimtab.run.cpu import Cpu  # noqa: E402
from trimtab.run.export import export_onnx  # noqa: E402
from trimtab.run.measure import measure as time_sessions  # noqa: E402
from trimtab.run.onnxruntime import OnnxRuntime  # noqa: E402

CALIBRATION, TEST = 60, 200
FAMILIES = ("resnet", "mobilenet", "cnn1d")
PASSES = 2
"""Times that the layers are timed, the lesser of which counts: a slow spell of the machine hits all of a profile."""
OVERHEAD = 0.15
"""Seconds that loading, warming up and choosing a core take for each network, about, halved."""


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


def names(count: int) -> tuple[list[str], list[str]]:
    """Of so many networks, those to calibrate with and those to predict; families take turns."""
    every = [f"{FAMILIES[i % 3]}-{i}" for i in range(count)]
    calibration = max(3 * round(count * CALIBRATION / (CALIBRATION + TEST) / 3), 3 * LEAST)
    if calibration + 3 > count:
        raise SystemExit(f"--networks: {3 * LEAST + 3} or more: {LEAST} of each family to calibrate with")
    return every[:calibration], every[calibration:]


def prepare(folder: Path, count: int) -> None:
    """Capture and export every network, and note what its latency is a sum over; layers by their shape."""
    folder.mkdir(parents=True, exist_ok=True)
    every = [name for part in names(count) for name in part]
    for k, name in enumerate(every):
        if (folder / f"{name}.json").exists():
            continue
        family, _, seed = name.partition("-")
        model, example = network(family, int(seed))
        graph = set_mode(capture(model.eval(), example), False)
        export_onnx(graph, folder / f"{name}.onnx")
        shapes: list[Layer] = []

        def noted(asked: Sequence[Layer], shapes: list[Layer] = shapes) -> list[float]:
            shapes.extend(asked)
            return [0.0] * len(asked)

        rest = [float(v) for v in features(graph, noted)]
        input_shape = [int(n) for n in graph.example(1)[0].shape]
        facts = {"shapes": [asdict(s) for s in shapes], "rest": rest, "input": input_shape}
        write_json(folder / f"{name}.json", facts)
        print(f"{k + 1}/{len(every)}", file=sys.stderr, flush=True)


def layer_of(data: dict[str, Any]) -> Layer:
    """A layer from JSON."""
    return Layer(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def facts_of(folder: Path, every: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `prepare` noted of each network, layers as shapes."""
    missing = [n for n in every if not (folder / f"{n}.json").exists()]
    if missing:
        raise SystemExit(f"{folder}: {len(missing)} of {len(every)} networks are missing; run --prepare first")
    found = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in every}
    return {name: {**facts, "shapes": [layer_of(s) for s in facts["shapes"]]} for name, facts in found.items()}


def occasion(folder: Path, which: str, count: int, minutes: float) -> None:
    """Time the layers, in one profile for each 64, then every network, in a random order, one after the other.

    A network is timed for so long that all of them end in the minutes, even if each is measured twice.
    """
    start = time.monotonic()
    every = [name for part in names(count) for name in part]
    facts, file = facts_of(folder, every), folder / f"times-{which}.json"
    done = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"seconds": {}, "table": []}
    shapes = dict.fromkeys(s for name in every for s in facts[name]["shapes"])
    if len(done["table"]) != len(shapes):
        device, target = Cpu("onnxruntime"), Target(runtime="onnxruntime")
        passes = [device.layers(list(shapes), "fp32", target) for _ in range(PASSES)]
        done["table"] = [[asdict(s), min(found[s]["latency"] for found in passes)] for s in shapes]
        print(f"{len(shapes)} layer shapes in {time.monotonic() - start:.0f} s", file=sys.stderr)
    left = [name for name in every if name not in done["seconds"]]
    np.random.default_rng(zlib.crc32(which.encode())).shuffle(left)
    each = float(np.clip((60 * minutes - (time.monotonic() - start)) / max(len(left), 1) / 2 - OVERHEAD, 0.15, 1.0))
    for k, name in enumerate(left):
        inputs = [np.random.default_rng(0).standard_normal(facts[name]["input"]).astype(np.float32)]
        session = OnnxRuntime().load(folder / f"{name}.onnx", 1, 1)
        found = time_sessions({"": session}, inputs, each)[""]
        session.close()
        done["seconds"][name] = found.median_s
        done["shaky"] = done.get("shaky", 0) + (not found.reliable)
        if k % 10 == 9 or k + 1 == len(left):
            write_json(file, {**done, "when": time.strftime("%Y-%m-%d %H:%M")})
            print(f"{k + 1}/{len(left)}", file=sys.stderr, flush=True)
    print(f"{time.monotonic() - start:.0f} s, {each:.2f} s for each network", file=sys.stderr)


def report(folder: Path, first: str, second: str, count: int, out: Path) -> None:
    """Predict the second occasion from the first, and write the table."""
    from scipy.stats import spearmanr

    a, b = (json.loads((folder / f"times-{which}.json").read_text(encoding="utf-8")) for which in (first, second))
    calibration, test = names(count)
    facts = facts_of(folder, [*calibration, *test])
    table = {layer_of(s): seconds for s, seconds in a["table"]}
    unseen = set(np.random.default_rng(0).permutation(len(table))[: len(table) // 5].tolist())
    known = {s: v for i, (s, v) in enumerate(table.items()) if i not in unseen}
    model = layer_model(known)
    guessed = dict(zip(table, model(list(table)), strict=True))
    rows = {
        "table of every layer": lambda s: table[s],
        "a fifth of the layers never timed": lambda s: known[s] if s in known else guessed[s],
    }
    truth = np.array([b["seconds"][n] for n in test])
    floor = np.array([b["seconds"][n] / a["seconds"][n] - 1 for n in test])
    lines = []
    for title, row in rows.items():
        found = {n: np.array([sum(map(row, f["shapes"])), *f["rest"][1:]]) for n, f in facts.items()}
        predictor = {}
        for family in FAMILIES:
            mine = [n for n in calibration if n.startswith(family)]
            predictor[family] = calibrate([found[n] for n in mine], [a["seconds"][n] for n in mine], "this processor")
        guess = np.array([found[n] @ np.array(predictor[n.split("-")[0]].weights) for n in test])
        off = guess / truth - 1
        for family in ("all", *FAMILIES):
            own = np.array([family in ("all", n.split("-")[0]) for n in test])
            lines.append(
                f"| {title} | {family} | {own.sum()} | {100 * np.mean(np.abs(off[own]) <= 0.10):.1f} % |"
                f" {100 * np.mean(np.abs(off[own]) <= 0.05):.1f} % |"
                f" {100 * np.sqrt(np.mean(off[own] ** 2)):.2f} % | {100 * np.median(off[own]):+.1f} % |"
                f" {spearmanr(guess[own], truth[own]).statistic:.4f} |"
            )
    same = 100 * np.mean(np.abs(floor) <= 0.10)
    here = machine()
    text = [
        "# Latency prediction",
        "",
        f"`python bench/latency_prediction.py`, {time.strftime('%Y-%m-%d')}, on {here.processor}, {here.cores} cores.",
        f"ONNX Runtime, fp32, batch 1, one thread. {len(calibration)} networks and {len(table)} layer shapes timed on",
        f"{a['when']}; {len(test)} other networks predicted from them and timed on {b['when']} in another process.",
        "",
        "| layers from | family | networks | within 10 % | within 5 % | root mean square | median | Spearman |",
        "|---|---|---|---|---|---|---|---|",
        *lines,
        "",
        f"The floor: of the same networks timed on both occasions, {same:.1f} % are within 10 % of themselves; median"
        f" {100 * np.median(floor):+.1f} %, standard deviation {100 * np.std(floor):.1f} %, Spearman"
        f" {spearmanr([a['seconds'][n] for n in test], truth).statistic:.4f}. Timings flagged as unreliable: "
        f"{a.get('shaky', 0)} and {b.get('shaky', 0)}.",
        f"The model of layers never timed is {100 * model.error:.1f} % off (median).",
    ]
    out.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def main() -> None:
    """Prepare, measure or tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "OCCASION"))
    parser.add_argument("--table", nargs=3, metavar=("FOLDER", "FIRST", "SECOND"))
    parser.add_argument("--minutes", type=float, default=12.0, help="that an occasion may take")
    parser.add_argument("--networks", type=int, default=CALIBRATION + TEST, help="fewer, to try it")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "latency_prediction.md")
    given = parser.parse_args()
    if given.prepare:
        prepare(given.prepare, given.networks)
    if given.measure:
        occasion(Path(given.measure[0]), given.measure[1], given.networks, given.minutes)
    if given.table:
        report(Path(given.table[0]), given.table[1], given.table[2], given.networks, given.out)


if __name__ == "__main__":
    main()
