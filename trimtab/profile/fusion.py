"""Fusion: which operators of a file a runtime computes together, which it does not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trimtab.core.errors import FileError
from trimtab.core.target import Target
from trimtab.graph.model import Graph
from trimtab.profile.join import Group, Wiring, covered, join, wiring_of
from trimtab.profile.network import QUANTISING, Network
from trimtab.profile.opened import Opened, inputs_of, opened, renamed, try_once
from trimtab.profile.why import why
from trimtab.run import runtime as runtime_of
from trimtab.run.kernels import Kernel, kernels

State = Literal["kernel", "fused", "alone", "loading", "renamed", "added"]
STATES: Mapping[State, str] = {
    "kernel": "have a kernel and take others along",
    "fused": "are fused into another's kernel",
    "alone": "have a kernel of their own",
    "loading": "are computed while loading",
    "renamed": "only rename dimensions",
    "added": "kernels are the runtime's own",
}
"""What becomes of operators, in words."""
SHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
"""Operators that leave the bytes as they are."""


@dataclass(frozen=True)
class Fate:
    """What a runtime made of one operator.

    Args:
        operator: in ONNX's words; of a kernel that the runtime added, its own.
        layer: the user's name for it; '' where it has none.
        kernel: what computes it; '' where nothing does.
        state: see `STATES`.
        told: what it is computed with; for one that is alone, why.
        step: of the kernel among those that the runtime runs, in its order; None without one.
    """

    operator: str
    layer: str
    kernel: str
    state: State
    told: str
    step: int | None = None


@dataclass(frozen=True)
class Fusion:
    """What a runtime made of a file.

    Args:
        runtime: by name.
        fates: of the operators in the file's order, then of what the runtime added.
        kernels: how many it runs.
    """

    runtime: str
    fates: tuple[Fate, ...]
    kernels: int

    @property
    def counts(self) -> dict[State, int]:
        """How many operators ended in each state."""
        found = Counter(fate.state for fate in self.fates)
        return {state: found[state] for state in STATES}

    def json(self) -> dict[str, Any]:
        """As `trimtab profile --fusion --json` prints it."""
        fates = [vars(fate) for fate in self.fates]
        return {"runtime": self.runtime, "kernels": self.kernels, "counts": self.counts, "operators": fates}


def fusion(what: Graph | Path | str, runtime: str, target: Target | None = None) -> Fusion:
    """Read from a runtime's own model of a network which operators it computes together.

    The kernels are those of one profiled inference; ONNX Runtime's are matched through its optimised model, OpenVINO's
    through `originalLayersNames`. An operator that no kernel names was fused into a neighbour's (see `join`).

    Args:
        what: a captured network, or the path of an ONNX file, which may come from a stranger.
        runtime: `onnxruntime` or `openvino`.
        target: batch and threads.

    Raises:
        FileError: the file is missing, damaged, or does not run. RuntimeMissing: the runtime is not installed.
    """
    wanted = target or Target()
    with opened(what, wanted.batch) as found:
        _check(found, runtime, wanted)
        ran = kernels(found.marked, runtime, inputs_of(found.network), threads=wanted.threads, runs=1)
    groups = join(found.network, ran)
    return Fusion(runtime, tuple(_fates(found.network, groups, ran, runtime)), len(ran))


def _check(found: Opened, runtime: str, target: Target) -> None:
    """Load and run once: the errors of the runtime's profiler are not ours."""
    try:
        session = runtime_of(runtime).load(found.marked, threads=target.threads)
        try:
            try_once(session, list(inputs_of(found.network).values()), found.path)
        finally:
            session.close()
    except FileError as error:  # it names our temporary copy
        raise renamed(error, found) from error


def _fates(network: Network, groups: Sequence[Group], ran: Sequence[Kernel], runtime: str) -> list[Fate]:
    wiring = wiring_of(network)
    home = {position: (step, group) for step, group in enumerate(groups) for position in group.members}
    named = {position for kernel in ran for position in covered(network, kernel)}
    fates = [_fate(network, wiring, i, home.get(i), named, runtime) for i in range(len(network.ops))]
    added = [(step, k) for step, group in enumerate(groups) if not group.members for k in group.kernels]
    return fates + [Fate(k.kind, "", k.kind, "added", "a change of layout or type", step) for step, k in added]


def _fate(
    network: Network, wiring: Wiring, position: int, where: tuple[int, Group] | None, named: set[int], runtime: str
) -> Fate:
    op = network.ops[position]
    if position in wiring.constant and op.kind != "QuantizeLinear":
        return Fate(op.kind, op.layer, "", "loading", "")
    if where is None or (op.kind in SHAPES and position not in named):
        return Fate(op.kind, op.layer, "", "renamed" if op.kind in SHAPES else "fused", "")
    step, group = where
    kernel = max(group.kernels, key=lambda k: k.seconds).kind
    state, told = _told(network, wiring, group, position, named, runtime)
    return Fate(op.kind, op.layer, kernel, state, told, step)


def _told(
    network: Network, wiring: Wiring, group: Group, position: int, named: set[int], runtime: str
) -> tuple[State, str]:
    head = _head(network, group, named)
    if position != head:
        owner = network.ops[head]
        return "fused", f"into {owner.kind} {owner.layer}".rstrip()
    others = [i for i in group.members if i != head and i not in wiring.constant and network.ops[i].kind not in SHAPES]
    if others:
        return "kernel", f"with {', '.join(_repeated([network.ops[i].kind for i in others]))}"
    return "alone", why(network, wiring, position, runtime)


def _head(network: Network, group: Group, named: set[int]) -> int:
    """The operator that a kernel stands for: what multiplies, else what it is named after, else the first one."""
    kinds = {kernel.kind for kernel in group.kernels}

    def weight(position: int) -> tuple[bool, int, bool, bool, bool, int]:
        op = network.ops[position]
        plain = op.kind not in QUANTISING and op.kind not in SHAPES
        return (op.macs > 0, op.macs, op.kind in kinds, plain, position in named, -position)

    return max(group.members, key=weight)


def _repeated(kinds: Sequence[str]) -> list[str]:
    """`DequantizeLinear x2`."""
    return [kind if n == 1 else f"{kind} x{n}" for kind, n in Counter(kinds).items()]
