"""ZigZag: an accelerator by its description. Each layer's dataflow is found, its cycles and joules modelled.

    target          array     clock     dataflow              where inputs and outputs lie between layers
    tpu-like        256x256   700 MHz   weight-stationary     24 MiB on chip
    edge-tpu-like   64x64     500 MHz   weight-stationary     2 MiB on chip, DRAM where they do not fit
    eyeriss-like    14x12     200 MHz   row-stationary        DRAM
    fpga-like       16x12     150 MHz   adder trees           DRAM

All compute in 8-bit integers with sums of 32 bits. Their figures, with sources, are in
`hardware/catalog/accelerators`; joules are dynamic ones alone, in 45 nm, so arrays differ in structure, not in process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab._version import VERSION
from trimtab.core.errors import NotRunnable, RuntimeMissing
from trimtab.core.metric import Metric, Source, metric
from trimtab.core.store import digest
from trimtab.core.target import Target
from trimtab.graph.executed import Executed, Step, executed
from trimtab.graph.save import load
from trimtab.hardware.accelerator import Accelerator, Buffer
from trimtab.hardware.energy import edp
from trimtab.hardware.layer import Layer
from trimtab.run.described import estimated
from trimtab.run.device import Clocked
from trimtab.run.fusable import INTEGER, IntegerSupport
from trimtab.run.mapping import Mapped, mapped
from trimtab.run.runtime import Array, onnx_files
from trimtab.run.shapes import Call, calls

RUNTIME = "zigzag"
"""What models it, where a runtime's name is asked for."""


