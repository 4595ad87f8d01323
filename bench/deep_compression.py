"""Deep Compression on LeNet-300-100 and LeNet-5: pruned, shared, entropy-coded, in bytes of the whole file.

    python bench/deep_compression.py [lenet300 lenet5] [--runs FOLDER] [--steps 1.0] [--table]

Trained from 10,000 images of MNIST by bench/compression_networks.py; pruned by magnitude along the cubic schedule while
the dense network teaches (`Sparsify`), the weights left clustered and their centroids trained (`Share`), and written
as model.trim (Huffman or rANS, whichever is smaller). The ratio is of whole files: the dense network's fp32 model.onnx,
without metadata, over model.trim with everything in it that its decoder needs: graph, codebooks, positions, biases.

Settings are chosen on the even test images, and proved on the odd ones; outputs are those of ONNX Runtime on the file
that model.trim decodes to. No loss: the difference of errors against the better of the dense network and its control
(the dense network given the same training), paired, with its bootstrap 95 % interval and McNemar's exact test. Every
part of the work that is done is kept under --runs. The table goes to bench/results/deep_compression.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.compression_networks import RUNS, trained  # noqa: E402
from trimtab import Task  # noqa: E402
from trimtab.compress.plan import apply_plan, plan_of, technique_of  # noqa: E402
from trimtab.core.context import Context  # noqa: E402
from trimtab.core.plan import Plan  # noqa: E402
from trimtab.core.store import Store, read_json, write_json  # noqa: E402
from trimtab.graph.capture import capture  # noqa: E402
from trimtab.graph.model import Graph  # noqa: E402
from trimtab.graph.modes import set_mode  # noqa: E402
from trimtab.run.export import export_onnx  # noqa: E402
from trimtab.run.trim_file import constants_in, read_trim, write_trim  # noqa: E402
from trimtab.run.trim_tensor import encode_tensor  # noqa: E402

RESULT = ROOT / "bench" / "results" / "deep_compression.md"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """What is done to a network.

    Args:
        title: its name.
        prune: settings of `Sparsify`.
        share: settings of `Share`.
        printed: what the paper printed: times smaller, bytes of the whole network, error before and after in percent.
        error: the dense network's error on all test images may be this much at most, a fraction.
    """

    title: str
    prune: Mapping[str, Any]
    share: Mapping[str, Any]
    printed: tuple[int, int, float, float]
    error: float


def _training(steps: int, lr: float, **more: Any) -> dict[str, Any]:
    fixed = {"temperature": 4.0, "alpha": 0.3, "precision": "fp32", "channels_last": False}
    return {"steps": steps, "lr": lr, **fixed, **more}


CASES = {
    "lenet300": Case(
        "LeNet-300-100",
        {"ratio": 0.955, "schedule": {"kind": "cubic"}, "train": _training(200 * 50, 0.03, weight_decay=1e-4)},
        {"bits": 3, "biases": 4, "train": _training(200 * 5, 5e-4, optimiser="adamw", weight_decay=0.0)},
        (40, 27_000, 1.64, 1.58),
        0.040,
    ),
    "lenet5": Case(
        "LeNet-5 (Caffe)",
        {"ratio": 0.97, "schedule": {"kind": "cubic"}, "train": _training(200 * 30, 0.02, weight_decay=1e-4)},
        {"bits": 3, "biases": 4, "train": _training(200 * 4, 5e-4, optimiser="adamw", weight_decay=0.0)},
        (39, 44_000, 0.80, 0.74),
        0.016,
    ),
}


def main() -> None:
    """Do the networks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; both by default")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "deep_compression")
    parser.add_argument("--steps", type=float, default=1.0, help="share of all steps, to try something out")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, run nothing")
    options = parser.parse_args()
    for name in [] if options.table else options.names or CASES:
        folder = options.runs / name
        if not (folder / "facts.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "facts.json", compressed(name, folder, options.steps))
    paths = {name: options.runs / name / "facts.json" for name in CASES}
    text = report({name: read_json(path) for name, path in paths.items() if path.exists()})
    if options.steps == 1.0:
        RESULT.write_text(text, encoding="utf-8")
    print(text)


def compressed(name: str, folder: Path, share: float) -> dict[str, Any]:
    """Everything that is told of a network, its files left in the folder."""
    case, progress = CASES[name], _progress(name)
    # the dense network is the same whatever is tried out with fewer steps
    task = trained(name, RUNS, progress)
    graph = set_mode(capture(task.model, task.example), False)
    context = Context(task, teacher=graph, store=Store(folder / "store"), progress=progress)
    prune, control = (_shortened(settings, share) for settings in (case.prune, {"train": case.prune["train"]}))
    start = time.monotonic()
    chain = {"Sparsify": prune, "Share": _shortened(case.share, share)}
    plan = plan_of([technique_of({"technique": k, **settings}) for k, settings in chain.items()], graph, context)
    made = apply_plan(graph, plan, context)
    seconds = time.monotonic() - start
    other = apply_plan(graph, Plan(({"technique": "Distil", **control["train"]},)), context)
    sizes = _files({"dense": graph, "control": other, "compressed": made}, folder)
    decoded = read_trim(folder / "compressed.trim")
    files = {"dense": folder / "dense.onnx", "control": folder / "control.onnx", "compressed": decoded}
    wrong = {who: _wrong(file, task) for who, file in files.items()}
    write_json(folder / "plan.json", plan.json())
    return {
        "plan": plan.json(),
        "minutes": seconds / 60,
        "bytes": sizes,
        "decode_seconds": _decode_seconds(folder / "compressed.trim"),
        "decoded_bytes": len(decoded),
        "layers": _layers(decoded, made),
        "errors": {who: {k: float(np.mean(v)) for k, v in halves.items()} for who, halves in wrong.items()},
        "against": _against(wrong),
    }


def _shortened(settings: Mapping[str, Any], share: float) -> dict[str, Any]:
    train = dict(settings["train"])
    return {**settings, "train": {**train, "steps": max(1, int(train["steps"] * share))}}


def _files(graphs: Mapping[str, Graph], folder: Path) -> dict[str, int]:
    """Bytes of the files, which are written."""
    for name, graph in graphs.items():
        export_onnx(graph, folder / f"{name}.onnx")
    write_trim(folder / "compressed.onnx", folder / "compressed.trim")
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.suffix in (".onnx", ".trim")}


