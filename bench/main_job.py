"""The main job's table: ResNet-56 and ResNet-20 on CIFAR-10, fitted to this CPU, against what careful users get today.

    python bench/main_job.py [--only ROW ...] [--seeds N] [--hours H] [--runs FOLDER]

Each row is one run of `trimtab fit`; a run that was interrupted goes on when the bench is started again.
The table goes to bench/results/main_job.md with the machine's description, and its chart to main_job.svg.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trimtab.core.goal import Goal  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.pipeline.fit import fit  # noqa: E402
from trimtab.pipeline.load import load_task  # noqa: E402

# Goals are a little beyond the rows in OpenVINO, so that the same network passes the row for ONNX Runtime alone too.
ROWS: dict[str, tuple[str, Goal, dict[str, float]]] = {
    "resnet56": (
        "cifar10_resnet56.py",
        Goal(minimise="latency", max_drop=0.01, at_least={"latency_ratio": 5.25, "size_ratio": 8.0}),
        {"drop": 0.01, "ratio": 5.0, "ratio in ONNX Runtime": 4.0, "size ratio": 8.0},
    ),
    "resnet20": (
        "cifar10_resnet20.py",
        Goal(minimise="latency", max_drop=0.01, at_least={"latency_ratio": 3.6, "size_ratio": 5.0}),
        {"drop": 0.01, "ratio": 3.2, "ratio in ONNX Runtime": 2.8, "size ratio": 5.0},
    ),
    "resnet56-small": (
        "cifar10_resnet56.py",
        Goal(minimise="size", max_drop=0.03, at_least={"latency_ratio": 4.0, "size_ratio": 14.0}),
        {"drop": 0.03, "ratio": 4.0, "size ratio": 14.0},
    ),
}


def main() -> None:
    """Run the rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--hours", type=float, default=0.45)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "main_job")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, run nothing")
    given = parser.parse_args()
    found = []
    for row in given.only:
        for seed in range(given.seeds):
            folder = given.runs / f"{row}-seed{seed}"
            if not given.table:
                run(row, seed, given.hours, folder)
            if (folder / "report.json").exists():
                found.append(line(row, seed, folder))
    write(found)


def run(row: str, seed: int, hours: float, folder: Path) -> None:
    """One run of fit; its progress on stderr."""
    file, goal, _ = ROWS[row]
    task = load_task(str(ROOT / "examples" / file))
    last = [0.0]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 5 or done == total:
            last[0] = time.monotonic()
            print(f"{row} seed {seed}: {what} {done}/{total}", file=sys.stderr, flush=True)

    goal = Goal(goal.minimise, goal.max_drop, goal.at_most, goal.at_least, hours)
    fit(task, "cpu", goal, out=folder, seed=seed, progress=progress)


def line(row: str, seed: int, folder: Path) -> dict[str, Any]:
    """What a finished run says, as a row of the table."""
    report = json.loads((folder / "report.json").read_text())
    chosen = next(p for p in report["points"] if p["name"] == report["chosen"])
    metrics, control = chosen["metrics"], (report["control"] or {}).get("metrics", {}).get("score")
    original = report["baseline"]["metrics"]["score"]["value"]
    reference = max(original, control["value"]) if control else original
    squeezed = len(gzip.compress((folder / "model.onnx").read_bytes()))
    first = len(gzip.compress((folder / "front" / "original" / "model.onnx").read_bytes()))
    others = {name: m["latency_ratio"] for name, m in chosen.get("other_runtimes", {}).items()}
    return {
        "row": f"{row}, seed {seed}",
        "original": original,
        "control": control["value"] if control else None,
        "score": metrics["score"]["value"],
        "drop": reference - metrics["score"]["value"],
        # what the ratio is against: the original in ONNX Runtime, whichever runtime runs it fastest
        "latency": (metrics["latency"]["value"] * metrics["latency_ratio"]["value"], metrics["latency"]["value"]),
        "bytes": (report["baseline"]["metrics"]["size"]["value"], metrics["size"]["value"]),
        "ratio": metrics["latency_ratio"],
        "runtime": report["runtime"],
        "others": others,
        "size": metrics.get("size_ratio", {"value": 1.0})["value"],
        "gzip": first / squeezed,
        "seconds": sum(s["seconds"] for s in report["timeline"] if s["stage"] != "control"),
        "wanted": ROWS[row][2],
    }


def write(rows: list[dict[str, Any]]) -> None:
    """The table as Markdown."""
    here = machine()
    text = [
        "# The main job",
        "",
        f"`python bench/main_job.py`, {time.strftime('%Y-%m-%d')}, on {here.processor}, {here.cores} cores.",
        "Batch 1, one thread, against the original in fp32 in ONNX Runtime, interleaved; score on the 5,000 proving",
        "images; drop against the better of the original and its control of equal steps; time without the control.",
        "",
        "| run | original | control | chosen | drop (at most) | latency ratio (at least) | other runtimes |"
        " size ratio (at least) | gzip-ed | run, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["ratio"].get("interval") or (r["ratio"]["value"],) * 2
        others = ", ".join(f"{k} {m['value']:.2f}" for k, m in r["others"].items()) or "-"
        control = f"{100 * r['control']:.2f}" if r["control"] is not None else "not trained"
        text.append(
            f"| {r['row']} | {100 * r['original']:.2f} | {control} | {100 * r['score']:.2f} |"
            f" {100 * r['drop']:.2f} ({100 * r['wanted']['drop']:.1f}) |"
            f" {r['ratio']['value']:.2f} [{low:.2f}, {high:.2f}] in {r['runtime']} ({r['wanted']['ratio']}) |"
            f" {others} |"
            f" {r['size']:.2f} ({r['wanted']['size ratio']}) | {r['gzip']:.2f} | {r['seconds']:.0f} |"
        )
    out = ROOT / "bench" / "results" / "main_job.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(text) + "\n", encoding="utf-8")
    out.with_suffix(".svg").write_text(chart(rows), encoding="utf-8")
    print("\n".join(text))


def chart(rows: list[dict[str, Any]]) -> str:
    """Bars of latency and size, the original against the chosen network, as SVG."""
    left, wide, step = 150, 330, 74
    bars, y = [], 52
    for r in rows:
        bars.append(f'<text x="10" y="{y + 26}" class="name">{r["row"].split(",")[0]}</text>')
        bars.append(f'<text x="10" y="{y + 42}" class="small">{-100 * r["drop"]:+.2f} points</text>')
        for x, pair, unit, scale in ((left, r["latency"], "ms", 1e3), (left + wide + 60, r["bytes"], "MB", 1e-6)):
            for k, value in enumerate(pair):
                width = wide * 0.62 * value / pair[0]
                top, kind = y + 6 + 24 * k, ("old", "new")[k]
                text = f"{value * scale:.2f} {unit}" + (f", {pair[0] / value:.1f}x" if k else "")
                bars.append(f'<rect x="{x}" y="{top}" width="{width:.1f}" height="18" rx="3" class="{kind}"/>')
                bars.append(f'<text x="{x + width + 8:.1f}" y="{top + 14}" class="small">{text}</text>')
        y += step
    style = (
        "text{font:14px system-ui,sans-serif;fill:#57606a}.name{font-weight:600}.small{font-size:12px}"
        ".old{fill:#afb8c1}.new{fill:#0a8f7f}"
    )
    heads = (
        f'<text x="{left}" y="30">latency, batch 1, one thread</text><text x="{left + wide + 60}" y="30">size</text>'
    )
    inner = "".join(bars)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {y}"><style>{style}</style>{heads}{inner}</svg>\n'


if __name__ == "__main__":
    main()
