"""Distillation of ResNet-20 from ResNet-56 on CIFAR-10: answers alone, and with each feature and relation beside.

    python bench/distillation.py [--minutes 4 | --steps N] [--seeds 5] [--only METHOD[:WEIGHT]...] [--runs FOLDER]
                                 [--choose] [--table]

Each student is a ResNet-20 of new weights; the seed decides its weights, the order of the data and their augmentation,
so that the methods of one seed are a pair. All train for the same steps: as many as fit into `--minutes` with answers
alone, counted once. The teacher is the trained ResNet-56. `alone` is the control, on the labels only.

A training that is done is not done again, one that was killed goes on, and `--table` writes the table of what is there.
A method without a weight has that of `train.recipe.WEIGHTS`; `--choose` tries others with a seed of its own, scored on
the 5,000 even test images, and the page says what was tried. The table's accuracies are those of the 5,000 odd test
images, which nothing was chosen on; a difference is to `answers` of the same seed, its interval Student's t over the
seeds. It goes to bench/results/distillation.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trimtab.compress.recover import Distil  # noqa: E402
from trimtab.core.context import Context  # noqa: E402
from trimtab.core.goal import Goal  # noqa: E402
from trimtab.core.store import Store, read_json, write_json  # noqa: E402
from trimtab.core.target import Target  # noqa: E402
from trimtab.core.task import accuracy  # noqa: E402
from trimtab.graph.capture import capture  # noqa: E402
from trimtab.graph.modes import set_mode  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.pipeline.load import load_task  # noqa: E402
from trimtab.pipeline.prepare import Prepared, prepare  # noqa: E402
from trimtab.train.evaluate import evaluate  # noqa: E402
from trimtab.train.fresh import fresh  # noqa: E402
from trimtab.train.loop import steps_for  # noqa: E402

RESULT = ROOT / "bench" / "results" / "distillation.md"
CHOOSING = 1000
"""The seed that weights are chosen with."""
FIXED: Mapping[str, Any] = {"lr": 0.1, "weight_decay": 5e-4, "precision": "bf16", "channels_last": True}
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "alone": ("labels only: the control", {"alpha": 1.0}),
    "answers": ("Hinton et al. 2015", {}),
    "fitnets": ("+ features, Romero et al. 2015, eq. 3", {"features": {"method": "fitnets"}}),
    "attention": ("+ attention, Zagoruyko & Komodakis 2017, eq. 2", {"features": {"method": "attention"}}),
    "rkd": ("+ distances and angles, Park et al. 2019", {"relations": {"method": "rkd"}}),
    "similarity": ("+ similarities, Tung & Mori 2019", {"relations": {"method": "similarity"}}),
    "contrastive": ("+ contrast, after Tian et al. 2020", {"relations": {"method": "contrastive"}}),
}
"""By name: what is added to the answers, and the settings of `Distil`."""
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5 % quantile of Student's t by the number of seeds."""


