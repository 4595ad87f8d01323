"""ResNet-56 on CIFAR-10 with 90 % of its weights at zero, within 1.5 points, in 30 minutes of training.

    python bench/sparse_resnet56.py [--minutes 30] [--ratio 0.9] [--seconds 10] [--runs FOLDER] [--steps N]

One training: zeros come by the cube (Zhu & Gupta 2017), the least magnitudes of all layers first, while the network
learns from the original's answers and features. Then the same in 8 bits, after training. A run that was stopped goes
on. The table goes to bench/results/sparse_resnet56.md.

The drop is of accuracy, paired, on the 5,000 odd test images, with a bootstrap 95 % interval; nothing was chosen on
them. Bytes are of the whole file, which runtimes open as it is; ratios are against the original in fp32 in ONNX
Runtime, batch 1, one thread, interleaved. Load: until a session is ready, the shortest of five.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.quantise import progress  # noqa: E402
from bench.quantise_files import Made, exported, facts_of, made, opened, store_of  # noqa: E402
from trimtab.compress.plan import step_of  # noqa: E402
from trimtab.compress.quantise.technique import Quantise  # noqa: E402
from trimtab.compress.recover import Distil  # noqa: E402
from trimtab.compress.settings import made as typed  # noqa: E402
from trimtab.compress.sparsify.technique import Sparsify  # noqa: E402
from trimtab.core.goal import Goal  # noqa: E402
from trimtab.core.store import Store, read_json, write_json  # noqa: E402
from trimtab.core.target import Target  # noqa: E402
from trimtab.pipeline.load import load_task  # noqa: E402
from trimtab.pipeline.prepare import Prepared, prepare  # noqa: E402
from trimtab.run.export import export_onnx  # noqa: E402
from trimtab.train.loop import steps_for  # noqa: E402

RESULT = ROOT / "bench" / "results" / "sparse_resnet56.md"
BOTH = ("onnxruntime", "openvino")
LEARN: dict[str, Any] = {"lr": 0.05, "weight_decay": 1e-4, "features": 50.0}
MOST = 1.5
"""Points that may be lost."""


def technique(prepared: Prepared, options: argparse.Namespace) -> Sparsify:
    """The settings, with as many steps as fit in the time; decided once."""
    store = store_of(prepared)

    def steps() -> int:
        recipe = typed(Distil, {"steps": 1, **LEARN}).recipe()
        return options.steps or steps_for(60 * options.minutes, prepared.graph, prepared.context, recipe)

    count = store.once(f"steps-{options.minutes:g}-{options.steps}", steps)
    schedule = {"kind": "cubic", "first": 0, "last": max(round(0.6 * count), 1)}
    asked = Sparsify(ratio=options.ratio, schedule=schedule, train={"steps": count, **LEARN})
    settled = store.once(
        f"settled-{options.ratio:g}-{count}", lambda: step_of(asked.resolve(prepared.graph, prepared.context))
    )
    return typed(Sparsify, {k: v for k, v in settled.items() if k != "technique"})


def files(prepared: Prepared, folder: Path, options: argparse.Namespace) -> list[Made]:
    """The original, the sparse network and the same in 8 bits."""
    how = technique(prepared, options)

    def sparse() -> Sequence[str]:
        graph = how.apply(prepared.graph, prepared.context)
        export_onnx(graph, folder / "sparse.onnx")
        return graph.notes

    def eight() -> Sequence[str]:
        graph = Quantise().apply(how.apply(prepared.graph, prepared.context), prepared.context)
        export_onnx(graph, folder / "sparse-int8.onnx")
        return graph.notes

    settings = step_of(how)
    return [
        exported(prepared, None, folder / "original.onnx", BOTH, "original"),
        made(prepared, "sparse", folder / "sparse.onnx", BOTH, settings, sparse),
        made(prepared, "sparse, int8", folder / "sparse-int8.onnx", BOTH, {"int8": settings}, eight),
    ]


def load_seconds(path: Path, runtime: str) -> float:
    """Until a session is ready, the shortest of five."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        with closing(opened(path, runtime, 1)):
            found.append(time.perf_counter() - start)
    return min(found)


def table(facts: dict[str, Any], options: argparse.Namespace) -> str:
    """The facts as Markdown."""
    here, rows = facts["machine"], facts["runs"]
    whole = rows[0]["bytes"]
    text = ["# Sparse ResNet-56", "", *(" ".join(p.split()) + "\n" for p in (__doc__ or "").split("\n\n")[2:])]
    text += [
        f"`--minutes {options.minutes:g}`; {time.strftime('%Y-%m-%d')}, {here['processor']}, {here['cores']} cores.",
        f"To reach: a drop of at most {MOST} points at {100 * options.ratio:g} % zeros.",
        "",
        "| network | runtime | making, s | accuracy, % | drop, points | bytes | smaller | faster | load, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        score, drop, ratio = row["proving"]["accuracy"], row["proving"]["drop"], row["latency_ratio"]
        low, high = (100 * v for v in drop["interval"])
        text.append(
            f"| {row['name']} | {row['runtime']} | {row['seconds']:.0f} | {100 * score:.2f} |"
            f" {100 * drop['value']:.2f} [{low:.2f}, {high:.2f}] | {row['bytes']:,} | {whole / row['bytes']:.2f} |"
            f" {ratio['value']:.2f} [{ratio['interval'][0]:.2f}, {ratio['interval'][1]:.2f}] | {row['load']:.3f} |"
        )
    notes = dict.fromkeys(n for row in rows for n in row["notes"] if n.startswith("Sparsify"))
    return "\n".join([*text, "", *notes, "A sparse network is smaller, not faster: these runtimes multiply zeros too."])


def main() -> None:
    """Make, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of training")
    parser.add_argument("--steps", type=int, help="of training, in place of minutes, to try something out")
    parser.add_argument("--ratio", type=float, default=0.9, help="share of zeros")
    parser.add_argument("--seconds", type=float, default=10.0, help="to time for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "sparse_resnet56")
    options = parser.parse_args()
    name = f"{options.ratio:g}-{options.steps or f'{options.minutes:g}m'}-seed{options.seed}"
    folder = options.runs / name
    task = load_task(str(ROOT / "examples" / "cifar10_resnet56.py"))
    goal = Goal(max_drop=None)
    prepared = prepare(task, Target(), goal, options.seed, Store(folder / "store"), progress("sparse resnet56"))
    kept = folder / "facts.json"
    if not kept.exists():
        networks = files(prepared, folder, options)
        facts = facts_of(prepared, networks, options.seconds)
        paths = {each.name: each.path for each in networks}
        for row in facts["runs"]:
            row["load"] = load_seconds(paths[row["name"]], row["runtime"])
        write_json(kept, facts)
    text = table(read_json(kept), options)
    options.result.parent.mkdir(exist_ok=True)
    options.result.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
