"""One network fitted for three devices, and each winner run on all of them: FBNet's table of devices in our terms.

    python bench/cross_device.py [--hours H] [--only DEVICE ...] [--runs FOLDER]   # the fits, then the table
    python bench/cross_device.py --table                                           # the table of what is there

The fits are independent, of equal hours and with the same floor of accuracy: at most `--max-drop` below the original on
the images that choose. A fit that has ended is not run again; one that was killed goes on. When the fits have ended,
the winners are frozen (frozen.json holds their hashes) before any of them is timed on another's device. What is carried
from device to device are the cuts and the trained weights; the 8-bit form is made anew for each device, by what it runs
in integers. Each winner should be the fastest at home.

Source: Wu et al. 2019, FBNet, section 4.3 and table 5 (networks searched for an iPhone X and a Samsung S8).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import trimtab as tt  # noqa: E402 - found through the line above
from trimtab.compress.plan import apply_plan  # noqa: E402
from trimtab.core.errors import InputError  # noqa: E402
from trimtab.core.metric import show  # noqa: E402
from trimtab.core.store import Store, read_json, write_json  # noqa: E402
from trimtab.core.target import parse  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.pipeline.deploy import example_inputs, write_point  # noqa: E402
from trimtab.pipeline.points import without  # noqa: E402
from trimtab.pipeline.prepare import Prepared, prepare  # noqa: E402
from trimtab.run.cpu import Cpu  # noqa: E402
from trimtab.run.device import MODEL  # noqa: E402
from trimtab.run.measure import measure  # noqa: E402
from trimtab.run.runtime import Session  # noqa: E402

DEVICES = ("onnxruntime", "ethos-u55-128", "ethos-u85-256")
SECONDS = 12.0
"""To time the winners against each other on a device that is measured."""
ORIGINAL = "nothing: the original in int8"


def main() -> None:
    """Fit, freeze, time everything everywhere, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default=str(ROOT / "examples" / "cifar10_resnet20.py"))
    parser.add_argument("--only", nargs="+", choices=DEVICES, default=list(DEVICES), metavar="DEVICE")
    parser.add_argument("--hours", type=float, default=0.35, help="of each fit")
    parser.add_argument("--max-drop", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "cross_device")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "cross_device.md")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, fit nothing")
    given = parser.parse_args()
    task = tt.load_task(given.task)
    goal = tt.Goal("latency", max_drop=given.max_drop, hours=given.hours)
    if not given.table:
        for device in given.only:
            if not (given.runs / device / "report.json").exists():
                tt.fit(
                    task, device, goal, out=given.runs / device, seed=given.seed, progress=told(device), control=False
                )
    homes = [device for device in DEVICES if (given.runs / device / "report.json").exists()]
    if not homes:
        raise SystemExit(f"{given.runs}: no fit has ended there")
    freeze(given.runs, homes)
    prepared = {d: prepare(task, parse(d), goal, given.seed, None) for d in DEVICES}
    found = {d: timed(prepared[d], forms(given.runs, homes, prepared, d)) for d in DEVICES}
    text = written(given, homes, found, prepared)
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(text, encoding="utf-8")
    print(text)


def told(device: str) -> Any:
    """Progress on stderr, at most every five seconds."""
    last = [0.0]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 5 or done == total:
            last[0] = time.monotonic()
            print(f"{device}: {what} {done}/{total}", file=sys.stderr, flush=True)

    return progress


def freeze(runs: Path, homes: list[str]) -> None:
    """Note each winner's hash; refuse one that has changed since it was frozen."""
    file = runs / "frozen.json"
    before: dict[str, str] = read_json(file) if file.exists() else {}
    now = {home: sha256((runs / home / "model.trim.json").read_bytes()).hexdigest() for home in homes}
    changed = [home for home in homes if before.get(home, now[home]) != now[home]]
    if changed:
        raise SystemExit(f"{file}: the winner of {', '.join(changed)} has changed since it was frozen and timed")
    write_json(file, {**before, **now})


def forms(runs: Path, homes: list[str], prepared: Mapping[str, Prepared], device: str) -> dict[str, Path]:
    """The files of the original and of each winner for one device, in its integers; made once."""
    found = {}
    if (runs / device / "front" / "int8" / MODEL).exists():
        found[ORIGINAL] = runs / device / "front" / "int8" / MODEL
    for home in homes:
        folder = runs / "forms" / f"{home}-on-{device}"
        if home == device:
            found[home] = runs / home / MODEL
        elif not (folder / "plan.json").exists():
            found[home] = carried(runs / home, prepared[home], prepared[device], folder)
        else:
            found[home] = folder / MODEL
    return found