def main() -> None:
    """Train what is not there, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of a training with answers alone")
    parser.add_argument("--steps", type=int, help="in place of minutes")
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11), metavar="N")
    parser.add_argument("--only", nargs="+", default=list(METHODS), metavar="METHOD[:WEIGHT]")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "distillation")
    parser.add_argument("--choose", action="store_true", help="one seed of its own, scored on the choosing half")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, train nothing")
    options = parser.parse_args()
    if not options.table:
        prepared = setting(options.runs)
        count = options.steps or counted(prepared, options.minutes)
        for seed in [CHOOSING] if options.choose else range(options.seeds):
            for method in options.only:
                trained(prepared, method, seed, count, options.runs)
    if options.choose:
        print(choices(options.runs))
        return
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(table(options.runs), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def setting(runs: Path) -> Prepared:
    """The task of ResNet-20 with ResNet-56 as its teacher."""
    student, big = (load_task(str(ROOT / "examples" / f"cifar10_resnet{depth}.py")) for depth in (20, 56))
    prepared = prepare(student, Target(), Goal(max_drop=None), 0, Store(runs / "store"), progress())
    teacher = set_mode(capture(big.model, big.example), False)
    return replace(prepared, context=replace(prepared.context, teacher=teacher))


def counted(prepared: Prepared, minutes: float) -> int:
    """Steps of a training with answers alone in a time, counted once."""
    store = prepared.context.store
    assert store is not None
    recipe = Distil(1, **FIXED).recipe()
    steps: int = store.once(
        f"steps-{60 * minutes:.0f}", lambda: steps_for(60 * minutes, prepared.graph, prepared.context, recipe)
    )
    return steps


def trained(prepared: Prepared, named: str, seed: int, steps: int, runs: Path) -> None:
    """One training and its scores into a file, unless it is there."""
    file = runs / f"{steps}-seed{seed}-{named.replace(':', '-')}.json"
    if file.exists():
        return
    print(f"{named}, seed {seed}, {steps} steps", file=sys.stderr, flush=True)
    context: Context = prepared.context
    model = fresh(context.task.model, seed)
    graph = set_mode(capture(model, context.task.example), False)
    started = time.monotonic()
    made = Distil(steps, seed=seed, **FIXED, **settings(named)).apply(graph, context)
    seconds = time.monotonic() - started
    facts = {"named": named, "seed": seed, "steps": steps, "seconds": seconds, "machine": machine().json()}
    for split, batches in (("choosing", context.validate), ("proving", prepared.test)):
        facts[split] = evaluate(made, batches, accuracy, split=split).value
    write_json(file, facts)


def settings(named: str) -> dict[str, Any]:
    """Of `fitnets:10` or `fitnets`."""
    name, _, weight = named.partition(":")
    found = dict(METHODS[name][1])
    for key in ("features", "relations"):
        if key in found and weight:
            found[key] = {**found[key], "weight": float(weight)}
    return found


def facts_in(runs: Path) -> list[dict[str, Any]]:
    """Every training that is done."""
    return [read_json(path) for path in sorted(runs.glob("*-seed*-*.json"))]


def choices(runs: Path) -> str:
    """What was tried to choose the weights."""
    rows = [f for f in facts_in(runs) if f["seed"] == CHOOSING]
    lines = [f"| {f['steps']} | {f['named']} | {100 * f['choosing']:.2f} % | {f['seconds']:.0f} |" for f in rows]
    return "\n".join(["| steps | method | accuracy, choosing half | s |", "|---|---|---|---|", *lines])


def table(runs: Path) -> str:
    """The page of results: a table for each step count."""
    proved = [f for f in facts_in(runs) if f["seed"] != CHOOSING]
    parts = ["# Distillation of ResNet-20 from ResNet-56, CIFAR-10", "", "\n".join((__doc__ or "").splitlines()[2:])]
    for steps in sorted({f["steps"] for f in proved}, reverse=True):
        mine = [f for f in proved if f["steps"] == steps]
        parts += [f"\n## {steps} steps of 128 images, {mine[0]['machine'].get('processor', 'this machine')}\n", HEAD]
        base = {f["seed"]: f["proving"] for f in mine if f["named"] == "answers"}
        for name in dict.fromkeys([*METHODS, *(f["named"] for f in mine)]):
            rows = [f for f in mine if f["named"] == name]
            parts += [row(name, rows, base)] if rows else []
    if any(f["seed"] == CHOOSING for f in facts_in(runs)):
        parts += ["\n## Weights that were tried\n", choices(runs)]
    return "\n".join(parts) + "\n"


HEAD = (
    "| method | what is learnt | accuracy, mean of seeds | lowest and highest | against answers, points | 95 % "
    "| seeds | s |\n"
    "|---|---|---|---|---|---|---|---|"
)


def row(name: str, rows: Sequence[Mapping[str, Any]], base: Mapping[int, float]) -> str:
    """A method's accuracies and its paired differences."""
    scores = [100 * f["proving"] for f in rows]
    gains = [100 * (f["proving"] - base[f["seed"]]) for f in rows if f["seed"] in base]
    mean, interval = ("", "") if name == "answers" or not gains else (f"{statistics.mean(gains):+.2f}", spread(gains))
    seconds = statistics.median(f["seconds"] for f in rows)
    what = METHODS[name.partition(":")[0]][0]
    shown = f"{statistics.mean(scores):.2f} % | {min(scores):.2f} to {max(scores):.2f}"
    return f"| {name} | {what} | {shown} | {mean} | {interval} | {len(rows)} | {seconds:.0f} |"


def spread(gains: Sequence[float]) -> str:
    """Student's 95 % interval of the mean of paired differences; Student 1908."""
    if len(gains) < 2:
        return "one seed"
    half = STUDENT_T[len(gains)] * statistics.stdev(gains) / math.sqrt(len(gains))
    middle = statistics.mean(gains)
    return f"{middle - half:+.2f} to {middle + half:+.2f}"


def progress() -> Any:
    """Prints every 20 s how far a training is."""
    last = [0.0]

    def show(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 20:
            last[0] = time.monotonic()
            print(f"  {what} {done}/{total}", file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    main()
