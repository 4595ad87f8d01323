"""Parts of networks swapped for cheaper kinds, chosen by measured time: what that gives on this CPU.

    python bench/swap.py [--only NETWORK ...] [--hours H] [--steps N] [--runs FOLDER] [--kinds-only]

For each network: first what every kind of part costs beside what it stands for, by the latency table, and what it loses
at its site; then one run of `trimtab.pipeline.swap`, in floating point and in integers. A run that was interrupted goes
on when the bench is started again. The tables go to bench/results/swap.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from compression_networks import trained  # noqa: E402

from trimtab.compress.swap.choose import prices, saved  # noqa: E402
from trimtab.compress.swap.technique import Swap  # noqa: E402
from trimtab.core.goal import Goal  # noqa: E402
from trimtab.core.store import Store  # noqa: E402
from trimtab.core.target import Target  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.pipeline.prepare import prepare  # noqa: E402
from trimtab.pipeline.swap import swap  # noqa: E402

OUT = ROOT / "bench" / "results" / "swap.md"
NETWORKS = ("resnet56", "vgg")
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Kind:
    """What one kind costs and loses at all sites of a network that it fits.

    Args:
        name: of the kind.
        sites: that it fits.
        macs: median of its multiply-adds over the site's.
        time: the same of its seconds, by the latency table.
        slower: sites at which it is not faster.
        error: median of its relative squared error at the site, after training.
    """

    name: str
    sites: int
    macs: float
    time: float
    slower: int
    error: float


def main() -> None:
    """Run the networks and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--hours", type=float, default=0.5, help="of each run")
    parser.add_argument("--steps", type=int, default=100, help="that alternatives are trained for")
    parser.add_argument("--train-steps", type=int, help="of the network itself, to try something out")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "swap")
    parser.add_argument("--kinds-only", action="store_true", help="train and time the kinds, run nothing")
    given = parser.parse_args()
    technique = Swap(share=0.5, train={"steps": given.steps})
    kinds: dict[str, list[Kind]] = {}
    rows: list[dict[str, Any]] = []
    for name in given.only:
        task = trained(name, steps=given.train_steps)
        kinds[name] = table(task, technique, given.runs / f"{name}-kinds")
        for precision in PRECISIONS if not given.kinds_only else ():
            folder = given.runs / f"{name}-{precision}"
            target = Target(precision=precision)
            goal = Goal(minimise="latency", max_drop=0.01, hours=given.hours)
            swap(task, target, goal, technique=technique, out=folder, progress=shown(name))
            rows.append(row(name, precision, folder))
    write(kinds, rows, given.steps)


def shown(name: str) -> Any:
    """Progress on stderr, every few seconds."""
    last = [0.0]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 5 or done == total:
            last[0] = time.monotonic()
            print(f"{name}: {what} {done}/{total}", file=sys.stderr, flush=True)

    return progress


def table(task: Any, technique: Swap, folder: Path) -> list[Kind]:
    """All kinds at all sites: their cost beside the site's, and their error."""
    prepared = prepare(task, Target(precision="fp32"), Goal(), 0, Store(folder), shown(task.name))
    graph, context = prepared.graph, prepared.context
    every = technique.library(graph, context, technique.choices(graph, context))
    price = prices(graph, every, context)
    found = []
    for kind in dict.fromkeys(a.kind for a in every.values()):
        some = [a for a in every.values() if a.kind == kind]
        own = [sum(price[layer] for layer in a.site.layers) for a in some]
        shares = [1 - saved(a, price) / max(s, 1e-12) for a, s in zip(some, own, strict=True)]
        macs = [a.site.forms[kind].macs / sum(layer.macs for layer in a.site.layers) for a in some]
        slower = sum(share >= 1 for share in shares)
        found.append(Kind(kind, len(some), median(macs), median(shares), slower, median(a.error or 0.0 for a in some)))
    return found


def row(name: str, precision: str, folder: Path) -> dict[str, Any]:
    """What a finished run says."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    chosen = next(p for p in report["points"] if p["name"] == report["chosen"])
    control = (report["control"] or {}).get("metrics", {}).get("score")
    original = report["baseline"]["metrics"]["score"]["value"]
    reference = max(original, control["value"]) if control else original
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    steps = [s for s in plan["steps"] if s["technique"] == "Swap"]
    return {
        "name": name,
        "precision": precision,
        "runtime": report["runtime"],
        "kinds": Counter(k for s in steps for k in s["blocks"].values()),
        "ratio": chosen["metrics"].get("latency_ratio", {"value": 1.0}),
        "size": chosen["metrics"].get("size_ratio", {"value": 1.0})["value"],
        "score": chosen["metrics"]["score"]["value"],
        "drop": reference - chosen["metrics"]["score"]["value"],
        "notes": [n for n in report.get("notes", []) if "swapped parts" in n or "faster" in n],
    }


def write(kinds: dict[str, list[Kind]], rows: list[dict[str, Any]], steps: int) -> None:
    """The tables as Markdown."""
    here = machine()
    text = [
        "# Parts swapped for cheaper kinds",
        "",
        f"`python bench/swap.py`, {time.strftime('%Y-%m-%d')}, on {here.processor}, {here.cores} cores;",
        f"{steps} steps of each alternative against the original's features, all in one pass. Kinds are chosen",
        "together by the measured time of their layers and by the loss of each swap alone, then the network is",
        "distilled as a whole.",
        "",
    ]
    if rows:
        text += [
            "| network | runs in | ratio of latency | ratio of size | score | drop, points | parts swapped |",
            "|---|---|---|---|---|---|---|",
        ]
    for r in rows:
        low, high = r["ratio"].get("interval") or (r["ratio"]["value"],) * 2
        swapped = ", ".join(f"{n} {kind}" for kind, n in r["kinds"].most_common()) or "none: nothing paid"
        text.append(
            f"| {r['name']}, {r['precision']} | {r['runtime']} | {r['ratio']['value']:.2f} [{low:.2f}, {high:.2f}] |"
            f" {r['size']:.2f} | {100 * r['score']:.2f} | {100 * r['drop']:.2f} | {swapped} |"
        )
    for name, some in kinds.items():
        text += ["", f"## Kinds in {name}", "", "Medians over sites, against what stands there; fp32, one thread.", ""]
        text += ["| kind | sites | multiply-adds | time | slower at | error |", "|---|---|---|---|---|---|"]
        text += [f"| {k.name} | {k.sites} | {k.macs:.2f} | {k.time:.2f} | {k.slower} | {k.error:.3f} |" for k in some]
        worse = [k for k in some if k.time > 1.5 * k.macs and k.macs > 0]
        if worse:
            told = ", ".join(f"{k.name} {k.macs:.2f} of the multiply-adds, {k.time:.2f} of the time" for k in worse)
            text += ["", f"Saves less time than work here: {told}."]
    for note in dict.fromkeys(n for r in rows for n in r["notes"]):
        text += ["", note]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
