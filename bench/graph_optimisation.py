"""What graph optimisation before the runtime gains: nodes, bytes and time of a file as captured and as exported.

    python bench/graph_optimisation.py [--only NAME...] [--seconds 3] [--seed 0]

Three files of each network, computing the same:

- **as captured**: the captured graph exported with the exporter's optimiser off;
- **exported**: what trimtab writes: batch norm folded and constants computed on the graph, the exporter's own
  optimiser (onnxscript), then the passes of `trimtab.run.pack`;
- **rewritten**: that once more through onnxscript's optimiser and rewriter, and, where it is installed, onnxslim.

Kernels are counted in what each runtime makes of a file; times are interleaved in one process, one thread, batch 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.networks import network  # noqa: E402
from trimtab.graph.capture import capture  # noqa: E402
from trimtab.graph.model import Graph  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.profile.fusion import fusion  # noqa: E402
from trimtab.run import Session, runtimes  # noqa: E402
from trimtab.run.export import difference, export_onnx, quiet  # noqa: E402
from trimtab.run.measure import measure, ratio  # noqa: E402

NETWORKS = ("resnet_cifar", "ds_cnn", "se_resnet", "shufflenet", "lstm_classifier", "mlp_mixer", "mobilenet_v2", "vit",
            "llama")  # fmt: skip
RESULT = ROOT / "bench" / "results" / "graph_optimisation.md"
TRIES = 3
FORMS = ("as captured", "exported", "onnxscript", "onnxslim")
HEAD = ("network", "nodes", "", "", "", "kB", "", "kernels in ONNX Runtime", "", "in OpenVINO", "",
        "exported is faster by (ONNX Runtime)", "(OpenVINO)")  # fmt: skip


@dataclass
class Row:
    """The facts of one network, by form."""

    name: str
    nodes: dict[str, int] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    kernels: dict[tuple[str, str], int] = field(default_factory=dict)
    gain: dict[str, str] = field(default_factory=dict)


def plain(graph: Graph, path: Path) -> None:
    """The graph exported with nothing optimised."""
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in graph.inputs)
    example = graph.example()
    with quiet(), torch.no_grad():
        program = torch.export.export(graph.net.eval(), example, dynamic_shapes=shapes, strict=False)
        names = [spec.name for spec in graph.inputs]
        made: Any = torch.onnx.export(program, example, dynamo=True, optimize=False, input_names=names, verbose=False)
    model = onnx.inliner.inline_local_functions(made.model_proto)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    path.write_bytes(model.SerializeToString())


def rewritten(path: Path) -> dict[str, Any]:
    """The model after onnxscript's optimiser and rewriter, and after onnxslim where it is installed."""
    import onnx_ir
    from onnxscript import optimizer, rewriter

    with quiet():
        own = onnx_ir.serde.deserialize_model(onnx.load(path))
        found = {"onnxscript": onnx_ir.serde.serialize_model(rewriter.rewrite(optimizer.optimize(own)))}
        if find_spec("onnxslim"):
            import onnxslim

            found["onnxslim"] = onnxslim.slim(onnx.load(path))
    return found


def facts(name: str, seconds: float, seed: int) -> Row:
    """Build, export in every form, check that all agree, count, and time the first two."""
    row = Row(name)
    graph = capture(*network(name, seed))
    with tempfile.TemporaryDirectory() as folder:
        paths = {form: Path(folder) / f"{i}.onnx" for i, form in enumerate(FORMS)}
        plain(graph, paths["as captured"])
        export_onnx(graph, paths["exported"])
        for form, model in rewritten(paths["exported"]).items():
            paths[form].write_bytes(model.SerializeToString())
        there = {form: path for form, path in paths.items() if path.exists()}
        for form, path in there.items():
            row.nodes[form] = len(onnx.load(path).graph.node)
            row.size[form] = path.stat().st_size
        inputs = [x.numpy() for x in graph.example(batch=1, seed=1)]
        check(there, inputs)
        for runtime in runtimes():
            for form in FORMS[:2]:
                row.kernels[runtime.name, form] = fusion(paths[form], runtime.name).kernels
            with ExitStack() as stack:
                sessions = {form: stack.enter_context(closing(runtime.load(paths[form], 1, 1))) for form in FORMS[:2]}
                row.gain[runtime.name] = gain(sessions, inputs, seconds)
    return row


def gain(sessions: dict[str, Session], inputs: list[Any], seconds: float) -> str:
    """How many times faster the exported file is; no figure where the times vary by more than 5 %."""
    for _ in range(TRIES):
        timed = measure(sessions, inputs, seconds)
        if all(t.reliable for t in timed.values()):
            found = ratio(timed["as captured"], timed["exported"])
            low, high = found.interval or (0.0, 0.0)
            return f"{found.value:.2f} [{low:.2f}, {high:.2f}]"
    return "not told: times vary"


def check(paths: dict[str, Path], inputs: list[Any]) -> None:
    """Every form gives what the captured one gives, to 1e-4 of its largest value."""
    outputs = {}
    for form, path in paths.items():
        with closing(runtimes()[0].load(path, 1, 1)) as session:
            outputs[form] = session.run(inputs)
    for form, found in outputs.items():
        wrong = max(difference(a, b, False) for a, b in zip(found, outputs["as captured"], strict=True))
        if wrong > 1e-4:
            raise AssertionError(f"{form} differs by {wrong:.1e}")


def cells(row: Row) -> list[str]:
    """The cells of one row of the table."""
    nodes = [str(row.nodes.get(form, "-")) for form in FORMS]
    sizes = [f"{row.size[form] / 1000:,.1f}" for form in FORMS[:2]]
    kernels = [str(row.kernels.get((r, form), "-")) for r in ("onnxruntime", "openvino") for form in FORMS[:2]]
    return [row.name, *nodes, *sizes, *kernels, *(row.gain.get(r, "-") for r in ("onnxruntime", "openvino"))]


def report(rows: Sequence[Row], command: str) -> str:
    """The table as Markdown."""
    here = machine()
    second = ("", *FORMS, *FORMS[:2], *FORMS[:2], *FORMS[:2], "", "")
    text = (__doc__ or "").split("\n\n")
    libraries = ", ".join(f"{name} {version}" for name, version in here.libraries.items())
    lines = [
        "# Graph optimisation before the runtime",
        "",
        f"Made by `{command}`.",
        "",
        *"\n\n".join(text[2:]).split("\n"),
    ]
    lines += [f"{here.processor}, {here.cores} cores, {libraries}.", ""]
    table = [HEAD, ["---"] * len(HEAD), second, *(cells(row) for row in rows)]
    lines += [summary(rows), ""]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table)]) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """The counts in two sentences."""
    sums = {form: sum(row.nodes.get(form, row.nodes["exported"]) for row in rows) for form in FORMS}
    first, ours = sums["as captured"], sums["exported"]
    more = [f"{form} {ours - sums[form]}" for form in FORMS[2:] if any(form in row.nodes for row in rows)]
    return (
        f"Of {first} nodes as captured {ours} are left in the exported files. Run on these once more, the rewriters "
        f"remove: {', '.join(more)}; so neither is run a second time."
    )


def main() -> None:
    """Run the bench and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=NETWORKS)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in options.only:
        rows.append(facts(name, options.seconds, options.seed))
        print(*cells(rows[-1]), sep=" | ", flush=True)
        RESULT.write_text(report(rows, "python bench/graph_optimisation.py"), encoding="utf-8")


if __name__ == "__main__":
    main()
