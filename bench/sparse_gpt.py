"""Half of the weights of a small GPT at zero, in one shot: magnitude, Wanda and SparseGPT.

    python bench/sparse_gpt.py [--steps N] [--seed N] [--runs FOLDER]

The network is that of bench/compression_networks.py: characters, trained on WikiText-2's validation text, measured on
every other window of a fifth of its test text, which nothing chose on. Masks and updates come from windows of the
training text; nothing is trained afterwards. All layers but the last have the ratio each, as the papers have it.

Perplexity is of a character. The difference is that of the mean loss of a character to SparseGPT's, in nats, paired
over windows, with a bootstrap 95 % interval: above 0, SparseGPT loses less. The table goes to
bench/results/sparse_gpt.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.compression_networks import RUNS, trained  # noqa: E402
from bench.quantise import progress  # noqa: E402
from trimtab.compress.sparsify.technique import Sparsify  # noqa: E402
from trimtab.core.goal import Goal  # noqa: E402
from trimtab.core.target import Target  # noqa: E402
from trimtab.graph.model import Graph  # noqa: E402
from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.pipeline.prepare import Prepared, prepare  # noqa: E402
from trimtab.run.export import export_onnx  # noqa: E402

RESULT = ROOT / "bench" / "results" / "sparse_gpt.md"
SKIP = ("head",)
METHODS = ("magnitude", "wanda", "sparsegpt")
ROWS: dict[str, Sparsify | None] = {
    "dense": None,
    **{f"{m}, 50 %": Sparsify(0.5, m, scope="layer", skip=SKIP) for m in METHODS},  # type: ignore[arg-type]
    **{f"{m}, 2:4": Sparsify(method=m, pattern="2:4", skip=SKIP) for m in METHODS},  # type: ignore[arg-type]
    **{f"{m}, 70 %": Sparsify(0.7, m, scope="layer", skip=SKIP) for m in METHODS},  # type: ignore[arg-type]
}


@torch.no_grad()
def losses(graph: Graph, prepared: Prepared) -> np.ndarray:
    """The mean loss of each window, in nats a character."""
    found = []
    for ids, target in prepared.test:
        logits = graph(ids)
        assert isinstance(logits, torch.Tensor)
        each = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        found.append(each.reshape(target.shape).mean(1))
    return torch.cat(found).double().numpy()


def interval(gaps: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The bootstrap 95 % interval of the mean."""
    random = np.random.default_rng(0)
    means = [gaps[random.integers(0, len(gaps), len(gaps))].mean() for _ in range(draws)]
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


def measured(prepared: Prepared, folder: Path) -> list[list[str]]:
    """One row of the table for each network."""
    found: dict[str, tuple[np.ndarray, float, int]] = {}
    for name, how in ROWS.items():
        start = time.monotonic()
        graph = prepared.graph if how is None else how.apply(prepared.graph, prepared.context)
        seconds = time.monotonic() - start
        path = folder / f"{name.replace(', ', '-').replace(' %', '').replace(':', 'of')}.onnx"
        export_onnx(graph, path)
        found[name] = losses(graph, prepared), seconds, path.stat().st_size
        print(f"{name}: perplexity {np.exp(found[name][0].mean()):.4f}, {seconds:.1f} s", file=sys.stderr, flush=True)
    rows, whole = [], found["dense"][0]
    for name, (loss, seconds, size) in found.items():
        best = found.get(name.replace(name.partition(",")[0], "sparsegpt"))
        against = "-"
        if best is not None and not name.startswith("sparsegpt"):
            low, high = interval(loss - best[0])
            against = f"{(loss - best[0]).mean():.4f} [{low:.4f}, {high:.4f}]"
        perplexity, lost = np.exp(loss.mean()), np.exp(loss.mean()) - np.exp(whole.mean())
        rows.append([name, f"{perplexity:.4f}", f"{lost:+.4f}", against, f"{seconds:.1f}", f"{size:,}"])
    return rows


def main() -> None:
    """Make, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of the network's own training, to try something out")
    parser.add_argument("--seed", type=int, default=0, help="of which windows are looked at")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "sparse_gpt")
    parser.add_argument("--networks", type=Path, default=RUNS, help="where weights are kept")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    task = trained("gpt", options.networks, progress("gpt"), options.steps)
    prepared = prepare(task, Target(), Goal(max_drop=None), options.seed)
    options.runs.mkdir(parents=True, exist_ok=True)
    rows = measured(prepared, options.runs)
    here = machine()
    text = ["# Sparse GPT", "", *(" ".join(p.split()) + "\n" for p in (__doc__ or "").split("\n\n")[2:])]
    text += [f"{time.strftime('%Y-%m-%d')}, {here.processor}, {here.cores} cores, seed {options.seed}.", ""]
    text += ["| network | perplexity | change | loss above SparseGPT's, nats | making, s | file, bytes |"]
    text += ["|---|---|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    options.result.parent.mkdir(exist_ok=True)
    options.result.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
