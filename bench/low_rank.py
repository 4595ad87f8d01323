"""Low rank alone on a VGG-11 with batch norm (CIFAR-10), each way of it: speed in ONNX Runtime and what it costs.

    python bench/low_rank.py [--only ROW ...] [--steps N] [--fit HOURS] [--runs FOLDER] [--table]

Each row is one run of `trimtab compress` (factorise, then distil), the control the same training of the original;
a run that was interrupted goes on when the bench is started again. With `--fit` a last row lets `fit` choose ranks
together with widths. The table goes to bench/results/low_rank.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from compression_networks import trained  # noqa: E402

import trimtab as tt  # noqa: E402
from trimtab.compress import Distil, Factorise  # noqa: E402
from trimtab.compress.technique import Technique  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.pipeline.compress import compress  # noqa: E402
from trimtab.pipeline.fit import fit  # noqa: E402

TARGET = "onnxruntime"
STEPS = 390 * 5
"""Of fine-tuning: five passes over the training images."""
WANTED = 1.3
"""Times faster, measured, at one thread."""
ROWS: dict[str, tuple[Factorise | None, bool]] = {
    "control": (None, True),
    "svd, untrained": (Factorise("svd", share=0.4, skip=("classifier",)), False),
    "svd on data, untrained": (Factorise("svd", share=0.4, aware=True, skip=("classifier",)), False),
    "svd on data": (Factorise("svd", share=0.4, aware=True, skip=("classifier",)), True),
    "svd on data, energy": (Factorise("svd", energy=0.9, aware=True, skip=("classifier",)), True),
    "spatial on data": (Factorise("spatial", share=0.4, aware=True), True),
    "tucker, VBMF": (Factorise("tucker", rule="vbmf"), True),
    "tucker on data": (Factorise("tucker", share=0.4, aware=True), True),
    "tensor train on data": (Factorise("tt", share=0.4, aware=True, skip=("classifier",)), True),
    "cp on data": (Factorise("cp", share=0.25, aware=True, layers=("features.8", "features.11")), True),
}
"""The technique of each row, and whether it is trained after. `tucker, VBMF` is Kim's (2016) recipe as published."""


def main() -> None:
    """Run the rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--steps", type=int, default=STEPS, help="of fine-tuning")
    parser.add_argument("--network-steps", type=int, help="of the network's own training, to try something out")
    parser.add_argument("--fit", type=float, help="hours of a run of fit, which chooses ranks and widths together")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "low_rank")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, run nothing")
    given = parser.parse_args()
    task = None if given.table else trained("vgg", progress=said("vgg"), steps=given.network_steps)
    found: dict[str, dict[str, Any]] = {}
    for row in given.only:
        folder = given.runs / row.replace(", ", "-").replace(" ", "-")
        if task is not None:
            run(task, row, given.steps, folder)
        if (folder / "report.json").exists():
            found[row] = json.loads((folder / "report.json").read_text())
    folder = given.runs / "fit"
    if task is not None and given.fit:
        goal = tt.Goal(minimise="latency", max_drop=0.01, hours=given.fit)
        fit(task, TARGET, goal, out=folder, progress=said("fit"), control=False)
    if (folder / "report.json").exists():
        found["fit: ranks and widths"] = json.loads((folder / "report.json").read_text())
    write(found, given.steps)


def run(task: tt.Task, row: str, steps: int, folder: Path) -> None:
    """One row: factorised, and trained as the control is."""
    technique, train = ROWS[row]
    chain: list[Technique] = [] if technique is None else [technique]
    if train:
        chain.append(Distil(steps, lr=0.02, precision="bf16", channels_last=True))
    compress(task, chain, target=TARGET, out=folder, progress=said(row))


def said(row: str) -> Callable[[str, int, int], None]:
    """Progress on stderr, now and then."""
    last = [0.0]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 5 or done == total:
            last[0] = time.monotonic()
            print(f"{row}: {what} {done}/{total}", file=sys.stderr, flush=True)

    return progress


def line(row: str, report: dict[str, Any], control: float) -> str:
    """A run as a row of the table."""
    chosen = next(p for p in report["points"] if p["name"] == report["chosen"])
    metrics, first = chosen["metrics"], report["baseline"]["metrics"]
    score, reference = metrics["score"]["value"], max(first["score"]["value"], control)
    ratio = metrics["latency_ratio"]
    low, high = ratio.get("interval") or (ratio["value"],) * 2
    ranks = next((s["ranks"] for s in chosen["plan"] if s["technique"] == "Factorise"), {})
    return (
        f"| {row} | {len(ranks)} | {first['macs']['value'] / metrics['macs']['value']:.2f} |"
        f" {first['params']['value'] / metrics['params']['value']:.2f} |"
        f" {1e3 * metrics['latency']['value']:.2f} | {ratio['value']:.2f} [{low:.2f}, {high:.2f}] |"
        f" {metrics.get('size_ratio', {'value': 1.0})['value']:.2f} | {100 * score:.2f} |"
        f" {100 * (reference - score):.2f} | {len(chosen.get('dropped') or ())} |"
    )


def write(found: dict[str, dict[str, Any]], steps: int) -> None:
    """The table as Markdown."""
    if not found:
        print("no run is finished yet")
        return
    here = machine()
    first = next(iter(found.values()))["baseline"]["metrics"]
    scores = {row: next(p for p in r["points"] if p["name"] == r["chosen"]) for row, r in found.items()}
    control = scores["control"]["metrics"]["score"]["value"] if "control" in scores else first["score"]["value"]
    text = [
        "# Low rank",
        "",
        f"`python bench/low_rank.py`, {time.strftime('%Y-%m-%d')}, on {here.processor}, {here.cores} cores.",
        f"VGG-11 with batch norm on CIFAR-10; the original scores {100 * first['score']['value']:.2f} % on the proving",
        f"images. {steps} steps of distillation, unless untrained; ONNX Runtime, batch 1, one thread, interleaved with",
        "the original; drop against the better of the original and its control of equal steps. 'On data': factors that",
        f"keep the layers' outputs on calibration data. To reach: {WANTED}x. Layers slower as chains stay whole.",
        "",
        "| row | layers | multiply-adds, times fewer | parameters, times fewer | latency, ms | latency ratio |"
        " size ratio | accuracy, % | drop, points | left whole or dropped |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(line(row, report, control) for row, report in found.items()),
        "",
        "torch-pruning, NNCF, torch.ao and llm-compressor factorise no convolutions; `tucker, VBMF` is the recipe of",
        "Kim et al. (2016) as published, its decomposition by tensorly.",
    ]
    out = ROOT / "bench" / "results" / "low_rank.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