def carried(run: Path, home: Prepared, away: Prepared, folder: Path) -> Path:
    """A winner's cuts and trained weights, quantised for another device."""

    def no_training(what: str, done: int, total: int) -> None:
        if what == "train":
            raise InputError("cross_device: the winner's weights are no longer in its store", where=run)

    plan = without(tt.Plan.of_json(read_json(run / "plan.json")), "Quantise")
    plain = apply_plan(home.graph, plan, replace(home.context, store=Store(run / "store"), progress=no_training))
    return write_point(tt.Quantise().apply(plain, away.context), plan, folder)


def timed(prepared: Prepared, files: Mapping[str, Path]) -> dict[str, tuple[float, str]]:
    """Seconds of each file on a device, and how it says so; measured ones against each other, interleaved."""
    device, target = prepared.device, prepared.context.target
    inputs = example_inputs(prepared.graph, target.batch)
    if not isinstance(device, Cpu):
        modelled = {}
        for name, file in files.items():
            clocked = device.clock(file, {"": file}, target, inputs)[""]
            modelled[name] = (clocked.metrics["latency"].value, next(n for n in clocked.notes if "cycles" in n))
        return modelled
    from trimtab.run import runtime

    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name, file in files.items():
            sessions[name] = runtime(device.runtime).load(file, target.batch, target.threads)
            stack.enter_context(closing(sessions[name]))
        found = measure(sessions, inputs, SECONDS, target.threads)
    shaky = {True: "", False: ", unreliable"}
    return {
        name: (t.median_s, f"95 % in {show(t.interval[0], 's')} to {show(t.interval[1], 's')}{shaky[t.reliable]}")
        for name, t in found.items()
    }


def written(
    given: argparse.Namespace,
    homes: list[str],
    found: Mapping[str, Mapping[str, tuple[float, str]]],
    prepared: Mapping[str, Prepared],
) -> str:
    """The table as Markdown, with whether each winner is the fastest at home."""
    here, first = machine(), prepared[DEVICES[0]]
    goal = read_json(given.runs / homes[0] / "report.json")["goal"]
    best = {d: min((times[home][0], home) for home in homes)[1] for d, times in found.items()}
    rows = []
    for name in (ORIGINAL, *homes):
        cells = []
        for device in DEVICES:
            seconds, how = found[device].get(name, (None, ""))
            shown = "" if seconds is None else f"{show(seconds, 's')} ({how.rstrip('.')})"
            cells.append(f"**{shown}**" if name == best[device] else shown)
        rows.append(f"| {name} | {' | '.join(facts(given.runs, name, homes))} | {' | '.join(cells)} |")
    won = [device for device in homes if best[device] == device]
    away = {d: [found[d][home][0] / found[d][d][0] for home in homes if home != d] for d in homes if len(homes) > 1}
    told_away = "; ".join(f"{d}: {', '.join(f'{ratio:.2f}' for ratio in ratios)}" for d, ratios in away.items())
    return "\n".join(
        [
            "# Fitted for one device, run on another",
            "",
            f"`python bench/cross_device.py`, {time.strftime('%Y-%m-%d')}, {first.context.task.name};",
            f"{here.processor}, {here.cores} cores. Batch 1.",
            "",
            f"Independent fits of {goal['hours']:g} h each from the same network, with the same floor: at most",
            f"{100 * goal['max_drop']:g} points below the original on the images that choose. onnxruntime is measured:",
            "one thread, the winners interleaved in one process; Ethos-U is modelled by Arm's Vela. Winners were",
            "frozen before any was timed away from home. Accuracy is that at home, on images that nothing was",
            "chosen on.",
            "",
            f"| fitted for | accuracy | multiply-adds | training steps | {' | '.join(f'on {d}' for d in DEVICES)} |",
            f"|{'---|' * (4 + len(DEVICES))}",
            *rows,
            "",
            f"Fastest at home: {len(won)} of {len(homes)} ({', '.join(won) or 'none'}).",
            f"How many times longer the others take on a device than its own: {told_away or '-'}.",
            "",
        ]
    )


def facts(runs: Path, name: str, homes: list[str]) -> list[str]:
    """Accuracy, multiply-adds and training steps of a winner at home; of the original, on the first device."""
    report = json.loads((runs / (name if name in homes else homes[0]) / "report.json").read_text(encoding="utf-8"))
    point = next(p for p in report["points"] if p["name"] == (report["chosen"] if name in homes else "original"))
    metrics = point["metrics"]
    score = f"{100 * metrics['score']['value']:.2f} %" if "score" in metrics else "-"
    steps = sum(int(s["steps"]) for s in point["plan"] if s["technique"] == "Distil")
    missed = "" if report["met"] or name not in homes else f", {report['binding']} missed"
    return [score + missed, f"{metrics['macs']['value'] / 1e6:.2f} M", f"{steps:,}"]


if __name__ == "__main__":
    main()
