"""One row of the coverage bench: a network captured, cut, masked, trained a step, saved, exported and reopened."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RATIO = 0.3
"""The part of every group that is cut."""

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
        left = group.size - round(RATIO * group.size)
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
        command = [sys.executable, __file__, folder]
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


def last_line(text: str) -> str:
    """The last line that is not blank, fit for a table."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1].replace("|", "/")[:400] if lines else "no message"


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
    print(json.dumps(reopen(Path(sys.argv[1]))))
