"""Which architectures trimtab can cut: captures, cuts 30 % of every group at random, and checks what comes out.

    python bench/coverage.py [--only NAME...] [--jobs 2] [--seconds 300] [--seed 0]

A row passes when at least 80 % of the parameters lie in groups that can be cut, the multiply-adds fall by at least
25 %, the law of surgery holds (the cut graph equals the original with the same channels masked), the cut graph trains
a step, and its saved and its ONNX form, reopened in a clean process, agree with it to 1e-4 of the largest output.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from bench.coverage_row import Row, measure  # noqa: E402 - found through the line above

RESULT = ROOT / "bench" / "results" / "coverage.md"
SHARE, FALL, AGREE = 0.8, 0.25, 1e-4
MODELS = "transformers.models.bert.modeling_bert"  # brings what all models of the library import
PRELOADED = ["torch", MODELS, "onnx", "onnxscript", "onnxruntime", "bench.networks", "trimtab.run.export"]
LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy")


def reasons(row: Row) -> list[str]:
    """Why a row does not pass; empty when it does."""
    if "error" in row:
        return [f"{row.get('stage', 'start')}: {row['error']}"]
    checks = (
        (row["share"] >= SHARE, f"{row['share']:.0%} of the parameters can be cut"),
        (row["fall"] >= FALL, f"multiply-adds fall by {row['fall']:.0%}"),
        (row["law"] <= AGREE, f"cut and masked differ by {row['law']:.1e}"),
        (row["reload"] <= AGREE, f"reloaded differs by {row['reload']:.1e}"),
        (row["onnx"] <= AGREE, f"ONNX differs by {row['onnx']:.1e}"),
    )
    return [text for passed, text in checks if not passed]


def serve(name: str, seed: int, answer: Connection) -> None:
    """In a process of its own: send the facts of a row; whatever is raised is a fact too."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
    warnings.simplefilter("ignore")
    try:
        for facts in measure(name, seed):
            answer.send(facts)
    except Exception as error:
        message = " ".join(str(error).split()).replace("|", "/")
        answer.send({"error": f"{type(error).__name__}: {message[:400]}"})
        raise


def isolated(name: str, seed: int, seconds: float) -> Row:
    """One network in a process of its own, with a time limit: a crash is a row that fails."""
    row: Row = {"name": name, "stage": "start"}
    start, context = time.monotonic(), multiprocessing.get_context("forkserver")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(name, seed, send))
    process.start()
    send.close()
    try:
        while receive.poll(max(start + seconds - time.monotonic(), 0)):
            row.update(receive.recv())
        row["error"] = f"took more than {seconds:.0f} s"
        process.kill()
    except EOFError:
        process.join()
        if process.exitcode and "error" not in row:
            row["error"] = f"the process ended with status {process.exitcode}"
    row["seconds"] = time.monotonic() - start
    return row


HEAD = ("network", "parameters", "left", "in groups", "MACs", "fall", "law", "reload", "ONNX", "s", "result")


def cells(row: Row) -> list[str]:
    """The cells of one row of the table."""
    forms = {"parameters": ",d", "left": ",d", "share": ".0%", "macs": ",d", "fall": ".0%"}
    forms |= {"law": ".0e", "reload": ".0e", "onnx": ".0e", "seconds": ".0f"}
    shown = [format(row[key], form) if key in row else "-" for key, form in forms.items()]
    return [row["name"], *shown, "; ".join(reasons(row)) or "pass"]


def report(rows: Sequence[Row], seed: int) -> str:
    """The table, what was left whole, and the machine, as Markdown."""
    passed = sum(not reasons(row) for row in rows)
    table = [HEAD, ["---"] * len(HEAD), *(cells(row) for row in rows)]
    lines = ["# Coverage: architectures that can be captured, cut, trained, saved and exported", ""]
    lines += [f"{passed} of {len(rows)} rows pass ({passed / len(rows):.1%}). Made by `python bench/coverage.py`.", ""]
    lines += [" ".join((__doc__ or "").split("\n\n")[-1].split()), ""]
    lines += [f"30 % of every group cut at random, seed {seed}. {machine()}", ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    lines += [
        "",
        "## Left whole",
        "",
        "What is kept whole, why, and in brackets in how many groups and the first of them.",
        "",
    ]
    for row in (row for row in rows if "whole" in row):
        told = "; ".join(f"{why} ({len(names)}: `{names[0]}`)" for why, names in row["whole"].items())
        lines.append(f"- **{row['name']}**: {told or 'nothing'}.")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """The processor and the libraries."""
    info = Path("/proc/cpuinfo")
    models = (
        [x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        if info.exists()
        else []
    )
    model, cores = Counter(models).most_common(1)[0] if models else (platform.processor(), os.cpu_count())
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"{model}, {cores} cores, {platform.system()}, Python {platform.python_version()}, {libraries}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when at least 95 % of the rows pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these networks; results are not written")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=300, help="time limit of one network")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    return run(options)


def run(options: argparse.Namespace) -> int:
    """All rows, printed as they end."""
    from bench.networks import NETWORKS

    names = options.only or list(NETWORKS)
    unknown = sorted(set(names) - set(NETWORKS))
    if unknown:
        print(f"coverage: no network {unknown[0]!r}; there are {', '.join(NETWORKS)}", file=sys.stderr)
        return 2
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    multiprocessing.set_forkserver_preload(PRELOADED)
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda name: isolated(name, options.seed, options.seconds), names):
            rows.append(row)
            print("  ".join(f"{cell:>10}" for cell in cells(row)), flush=True)
    passed = sum(not reasons(row) for row in rows)
    print(f"{passed} of {len(rows)} pass")
    if not options.only:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(report(rows, options.seed))
    return 0 if passed >= 0.95 * len(rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