@dataclass(frozen=True)
class ZigZag:
    """An accelerator that a file describes.

    Args:
        accelerator: its figures.
        path: as in the target, for a file of the user's own; empty for one of the catalogue.
    """

    accelerator: Accelerator
    path: str = ""
    source: Source = "modelled"
    precisions: tuple[str, ...] = ("int8",)
    minimises: tuple[str, ...] = ("latency", "energy", "edp")
    support: IntegerSupport = INTEGER

    @property
    def name(self) -> str:
        """The catalogue's name, or the path of the file."""
        return self.path or self.accelerator.name

    def available(self) -> str | None:
        """None if ZigZag is installed, else how to install it."""
        missing = [m for m in ("zigzag", "six") if importlib.util.find_spec(m) is None]
        return f"{missing[0]} is not installed. Install it: pip install 'trimtab[accelerator]'" if missing else None

    def version(self) -> str:
        """Of ZigZag, of trimtab and of the figures."""
        return f"zigzag {importlib.metadata.version('zigzag-dse')} {VERSION} {digest(self.accelerator)}"

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The ONNX file with its external data."""
        return onnx_files(file)

    def clock(
        self,
        baseline: Path,
        files: Mapping[str, Path],
        target: Target,
        inputs: Sequence[Array],
        seconds: float = 3.0,
        turns: Sequence[Sequence[Array]] = (),
    ) -> dict[str, Clocked]:
        """Model files against the baseline, from the quantised graphs that stand beside them, layer by layer.

        Raises:
            NotRunnable: a layer is not in integers, multiplies two activations, or has no mapping; it is named.
            RuntimeMissing: ZigZag is not installed.
            FileError: a graph is missing or damaged.
        """
        self._require()
        known: dict[Path, tuple[_Cost, ...]] = {}

        def costs(path: Path) -> tuple[_Cost, ...]:
            if path not in known:
                graph = load(path.parent)
                known[path] = _costs(self.accelerator, executed(graph, target.batch), calls(graph), target.batch)
            return known[path]

        return {
            name: _clocked(self.accelerator, costs(path), costs(baseline), target.batch) for name, path in files.items()
        }

    def layers(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        """Latency (s) and energy (J) of each layer alone."""
        self._require()
        found = {}
        for layer in shapes:
            own = mapped(self.accelerator, layer, target.batch)
            found[layer] = {"latency": own.cycles / self.accelerator.hertz, "energy": own.joules}
        return found

    def check(self, file: Path, runtime: str) -> None:
        """Nothing more: a layer that is not in integers has no cost, and `clock` says so."""

    def _require(self) -> None:
        missing = self.available()
        if missing:
            what, _, do = missing.partition(". ")
            raise RuntimeMissing("target", where=self.name, got=what, do=f"{do}.")


@dataclass(frozen=True)
class _Cost:
    """One step: its cycles, joules, and its mapping where it is a layer."""

    step: Step
    cycles: float
    joules: float
    mapping: Mapped | None


def _costs(accelerator: Accelerator, done: Executed, shapes: Sequence[Call], batch: int) -> tuple[_Cost, ...]:
    queues: dict[str, list[Layer]] = defaultdict(list)
    for call in shapes:
        queues[call.name].append(call.layer)
    found = []
    for step in done.steps:
        if not step.macs:
            found.append(_moved(accelerator.home(step.activations, 0), step))
            continue
        if not step.integer:
            raise NotRunnable(
                f"{accelerator.name} computes in 8-bit integers",
                where=step.name,
                got="a layer in floating point",
                do="Quantise that layer.",
            )
        if not queues[step.name]:
            raise NotRunnable(
                f"{accelerator.name} maps convolutions and linear layers alone",
                where=step.name,
                got=step.kinds[0],
                do="Choose another target.",
            )
        found.append(_layer(accelerator, step, queues[step.name].pop(0), batch))
    return tuple(found)


def _layer(accelerator: Accelerator, step: Step, layer: Layer, batch: int) -> _Cost:
    try:
        own = mapped(accelerator, layer, batch)
    except NotRunnable as error:
        where = f"{step.name}, {error.where}"
        raise NotRunnable(error.what, where=where, got=error.got, expected=error.expected, do=error.do) from error
    return _Cost(step, own.cycles, own.joules, own)


def _moved(home: Buffer, step: Step) -> _Cost:
    """An addition, a pooling: as long as its bytes take through the memory that they lie in."""
    width = home.read if home.one_port else home.read + home.write
    return _Cost(step, step.activations / width, step.activations * home.energy, None)


def _clocked(accelerator: Accelerator, own: Sequence[_Cost], baseline: Sequence[_Cost], batch: int) -> Clocked:
    rows = tuple(_row(accelerator, each) for each in own)
    others = [c for c in own if c.mapping is None]
    share = sum(c.cycles for c in others) / sum(c.cycles for c in own)
    note = (
        f"{len(others)} additions, poolings and the like are counted as the bytes they move, {100 * share:.1f} % of "
        "all cycles; layers run one after another."
    )
    notes = (note, *estimated(accelerator.estimates))
    return Clocked(RUNTIME, _metrics(accelerator, own, baseline, batch), layers=rows, notes=notes)


def _metrics(
    accelerator: Accelerator, own: Sequence[_Cost], baseline: Sequence[_Cost], batch: int
) -> dict[str, Metric]:
    seconds, before = (sum(c.cycles for c in costs) / accelerator.hertz for costs in (own, baseline))
    joules, spent = (sum(c.joules for c in costs) for costs in (own, baseline))
    how = (
        f"modelled (ZigZag): {sum(c.cycles for c in own):,.0f} cycles at {accelerator.hertz / 1e6:g} MHz, summed over "
        "layers"
    )
    power = "modelled (ZigZag): multiply-adds and bytes by memory, in 45 nm, without static power"
    values = {
        "latency": (seconds, how),
        "latency_ratio": (before / seconds, how),
        "throughput": (batch / seconds, how),
        "energy": (joules, power),
        "energy_ratio": (spent / joules, power),
        "edp": (edp(joules, seconds), power),
    }
    return {name: metric(name, value, "modelled", how=text) for name, (value, text) in values.items()}


def _row(accelerator: Accelerator, own: _Cost) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": own.step.name,
        "operator": "+".join(own.step.kinds),
        "cycles": own.cycles,
        "seconds": own.cycles / accelerator.hertz,
        "joules": own.joules,
        "macs": own.step.macs,
    }
    if own.mapping is None:
        return row
    memory = {f"{name.replace(' ', '_')}_joules": joules for name, joules in own.mapping.buffers}
    return {
        **row,
        "utilisation": own.mapping.utilisation,
        "spatial": own.mapping.spatial,
        "temporal": own.mapping.temporal,
        "compute_joules": own.step.macs * accelerator.energy,
        **memory,
    }
