"""A third of ResNet-8's cycles on Ethos-U55-128, at no less accuracy: a network that `fit` finds against MLPerf Tiny's.

    python bench/ethos_resnet8.py [--minutes M] [--hours H] [--start resnet20|resnet56|resnet8] [--runs FOLDER]
    python bench/ethos_resnet8.py --table             # of what is there, training nothing

1. ResNet-8's architecture is trained from scratch on the JPEG images of CIFAR-10, taught by ResNet-56, in cycles until
   one gains less than a tenth of a point on the images that choose, or until its minutes are over.
2. `fit` starts from a trained network, for ethos-u55-128, with at most 67,000 cycles of its clock, and may lose no more
   than what ResNet-8 is below that network.
3. What fit chose is trained further by the same teacher, with the same recipe and as many steps as ResNet-8 had, and
   quantised again; the better of the two on the images that choose counts.

Both are scored in their 8-bit form on the images that nothing was chosen on. Every training is kept: the bench goes on
where it was stopped. The result goes to bench/results/ethos_resnet8.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import torch  # noqa: E402 - found through the line above

import trimtab as tt  # noqa: E402
from bench.resnet8 import ResNet8  # noqa: E402
from trimtab.compress.plan import apply_plan  # noqa: E402
from trimtab.core.context import Context  # noqa: E402
from trimtab.core.store import Store, read_json, write_json  # noqa: E402
from trimtab.core.target import parse  # noqa: E402
from trimtab.graph.capture import capture  # noqa: E402
from trimtab.graph.model import Graph  # noqa: E402
from trimtab.graph.modes import set_mode  # noqa: E402
from trimtab.graph.module import module  # noqa: E402
from trimtab.pipeline.deploy import write_point  # noqa: E402
from trimtab.pipeline.points import without  # noqa: E402
from trimtab.pipeline.prepare import Prepared, prepare, scored  # noqa: E402
from trimtab.run.device import MODEL  # noqa: E402
from trimtab.run.ethos.configuration import read  # noqa: E402
from trimtab.run.ethos.device import EthosU  # noqa: E402
from trimtab.train.loop import fit_network, steps_for  # noqa: E402
from trimtab.train.recipe import Distillation, Recipe  # noqa: E402

TARGET = "ethos-u55-128"
CYCLES, CLOCK = 67_000, 500e6
"""A third of the 201,747 cycles of MLPerf Tiny's ResNet-8; the clock of Vela's Ethos_U55_High_End_Embedded."""
REFERENCE = 201_747
LEAST = 0.001
"""A cycle of training that gains less than this on the images that choose is the last: the plateau."""
TRAININGS = 4
STARTS = {"resnet20": "cifar10_resnet20", "resnet56": "cifar10_resnet56"}


@dataclass(frozen=True)
class Trained:
    """A network after cycles of so many steps, scores on the choosing images after each, and if it is done."""

    graph: Graph
    steps: int
    scores: tuple[float, ...]
    plateau: bool


def main() -> None:
    """Train, fit, train further, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0, help="of ResNet-8's training, all cycles together")
    parser.add_argument("--hours", type=float, default=0.5, help="of the fit")
    parser.add_argument("--start", choices=(*STARTS, "resnet8"), default="resnet20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ethos_resnet8")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "ethos_resnet8.md")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        run(given)
    found = read_json(given.runs / "result.json")
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(written(found), encoding="utf-8")
    print(given.out.read_text(encoding="utf-8"))


def run(given: argparse.Namespace) -> None:
    """All of it; leaves result.json."""
    first = example_task("resnet20" if given.start == "resnet8" else given.start)
    prepared = prepare(first, parse(TARGET), tt.Goal(hours=given.hours), given.seed, None)
    store = Store(given.runs / "store")
    context = replace(prepared.context, store=store, progress=told(), teacher=_captured(example_task("resnet56")))
    torch.manual_seed(given.seed)
    fresh = set_mode(capture(ResNet8(), first.example), False)
    eight = trained(fresh, context, prepared, 60 * given.minutes, scratch=True)
    rows = [row("ResNet-8, trained here", eight.graph, context, prepared, given.runs / "resnet8")]

    start = first if given.start != "resnet8" else replace(first, model=module(eight.graph), name="cifar10-resnet8")
    above = _score(prepared, _captured(start)) - eight.scores[-1]
    goal = tt.Goal("latency", max_drop=max(above, LEAST), at_most={"latency": CYCLES / CLOCK}, hours=given.hours)
    folder = given.runs / f"fit-{given.start}"
    if not (folder / "report.json").exists():
        tt.fit(start, TARGET, goal, out=folder, seed=given.seed, progress=told(), control=False)
    plain = plain_form(start, goal, given, folder)
    more = trained(plain, context, prepared, 0.0, like=eight)
    rows += [
        row("found by fit", None, context, prepared, folder),
        row("and taught by ResNet-56 as long", more.graph, context, prepared, given.runs / "further"),
    ]
    facts = {"start": given.start, "hours": given.hours, "max_drop": goal.max_drop, "when": time.strftime("%Y-%m-%d")}
    training = {"steps": eight.steps, "scores": list(eight.scores), "plateau": eight.plateau}
    write_json(given.runs / "result.json", {"rows": rows, "training": training, **facts})


def example_task(name: str) -> tt.Task:
    """The task of a ResNet in examples/."""
    return tt.load_task(str(ROOT / "examples" / f"{STARTS[name]}.py"))


def _captured(task: tt.Task) -> Graph:
    return set_mode(capture(task.model, task.example), False)


