"""Which architectures trimtab can cut: captures, cuts 30 % of every group at random, and checks what comes out.

    python bench/coverage.py [--only NAME...] [--jobs 2] [--seconds 300] [--seed 0]

A row passes when at least 80 % of the parameters lie in groups that can be cut, the multiply-adds fall by at least
25 %, the law of surgery holds (the cut graph equals the original with the same channels masked), the cut graph trains
a step, and its saved and its ONNX form, reopened in a clean process, agree with it to 1e-4 of the largest output.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

RESULT = ROOT / "bench" / "results" / "coverage.md"
RATIO, SHARE, FALL, AGREE = 0.3, 0.8, 0.25, 1e-4
PRELOADED = [
    "torch",
    "transformers.models.bert.modeling_bert",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "bench.networks",
    "trimtab.run.export",
]
LIBRARIES = ("torch", "transformers.models.bert.modeling_bert", "onnx", "onnxscript", "onnxruntime", "numpy")

Row = dict[str, Any]


def measure(name: str, seed: int) -> Iterator[Row]:
    """Take one network through every stage; yields the facts of its row as they become known."""
    import torch

    from bench.networks import network
    from trimtab.graph.capture import capture
    from trimtab.graph.count import total
    from trimtab.graph.coupling import groups
    from trimtab.graph.modes import set_mode
    from trimtab.graph.surgery import cut, mask

    torch.set_num_threads(1)
    yield {"stage": "capture"}
    model, example = network(name, seed)
    graph = set_mode(capture(model, example), False)
    inputs = flat(example)
    yield {"stage": "groups"}
    found = groups(graph)
    keep = choose(found, seed)
    yield {"share": share(graph, found, keep), "groups": len(found), "cut": len(keep), "whole": whole(found, keep)}
    yield {"stage": "cut"}
    small = cut(graph, keep)
    before, after = total(graph).macs, total(small).macs
    parameters = [sum(p.numel() for p in g.net.parameters()) for g in (graph, small)]
    yield {"macs": before, "fall": 1 - after / before, "parameters": parameters[0], "left": parameters[1]}
    yield {"stage": "law"}
    yield {"law": law(small, mask(graph, keep), inputs)}
    yield {"stage": "backward"}
    step(small, inputs, untouched(graph, inputs))
    yield {"stage": "export and reload"}
    yield reopened(small, inputs)


def flat(example: Any) -> tuple[Any, ...]:
    """The tensors of an example input, in order."""
    import torch.utils._pytree as pytree

    return tuple(pytree.tree_leaves(example))


def choose(found: Sequence[Any], seed: int) -> dict[str, list[int]]:
    """70 % of the units of every group that can be cut, at random, at least one."""
    import numpy as np

    random = np.random.default_rng(seed)
    keep = {}
    for group in found:
        left = group.size - max(round(RATIO * group.size), 0)
        if group.reason is None and 0 < left < group.size:
            keep[group.name] = sorted(random.choice(group.size, left, replace=False).tolist())
    return keep


def share(graph: Any, found: Sequence[Any], keep: Mapping[str, Any]) -> float:
    """The share of all parameters that go when some unit of a group that is cut goes."""
    covered: dict[str, dict[int, set[int]]] = {}
    for group in found:
        for member in group.members if group.name in keep else ():
            indices = covered.setdefault(member.parameter, {}).setdefault(member.dim, set())
            indices.update(i for unit in member.indices for i in unit)
    total, inside = 0, 0.0
    for name, parameter in graph.net.named_parameters():
        dims = covered.get(name, {})
        outside = math.prod(1 - len(indices) / parameter.shape[dim] for dim, indices in dims.items())
        total, inside = total + parameter.numel(), inside + parameter.numel() * (1 - outside)
    return inside / total


def whole(found: Sequence[Any], keep: Mapping[str, Any]) -> dict[str, list[str]]:
    """Why groups stay whole, and the groups' names under each reason."""
    reasons: dict[str, list[str]] = {}
    for group in found:
        if group.name not in keep:
            reasons.setdefault(group.reason or f"only {group.size} unit", []).append(group.name)
    return reasons


def tensors(value: Any) -> list[Any]:
    """The output tensors of a graph's call."""
    return list(value.values()) if isinstance(value, Mapping) else [value]


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """The largest difference of two lists of arrays, as a part of the largest value of the second."""
    import numpy as np

    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        one, two = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if one.shape != two.shape or not np.isfinite(one).all() or not np.isfinite(two).all() or not two.any():
            return math.inf
        worst = max(worst, float(np.abs(one - two).max() / np.abs(two).max()))
    return worst


