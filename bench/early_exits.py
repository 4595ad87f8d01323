"""Early exits: ResNet-56 on CIFAR-10, the mean latency over real images at a bounded drop.

    python bench/early_exits.py [--steps N] [--exits N] [--max-drop D] [--joint] [--runs FOLDER]

Heads are trained on a frozen network, thresholds chosen on the even test images, everything proved on the odd ones,
in ONNX Runtime at batch 1 on one thread, interleaved with the original; then the same in 8-bit integers. A run that was
interrupted goes on when the bench is started again. The table goes to bench/results/early_exits.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trimtab.compress.exits.technique import Exits  # noqa: E402
from trimtab.compress.plan import plan_of, step_of  # noqa: E402
from trimtab.compress.quantise.technique import Quantise  # noqa: E402
from trimtab.core.goal import Goal  # noqa: E402
from trimtab.core.plan import Plan  # noqa: E402
from trimtab.core.target import parse  # noqa: E402
from trimtab.graph.save import load  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.pipeline.folder import claim  # noqa: E402
from trimtab.pipeline.load import load_task  # noqa: E402
from trimtab.pipeline.points import Point, originals, point  # noqa: E402
from trimtab.pipeline.prepare import Prepared, prepare  # noqa: E402
from trimtab.pipeline.prove import prove, targets_of  # noqa: E402
from trimtab.pipeline.ways import ways  # noqa: E402
from trimtab.train.evaluate import paired_drop  # noqa: E402

WANTED = {"ratio": 1.7, "drop": 0.005}


def main() -> None:
    """Make the points, prove them, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--exits", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--max-drop", type=float, default=0.003)
    parser.add_argument("--joint", action="store_true", help="train the network with its heads")
    parser.add_argument("--seconds", type=float, default=20.0, help="to time each network for")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "early_exits")
    given = parser.parse_args()
    settings = Exits(
        at=given.exits,
        train={"steps": given.steps, "lr": 0.1, "temperature": 2.0},
        layers=given.layers,
        max_drop=given.max_drop,
        joint=given.joint,
    )
    prepared = opened(given.runs, given.steps, settings)
    started = time.monotonic()
    (exits,) = plan_of([settings], prepared.graph, prepared.context).steps
    trained = time.monotonic() - started
    integers = step_of(Quantise())
    plans = {"exits": (exits,), "int8": (integers,), "exits, int8": (exits, integers)}
    points = originals(prepared, given.runs)
    points += [point(prepared, given.runs, name.replace(", ", "-"), Plan(s), points[0]) for name, s in plans.items()]
    write(prepared, points, exits, trained, given)


def opened(folder: Path, steps: int, settings: Exits) -> Prepared:
    """The task, with the store of the folder."""
    last = [0.0]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 5 or done == total:
            last[0] = time.monotonic()
            print(f"{what} {done}/{total}", file=sys.stderr, flush=True)

    task = load_task(str(ROOT / "examples" / "cifar10_resnet56.py"))
    prepared = prepare(task, parse("onnxruntime"), Goal(max_drop=None), 0, None, progress)
    store = claim(folder, {"bench": "early_exits", "key": prepared.key, "steps": steps, "settings": repr(settings)})
    return replace(prepared, context=replace(prepared.context, store=store))


def write(prepared: Prepared, points: list[Point], exits: Mapping[str, Any], trained: float, given: Any) -> None:
    """The table as Markdown."""
    proofs = prove(prepared, points[0], points, seconds=given.seconds)
    score, targets = prepared.context.score, targets_of(prepared.test)
    assert score is not None
    here = machine()
    text = [
        "# Early exits",
        "",
        f"`python bench/early_exits.py --steps {given.steps} --exits {given.exits} --layers {given.layers} --max-drop "
        f"{given.max_drop}{' --joint' if given.joint else ''}`, {time.strftime('%Y-%m-%d')}, on {here.processor}, "
        f"{here.cores} cores.",
        "",
        "ResNet-56 on CIFAR-10, ONNX Runtime, batch 1, one thread: the mean latency over real images in turn,",
        "interleaved with the fp32 original. Thresholds chosen on the even test images, score and drop on the odd;",
        f"the drop with its paired 95 % interval. Wanted: at least {WANTED['ratio']}x at a drop of at most "
        f"{100 * WANTED['drop']:.1f} points. Heads and thresholds took {trained:.0f} s"
        + (" (from the store)." if trained < 30 else "."),
        "",
        "| network | score, % | drop, points | latency, ms | latency ratio | size, kB |",
        "|---|---|---|---|---|---|",
    ]
    for each in points:
        proof = proofs[each.name]
        drop = paired_drop(proofs["original"].outputs, proof.outputs, targets, score)
        low, high = drop.interval or (drop.value, drop.value)
        ratio, latency = proof.clocked.metrics["latency_ratio"], proof.clocked.metrics["latency"]
        between = ratio.interval or (ratio.value, ratio.value)
        text.append(
            f"| {each.name} | {100 * proof.metrics['score'].value:.2f} |"
            f" {100 * drop.value:.2f} [{100 * low:.2f}, {100 * high:.2f}] | {1e3 * latency.value:.3f} |"
            f" {ratio.value:.2f} [{between[0]:.2f}, {between[1]:.2f}] | {each.metrics['size'].value / 1e3:.0f} |"
        )
    text += ["", f"Exits at {', '.join(exits['at'])}; thresholds {list(exits['threshold'])}.", ""]
    for each in points:
        made = load(each.file.parent)
        told = [n for n in made.notes if n.startswith(("Exits", "Expected"))] if each.name == "exits" else []
        text += [f"- {each.name}: {n}" for n in (*told, *ways(made, prepared.test, "test", prepared.context))]
    out = ROOT / "bench" / "results" / "early_exits.md"
    out.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