def _score(prepared: Prepared, graph: Graph, on: str = "validate") -> float:
    found = scored(prepared, graph, on)
    assert found is not None
    return found.value


def trained(
    graph: Graph,
    context: Context,
    prepared: Prepared,
    seconds: float,
    *,
    scratch: bool = False,
    like: Trained | None = None,
) -> Trained:
    """A network taught in cycles of equal steps, each in a data order of its own, until one gains next to nothing.

    Args:
        graph: in evaluation mode.
        context: with the teacher and the store.
        prepared: with the images that choose.
        seconds: of all cycles together.
        scratch: it has random weights: the first cycle takes a higher learning rate.
        like: a training whose steps and cycles are repeated instead.
    """
    plain = Recipe(1, lr=0.05, weight_decay=5e-4, distil=Distillation(temperature=4.0, alpha=0.1))
    assert context.store is not None
    share, name = seconds / TRAININGS, f"steps-{seconds:.0f}"
    steps = like.steps if like else int(context.store.once(name, lambda: steps_for(share, graph, context, plain)))
    scores: list[float] = []
    for k in range(len(like.scores) if like else TRAININGS):
        lr = 0.1 if scratch and k == 0 else 0.05
        graph = fit_network(graph, context, replace(plain, steps=steps, lr=lr, seed=k))
        scores.append(_score(prepared, graph))
        print(
            f"cycle {k + 1} of {steps} steps: {scores[-1]:.4f} on the images that choose", file=sys.stderr, flush=True
        )
        if like is None and len(scores) > 1 and scores[-1] - scores[-2] < LEAST:
            return Trained(graph, steps, tuple(scores), True)
    return Trained(graph, steps, tuple(scores), False)


def plain_form(start: tt.Task, goal: tt.Goal, given: argparse.Namespace, folder: Path) -> Graph:
    """What fit chose, before it was quantised: its cuts with its trained weights, from its own store."""
    prepared = prepare(start, parse(TARGET), goal, given.seed, None)
    plan = without(tt.Plan.of_json(read_json(folder / "plan.json")), "Quantise")
    return apply_plan(prepared.graph, plan, replace(prepared.context, store=Store(folder / "store")))


def row(title: str, graph: Graph | None, context: Context, prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Cycles and accuracy of a network in 8 bits: of a graph, quantised and written first, or of a folder's."""
    device = EthosU(read(TARGET))
    if graph is not None:
        write_point(tt.Quantise().apply(graph, context), tt.Plan(), folder)
    from trimtab.graph.save import load

    device.check(folder / MODEL, "vela")
    own = device.compiled(folder / MODEL)
    integers = load(folder)
    return {
        "title": title,
        "cycles": own.cycles,
        "sram": own.sram,
        "floats": None if graph is None else _score(prepared, graph, "test"),
        "choosing": _score(prepared, integers),
        "proving": _score(prepared, integers, "test"),
    }


def told() -> Any:
    """Progress on stderr, at most every ten seconds."""
    last = [0.0]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 10:
            last[0] = time.monotonic()
            print(f"{what} {done}/{total}", file=sys.stderr, flush=True)

    return progress


def written(found: dict[str, Any]) -> str:
    """The table as Markdown, and whether the claim holds."""
    rows: Sequence[dict[str, Any]] = found["rows"]
    base, best = rows[0], max(rows[1:], key=lambda r: (r["cycles"] <= CYCLES, r["choosing"]))
    holds = best["cycles"] <= CYCLES and best["proving"] >= max(base["proving"], base["floats"] or 0.0)
    training = found["training"]
    scores = ", ".join(f"{100 * s:.2f}" for s in training["scores"])
    lines = []
    for r in rows:
        floats = "-" if r["floats"] is None else f"{100 * r['floats']:.2f}"
        fewer = f"{REFERENCE / r['cycles']:.2f} | {r['sram'] / 1024:.0f} KiB"
        scored_at = f"{floats} | {100 * r['choosing']:.2f} | {100 * r['proving']:.2f}"
        lines.append(f"| {r['title']} | {r['cycles']:,} | {fewer} | {scored_at} |")
    return "\n".join(
        [
            "# A third of ResNet-8's cycles on Ethos-U55-128",
            "",
            f"`python bench/ethos_resnet8.py --start {found['start']}`, {found['when']}. Cycles are modelled by Arm's",
            f"Vela (MLPerf Tiny's own file: {REFERENCE:,}). Accuracy in per cent is measured, on JPEG images of",
            "CIFAR-10: 5,000 to choose on, 5,000 that nothing was chosen on.",
            "",
            "| network | cycles | times fewer than the file | SRAM | fp32, proving | int8, choosing | int8, proving |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"ResNet-8 was trained from scratch, taught by ResNet-56, in cycles of {training['steps']:,} steps of 128",
            f"images: {scores} on the choosing images after each;",
            f"its plateau {'was' if training['plateau'] else 'was not'} reached.",
            f"Fit had {found['hours']:g} h, at most {CYCLES:,} cycles, and {100 * found['max_drop']:.2f} points to",
            "lose against the network that it started from.",
            "",
            f"At most {CYCLES:,} cycles at no less accuracy than ResNet-8, in 8 bits or in floating point:",
            f"{'holds' if holds else 'does not hold'} for '{best['title']}' ({best['cycles']:,} cycles, "
            f"{100 * (best['proving'] - base['proving']):+.2f} points).",
            "",
        ]
    )


if __name__ == "__main__":
    main()