def law(small: Any, masked: Any, inputs: Sequence[Any]) -> float:
    """How far the cut graph is from the masked one, and from itself in a batch of three instead of two."""
    import torch

    three = [torch.cat([x, x.flip(0)])[:3] for x in inputs]
    with torch.no_grad():
        ours, theirs, more = tensors(small(*inputs)), tensors(masked(*inputs)), tensors(small(*three))
    pairs = ((ours, theirs), ([t[:2] for t in more], ours))
    return max(difference([t.numpy() for t in a], [t.numpy() for t in b]) for a, b in pairs)


def backward(graph: Any, inputs: Sequence[Any]) -> tuple[Any, set[str]]:
    """A copy in training mode after a forward and a backward pass, and the parameters that got a gradient."""
    from trimtab.graph.modes import set_mode

    training = set_mode(graph.copy(), True)
    sum(t.float().square().mean() for t in tensors(training(*inputs))).backward()
    named = dict(training.net.named_parameters())
    broken = [name for name, p in named.items() if p.grad is not None and not bool(p.grad.isfinite().all())]
    if broken:
        raise ArithmeticError(f"the gradient of {broken[0]} is not finite")
    return training, {name for name, p in named.items() if p.grad is not None and bool(p.grad.any())}


def untouched(graph: Any, inputs: Sequence[Any]) -> set[str]:
    """The parameters that get no gradient in the original either."""
    return {name for name, _ in graph.net.named_parameters()} - backward(graph, inputs)[1]


def step(small: Any, inputs: Sequence[Any], exempt: set[str]) -> None:
    """Train the cut graph for one step."""
    import torch

    training, moved = backward(small, inputs)
    missing = {name for name, _ in training.net.named_parameters()} - moved - exempt
    if missing:
        raise ArithmeticError(f"no gradient reaches {sorted(missing)[0]} ({len(missing)} parameters)")
    torch.optim.SGD(training.net.parameters(), lr=1e-3).step()
    training(*inputs)


def reopened(small: Any, inputs: Sequence[Any]) -> Row:
    """Save and export the cut graph, and open both in a process that knows nothing of the network."""
    import numpy as np
    import torch

    from trimtab.graph.save import save
    from trimtab.run.export import export_onnx

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder)
        np.savez(path / "inputs.npz", *[x.numpy() for x in inputs])
        np.savez(path / "outputs.npz", *[t.numpy() for t in tensors(small(*inputs))])
        save(small, path)
        export_onnx(small, path / "model.onnx")
        command = [sys.executable, __file__, "--reopen", folder]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(last_line(found.stderr))
    return dict(json.loads(found.stdout.splitlines()[-1]))


def reopen(path: Path) -> Row:
    """In the clean process: how far the saved and the exported network are from what the cut graph gave."""
    import numpy as np
    import onnxruntime
    import torch

    from trimtab.graph.save import load

    with np.load(path / "inputs.npz") as inputs, np.load(path / "outputs.npz") as outputs:
        given, wanted = [inputs[k] for k in inputs], [outputs[k] for k in outputs]
    loaded = load(path)
    with torch.no_grad():
        again = [t.numpy() for t in tensors(loaded(*[torch.from_numpy(x) for x in given]))]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path / "model.onnx", options, providers=["CPUExecutionProvider"])
    run = session.run(None, dict(zip([i.name for i in session.get_inputs()], given, strict=True)))
    strangers = {"bench.networks", "transformers"} & set(sys.modules)
    if strangers:
        raise RuntimeError(f"the clean process imported {strangers}")
    return {"reload": difference(again, wanted), "onnx": difference(run, wanted)}


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


def last_line(text: str) -> str:
    """The last line that is not blank, fit for a table."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1].replace("|", "/")[:400] if lines else "no message"


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
    lines += ["", "## Left whole", "", "What each network keeps whole, why, and (in brackets) in how many groups.", ""]
    for row in rows:
        whole = row.get("whole", {})
        told = "; ".join(f"{why} ({len(names)}: `{names[0]}`)" for why, names in whole.items())
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
    parser.add_argument("--reopen", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.reopen:
        print(json.dumps(reopen(options.reopen)))
        return 0
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
