"""Quantisation of ResNet-56 and ResNet-20 on CIFAR-10 to every number of bits, beside what other tools make of them.

    python bench/quantise.py [--only ROW...] [--minutes 30] [--seconds 10] [--runs FOLDER]
                              [--time] [--table] [--out FILE]

Every row has a folder of its own under `--runs`; a row that is done is not done again, a training that was killed
goes on, and `--table` writes the table of what is there. The table goes to bench/results/quantise.md.

Calibration is on 512 training images without labels, the same for every tool. The drop is of accuracy, paired: the
original's answers minus the network's on the same images, with a bootstrap 95 % interval. Settings were chosen on the
5,000 even test images; "proving" are the 5,000 odd ones. Times are interleaved in one process, batch 1, one thread;
a ratio is against the original in fp32 in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.quantise_files import Made, calibration_images, exported, facts_of, made, store_of  # noqa: E402
from bench.quantise_peers import nncf_onnx, nncf_openvino, onnxruntime_static  # noqa: E402
from bench.quantise_table import report  # noqa: E402
from trimtab.compress.quantise.technique import Quantise  # noqa: E402
from trimtab.compress.recover import Distil  # noqa: E402
from trimtab.core.goal import Goal  # noqa: E402
from trimtab.core.store import Store, read_json, write_json  # noqa: E402
from trimtab.core.target import Target  # noqa: E402
from trimtab.pipeline.load import load_task  # noqa: E402
from trimtab.pipeline.prepare import Prepared, prepare  # noqa: E402
from trimtab.train.loop import steps_for  # noqa: E402

RESULT = ROOT / "bench" / "results" / "quantise.md"
Maker = Callable[[Prepared, Path, argparse.Namespace], list[Made]]
BOTH = ("onnxruntime", "openvino")
CALIBRATIONS = ("minmax", "average", "percentile", "entropy", "mse")
FOUR = {"bits": 4, "per": "channel"}
LEARN: dict[str, Any] = {"lr": 0.02, "weight_decay": 1e-4, "features": 50.0, "precision": "fp32"}
"""What the 4-bit and the binary networks are trained with; steps are what fits in the time."""


def int8(prepared: Prepared, folder: Path, options: argparse.Namespace) -> list[Made]:
    """8 bits after training, by three tools."""
    return [
        exported(prepared, Quantise(), folder / "trimtab.onnx", BOTH),
        peer(prepared, "onnxruntime.quantization", onnxruntime_static, folder / "static.onnx", BOTH[:1]),
        peer(prepared, "NNCF, ONNX", nncf_onnx, folder / "nncf.onnx", BOTH),
        peer(prepared, "NNCF, OpenVINO", nncf_openvino, folder / "nncf.xml", BOTH[1:]),
    ]


def calibration(prepared: Prepared, folder: Path, options: argparse.Namespace) -> list[Made]:
    """8 bits, by every way of choosing ranges."""
    return [
        exported(prepared, Quantise(calibration=how), folder / f"{how}.onnx", BOTH[:1], how)  # type: ignore[arg-type]
        for how in CALIBRATIONS
    ]


def w4a8(prepared: Prepared, folder: Path, options: argparse.Namespace) -> list[Made]:
    """4-bit weights and 8-bit activations after training, by every rounding."""
    return [
        exported(prepared, Quantise(weight=FOUR, rounding=how), folder / f"{how}.onnx", BOTH[:1], how)
        for how in ("nearest", "adaround", "brecq")
    ]


def trained(weight: Mapping[str, Any], activation: Mapping[str, Any] | None, **more: Any) -> Maker:
    """A row that trains for `--minutes`."""

    def make(prepared: Prepared, folder: Path, options: argparse.Namespace) -> list[Made]:
        seconds = 60 * options.minutes
        how = Quantise(weight=weight, activation=activation, train={"steps": 1, **LEARN}, **more)

        def fitting() -> int:
            form = how.prepare(prepared.graph, prepared.context)
            return steps_for(seconds, form, prepared.context, Distil(steps=1, **LEARN).recipe())

        steps = store_of(prepared).once(f"steps-{seconds:.0f}", fitting)
        how = replace(how, train={"steps": steps, **LEARN})
        return [exported(prepared, how, folder / "trained.onnx", BOTH[:1], f"trained {steps} steps")]

    return make


def mixed_bits(prepared: Prepared, folder: Path, options: argparse.Namespace) -> list[Made]:
    """2, 4 or 8 bits for each layer, against 4 for all, of the same size."""
    from trimtab.pipeline.mixed import mixed

    store = store_of(prepared)
    layers = store.once("bits", lambda: mixed(prepared.graph, prepared.context, (2, 4, 8), 4.0))
    # the costs that bits are chosen by are of ranges with the least squared error: both sides have them
    uniform = Quantise(weight=FOUR, calibration="mse", rounding="adaround")
    return [
        exported(prepared, uniform, folder / "uniform.onnx", BOTH[:1], "uniform 4"),
        exported(prepared, replace(uniform, layers=layers), folder / "mixed.onnx", BOTH[:1], "mixed 2/4/8"),
    ]


ROWS: dict[str, tuple[str, str, int, Maker]] = {
    "resnet56-int8": ("int8", "resnet56", 0, int8),
    "resnet20-int8": ("int8", "resnet20", 0, int8),
    "resnet56-calibration": ("calibration", "resnet56", 0, calibration),
    "resnet20-calibration": ("calibration", "resnet20", 0, calibration),
    "resnet56-w4a8": ("w4a8", "resnet56", 0, w4a8),
    "resnet20-w4a8": ("w4a8", "resnet20", 0, w4a8),
    "resnet20-w4a4": ("w4a4", "resnet20", 0, trained(FOUR, {"bits": 4})),
    "resnet56-w4a4": ("w4a4", "resnet56", 0, trained(FOUR, {"bits": 4})),
    "resnet20-binary": ("binary", "resnet20", 0, trained({"kind": "binary"}, {"bits": 8})),
    **{f"resnet20-mixed-seed{seed}": ("mixed", "resnet20", seed, mixed_bits) for seed in range(3)},
}
"""By name: the kind, the network, the seed and what is made."""


def main() -> None:
    """Do the rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, in the rows that train")
    parser.add_argument("--seconds", type=float, default=10.0, help="to time each row for")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "quantise")
    parser.add_argument("--time", action="store_true", help="time rows that are done once more")
    parser.add_argument("--out", type=Path, default=RESULT, help="of the table: one for each machine")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, run nothing")
    options = parser.parse_args()
    if not options.table:
        for row in options.only:
            run(row, options)
    done = {name: options.runs / name / "facts.json" for name in ROWS}
    text = report({name: read_json(path) for name, path in done.items() if path.exists()}, __doc__ or "")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