def _wrong(file: Path | bytes, task: Task) -> dict[str, Array]:
    """Whether each image of the even and odd halves of the test images is answered wrongly."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = str(file) if isinstance(file, Path) else file
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = {}
    for half, batches in (("even", task.validate), ("odd", task.test)):
        answers = [(session.run(None, {name: x.numpy()})[0].argmax(1) != y.numpy()) for x, y in batches or ()]
        found[half] = np.concatenate(answers)
    return found


def _against(wrong: Mapping[str, Mapping[str, Array]]) -> dict[str, Any]:
    """The paired comparison with the better of the dense network and its control, on the odd images and on all."""
    better = min(("control", "dense"), key=lambda who: float(np.mean(wrong[who]["odd"])))
    found: dict[str, Any] = {"better": better}
    for who in ("dense", better):
        for part in ("odd", "all"):
            one, other = (
                each["odd"] if part == "odd" else np.concatenate([each["even"], each["odd"]])
                for each in (wrong["compressed"], wrong[who])
            )
            change = one.astype(np.float64) - other
            drawn = np.random.default_rng(0).integers(0, len(change), (4000, len(change)))
            worse, better_by = int((change > 0).sum()), int((change < 0).sum())
            found[f"{who} {part}"] = {
                "change": float(change.mean()),
                "interval": [float(q) for q in np.quantile(change[drawn].mean(1), [0.025, 0.975])],
                "worse": worse,
                "better": better_by,
                "p_worse": float(binomtest(worse, worse + better_by, alternative="greater").pvalue)
                if worse + better_by
                else 1.0,
            }
    return found


def _layers(decoded: bytes, made: Graph) -> list[dict[str, Any]]:
    """What each constant takes in the file, coded alone."""
    rows = []
    names = [t.name for t in onnx.load_from_string(decoded).graph.initializer if len(t.raw_data) >= 32]
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(decoded).graph.initializer}
    for name, (at, length, width, columns) in zip(names, constants_in(decoded), strict=True):
        value = values[name]
        row = {"name": name, "weights": int(value.size), "kept": float(np.count_nonzero(value) / value.size)}
        row |= {"values": len(np.unique(value)), "bytes": len(encode_tensor(decoded[at : at + length], width, columns))}
        rows.append(row)
    return rows


def _decode_seconds(file: Path) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        read_trim(file)
        times.append(time.perf_counter() - start)
    return median(times)


def _progress(name: str) -> Callable[[str, int, int], None]:
    last = [0.0]

    def show(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 20:
            last[0] = time.monotonic()
            print(f"{name}: {what} {done}/{total}", file=sys.stderr, flush=True)

    return show


def report(facts: Mapping[str, Any]) -> str:
    """The page."""
    lines = ["# Deep Compression on LeNet-300-100 and LeNet-5", "", *_about(), ""]
    lines += [
        "| network | dense, bytes | model.onnx | model.trim | times smaller | the paper's | dense error | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, fact in facts.items():
        case, size = CASES[name], fact["bytes"]
        dense, small = size["dense.onnx"], size["compressed.trim"]
        errors = {who: (_all(halves), halves["odd"]) for who, halves in fact["errors"].items()}
        cells = [case.title, f"{dense:,}", f"{size['compressed.onnx']:,}", f"{small:,}", f"**{dense / small:.1f}x**"]
        cells += [f"{case.printed[0]}x ({case.printed[1] // 1000} kB)"]
        cells += [f"{100 * errors[who][0]:.2f} %" for who in ("dense", "compressed")]
        lines.append(f"| {' | '.join(cells)} |")
    for name, fact in facts.items():
        lines += ["", f"## {CASES[name].title}", "", *_told(name, fact)]
    return "\n".join(lines) + "\n"


def _about() -> list[str]:
    text = " ".join((__doc__ or "").split("\n\n", 2)[2].split())
    return ["`python bench/deep_compression.py`", "", text, "", "Errors in the table are of all 10,000 test images."]


def _all(halves: Mapping[str, float]) -> float:
    return (halves["even"] + halves["odd"]) / 2


def _told(name: str, fact: Mapping[str, Any]) -> list[str]:
    case, against = CASES[name], fact["against"]
    errors, better = fact["errors"], against["better"]
    odd = ", ".join(f"{who} {100 * errors[who]['odd']:.2f} %" for who in ("dense", "control", "compressed"))
    lines = [f"- Error on the odd images: {odd}."]
    for who in dict.fromkeys(("dense", better)):
        for part in ("odd", "all"):
            found = against[f"{who} {part}"]
            low, high = (100 * v for v in found["interval"])
            lines.append(
                f"- Against the {'control' if who == 'control' else 'dense network'}, {part} images: "
                f"{100 * found['change']:+.2f} points of error ({low:+.2f} to {high:+.2f}); {found['worse']} images "
                f"are wrong now that were right, {found['better']} the other way; McNemar's exact test that it is "
                f"worse: p = {found['p_worse']:.3f}."
            )
    met = errors["dense"]
    lines += [
        f"- Dense error on all test images {100 * _all(met):.2f} %, to be at most {100 * case.error:.1f} %.",
        f"- In memory {fact['decoded_bytes']:,} bytes; decoding takes {1000 * fact['decode_seconds']:.0f} ms; made in "
        f"{fact['minutes']:.1f} minutes. The paper: {case.printed[2]} % error before, {case.printed[3]} % after, from "
        "60,000 training images.",
        "",
        "| constant | weights | kept | values | bytes coded | bits per weight |",
        "|---|---|---|---|---|---|",
    ]
    rest = fact["bytes"]["compressed.trim"]
    for row in fact["layers"]:
        rest -= row["bytes"]
        cells = [row["name"], f"{row['weights']:,}", f"{100 * row['kept']:.1f} %", row["values"], f"{row['bytes']:,}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {8 * row['bytes'] / row['weights']:.2f} |")
    return [*lines, f"| everything else |  |  |  | {rest:,} |  |"]


if __name__ == "__main__":
    main()
