"""Cycles on Arm's Ethos-U: the MLPerf Tiny models as Vela is called here, and ResNet-8 through trimtab's own path.

    python bench/vela_table.py [--data DIR]

The first table compiles the .tflite files of MLPerf Tiny. The second rebuilds ResNet-8 in PyTorch, quantises it,
lowers it with ExecuTorch and compiles it for the same configurations; the third compares the two layer by layer.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402 - found through the line above

from bench.resnet8 import ResNet8  # noqa: E402
from trimtab.compress import Quantise  # noqa: E402
from trimtab.core.context import Context  # noqa: E402
from trimtab.core.task import Task  # noqa: E402
from trimtab.graph.capture import capture  # noqa: E402
from trimtab.graph.save import save  # noqa: E402
from trimtab.run.device import MODEL  # noqa: E402
from trimtab.run.ethos.configuration import read  # noqa: E402
from trimtab.run.ethos.device import EthosU  # noqa: E402
from trimtab.run.ethos.vela import Compiled, Operator, compiled  # noqa: E402
from trimtab.run.export import export_onnx  # noqa: E402
from trimtab.run.fusable import ETHOS_U  # noqa: E402

RESULT = ROOT / "bench" / "results" / "vela.md"
DATA = Path(os.environ.get("TRIMTAB_DATA", ROOT.parent / "shared" / "data"))
SIZES = ("ethos-u55-32", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u85-256")
EACH = "ethos-u55-128"
"""The one that is compared layer by layer."""
RESNET8 = "pretrainedResnet_quant"
MODELS = {
    RESNET8: "image classification, ResNet-8",
    "kws_ref_model": "keyword spotting, DS-CNN",
    "vww_96_int8": "visual wake words, MobileNetV1 0.25",
    "ad01_int8": "anomaly detection, autoencoder",
}
WITHIN = 0.10


def of_ours(folder: Path) -> dict[str, Compiled]:
    """ResNet-8 rebuilt, quantised on random images, through trimtab's own path."""
    torch.manual_seed(0)
    model, images = ResNet8().eval(), torch.randn(16, 3, 32, 32)
    context = Context(Task(model, images[:2]), support=ETHOS_U, calibrate=((images,),))
    graph = Quantise().apply(capture(model, images[:2]), context)
    save(graph, folder)
    export_onnx(graph, folder / MODEL)
    EthosU(read(EACH)).check(folder / MODEL, "vela")
    return {size: EthosU(read(size)).compiled(folder / MODEL) for size in SIZES}


def paired(theirs: Sequence[Operator], ours: Sequence[Operator]) -> list[tuple[Operator | None, Operator | None]]:
    """Operators with the same work beside each other, by kind and multiply-adds, each used once."""
    left = list(ours)
    rows: list[tuple[Operator | None, Operator | None]] = []
    for operator in theirs:
        same = (o for o in left if o.macs == operator.macs and (o.macs or o.kind == operator.kind))
        twin = next(same, None)
        if twin is not None:
            left.remove(twin)
        rows.append((operator, twin))
    return [*rows, *((None, o) for o in left)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    folder = parser.parse_args().data / "mlperf_tiny"
    if not folder.exists():
        raise SystemExit(f"{folder} is not there: give --data, or set TRIMTAB_DATA, to a folder that holds mlperf_tiny")
    found = {
        name: {size: compiled((folder / f"{name}.tflite").read_bytes(), "tflite", read(size)) for size in SIZES}
        for name in MODELS
    }
    with tempfile.TemporaryDirectory() as temporary:
        ours = of_ours(Path(temporary))
    models = [
        [title, *(f"{found[name][size].cycles:,} ({1e3 * found[name][size].seconds:.2f} ms)" for size in SIZES)]
        for name, title in MODELS.items()
    ]
    theirs = found[RESNET8]
    paths = [
        ["the .tflite file", *(f"{theirs[size].cycles:,}" for size in SIZES)],
        ["its architecture through trimtab", *(f"{ours[size].cycles:,}" for size in SIZES)],
        ["difference", *(f"{ours[size].cycles / theirs[size].cycles - 1:+.1%}" for size in SIZES)],
    ]
    softmax = sum(o.cycles for o in theirs[EACH].operators if "_softmax_" in o.name or o.name.startswith("Identity"))
    RESULT.write_text(
        TEXT.format(
            versions=", ".join(f"{p} {version(p)}" for p in ("ethos-u-vela", "executorch", "tosa-tools", "torch")),
            models=table(["model", *SIZES], models),
            paths=table(["ResNet-8", *SIZES], paths),
            layers=table(["layer", "kind", "multiply-adds", "the file", "ours"], each(theirs[EACH], ours[EACH])),
            size=EACH,
            softmax=f"{softmax:,}",
        )
    )
    print(RESULT.read_text())
    wrong = abs(ours[EACH].cycles / theirs[EACH].cycles - 1)
    raise SystemExit(0 if wrong <= WITHIN else f"{EACH}: {wrong:.1%} apart, more than {WITHIN:.0%}")


def each(theirs: Compiled, ours: Compiled) -> list[list[str]]:
    """A row for each operator that takes cycles; softmax, which only the file has, in one."""
    mine = [o for o in ours.operators if o.cycles]
    whole = [o for o in theirs.operators if o.cycles and not ("_softmax_" in o.name or o.name.startswith("Identity"))]
    rows = []
    for file, own in paired(whole, mine):
        shown = own or file
        assert shown is not None
        values = [f"{o.cycles:,}" if o else "" for o in (file, own)]
        rows.append([own.name if own else "", shown.kind, f"{shown.macs:,}", *values])
    return rows


TEXT = """# Cycles on Arm's Ethos-U

By `python bench/vela_table.py`; {versions}.
Modelled by Arm's compiler Vela, with its default system configuration and memory mode of each family.

## The reference models of MLPerf Tiny, as compiled here

{models}

## ResNet-8 rebuilt in PyTorch, through trimtab

{paths}

Quantised by `Quantise`, lowered by ExecuTorch to TOSA, compiled by Vela; all operators run on the Ethos-U, and the
program's numbers agree with ONNX Runtime's by Arm's reference model. On {size}, operator by operator, in cycles:

{layers}

The file ends in a softmax ({softmax} cycles), which classifies nothing and is left out here. ExecuTorch gives the image
channels first, and the processor turns it round: the two transposes. A layer whose weights are streamed from flash
(layers of the last block) takes longer with our weights, which are random and compress less than trained ones.
"""

if __name__ == "__main__":
    main()