def run(row: str, options: argparse.Namespace) -> None:
    """One row into its folder, unless it is there."""
    folder = options.runs / row
    if (folder / "facts.json").exists() and not options.time:
        return
    kind, network, seed, make = ROWS[row]
    task = load_task(str(ROOT / "examples" / f"cifar10_{network}.py"))
    prepared = prepare(task, Target(), Goal(max_drop=None), seed, Store(folder / "store"), progress(row))
    original = exported(prepared, None, folder / "original.onnx", BOTH, "original")
    files = [original, *make(prepared, folder, options)]
    facts = {"kind": kind, "network": network, "seed": seed, **facts_of(prepared, files, options.seconds)}
    write_json(folder / "facts.json", facts)


def peer(prepared: Prepared, name: str, tool: Callable[..., None], into: Path, runtimes: tuple[str, ...]) -> Made:
    """What another tool makes of the original's file beside `into`, calibrated on the same images."""

    def make() -> tuple[str, ...]:
        tool(into.with_name("original.onnx"), into, calibration_images(prepared))
        return ()

    return made(prepared, name, into, runtimes, None, make)


def progress(row: str) -> Callable[[str, int, int], None]:
    """Prints every 5 s how far a row is."""
    last = [0.0]

    def show(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 5:
            last[0] = time.monotonic()
            print(f"{row}: {what} {done}/{total}", file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    main()
