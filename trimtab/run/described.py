"""Described: a device by its data sheet. Roofline and energy over what it executes of a point's graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab._version import VERSION
from trimtab.core.errors import NotInteger, NotRunnable
from trimtab.core.metric import Metric, Source, metric, show
from trimtab.core.store import digest
from trimtab.core.target import Target
from trimtab.graph.executed import Executed, Step, executed
from trimtab.graph.save import load
from trimtab.hardware.cost import Cost, Work, cost
from trimtab.hardware.description import Description, at
from trimtab.hardware.energy import edp
from trimtab.hardware.layer import Layer
from trimtab.run.device import Clocked
from trimtab.run.fusable import INTEGER, IntegerSupport
from trimtab.run.runtime import Array, onnx_files

RUNTIME = "roofline"
"""What models it, where a runtime's name is asked for."""


@dataclass(frozen=True)
class Described:
    """A device that a file describes.

    Args:
        description: its figures.
        path: as in the target, for a file of the user's own; empty for a device of the catalogue.
    """

    description: Description
    path: str = ""
    source: Source = "modelled"
    minimises: tuple[str, ...] = ("latency", "energy", "edp")
    support: IntegerSupport = INTEGER

    @property
    def name(self) -> str:
        """The catalogue's name, or the path of the file."""
        return self.path or self.description.name

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of fp32 and int8 that it has a peak for."""
        return self.description.precisions

    def available(self) -> str | None:
        """None: a model needs nothing but its figures."""
        return None

    def version(self) -> str:
        """Of trimtab and of the figures."""
        return f"{VERSION} {digest(self.description)}"

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
        """Model files against the baseline, from the graphs that stand beside them.

        The baseline itself is modelled even where it does not fit in the device's memory: what it lacks is in
        `Clocked.lacks`. Any other file that does not fit raises.

        Raises:
            NotRunnable: an operator that the device lacks, weights beyond its flash, activations beyond its SRAM.
            FileError: a graph is missing or damaged.
        """
        known: dict[Path, Executed] = {}

        def work(path: Path) -> Executed:
            if path not in known:
                known[path] = executed(load(path.parent), target.batch)
            return known[path]

        reference = self._points(work(baseline), target.batch)
        found = {}
        for name, path in files.items():
            _require_operators(self.description, work(path))
            lacks = _lacks(self.description, work(path))
            if lacks is not None and path != baseline:
                raise lacks
            own = self._points(work(path), target.batch)
            found[name] = self._clocked(work(path), own, reference, None if lacks is None else str(lacks))
        return found

    def layers(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        """Latency (s) and energy (J) of each layer alone, by the same roofline."""
        width = 1 if precision == "int8" else 4
        found = {}
        for layer in shapes:
            work = Work(
                layer.macs * target.batch, layer.weights * width, layer.activations * width * target.batch, precision
            )
            own = cost(self.description, work, str(layer))
            found[layer] = {"latency": own.bound.seconds, "energy": own.energy.total}
        return found

    def check(self, file: Path, runtime: str) -> None:
        """NotInteger where it has no int8; a model has nothing else to check."""
        if "int8" not in self.description.peak:
            raise NotInteger(
                f"{self.name} has no int8", where=file, got=", ".join(self.description.peak), expected="int8 among them"
            )

    def _points(self, done: Executed, batch: int) -> dict[str, _Run]:
        """The run at each operating point by its name; the nominal one under the runtime's name."""
        points = {RUNTIME: self.description}
        points |= {p.name: at(self.description, p) for p in self.description.operating[1:]}
        return {name: _run(description, done, batch) for name, description in points.items()}

    def _clocked(
        self, done: Executed, own: Mapping[str, _Run], reference: Mapping[str, _Run], lacks: str | None
    ) -> Clocked:
        metrics = {name: _metrics(run, reference[name], done, name) for name, run in own.items()}
        rows = tuple(_row(step, each) for step, each in zip(done.steps, own[RUNTIME].costs, strict=True))
        return Clocked(
            runtime=RUNTIME,
            metrics=metrics.pop(RUNTIME),
            others=metrics,
            layers=rows,
            notes=(
                *_best(self.description, own),
                _fits(self.description, done) if lacks is None else lacks,
                *estimated(self.description.estimates),
            ),
            lacks=lacks,
        )


@dataclass(frozen=True)
class _Run:
    """One pass at one operating point: seconds, joules, samples, and the cost of each step."""

    seconds: float
    joules: float
    batch: int
    costs: tuple[Cost, ...]


def _run(description: Description, done: Executed, batch: int) -> _Run:
    costs = tuple(cost(description, _work(step), step.name) for step in done.steps)
    return _Run(sum(c.bound.seconds for c in costs), sum(c.energy.total for c in costs), batch, costs)


def _work(step: Step) -> Work:
    return Work(step.macs, step.weights, step.activations, "int8" if step.integer else "fp32")


def _metrics(run: _Run, reference: _Run, done: Executed, point: str) -> dict[str, Metric]:
    where = "" if point == RUNTIME else f" at {point}"
    how = f"modelled (roofline): sum over {len(done.steps)} layers of the time that the nearest ceiling allows{where}"
    joules = f"modelled (roofline): multiply-adds, bytes moved and static power{where}"
    values = {
        "latency": (run.seconds, how),
        "latency_ratio": (reference.seconds / run.seconds, how),
        "throughput": (run.batch / run.seconds, how),
        "energy": (run.joules, joules),
        "energy_ratio": (reference.joules / run.joules, joules),
        "edp": (edp(run.joules, run.seconds), joules),
        "peak_memory": (done.peak.alive, f"activations by liveness, as stored, at {done.peak.name}"),
    }
    return {name: metric(name, value, "modelled", how=text) for name, (value, text) in values.items()}


def _row(step: Step, own: Cost) -> dict[str, Any]:
    return {
        "name": step.name,
        "operator": "+".join(step.kinds),
        "precision": "int8" if step.integer else "fp32",
        "seconds": own.bound.seconds,
        "bound_by": own.bound.by,
        "joules": own.energy.total,
        "compute_joules": own.energy.compute,
        "memory_joules": own.energy.memory,
        "movement_joules": own.energy.movement,
        "static_joules": own.energy.static,
        "macs": step.macs,
        "weight_bytes": step.weights,
        "activation_bytes": step.activations,
        "sram_bytes": step.alive,
    }


def _best(description: Description, own: Mapping[str, _Run]) -> tuple[str, ...]:
    """Which operating point is best for energy, and which for the energy-delay product."""
    if len(own) < 2:
        return ()
    names = {RUNTIME: description.operating[0].name}
    least = min(own, key=lambda name: own[name].joules)
    product = min(own, key=lambda name: edp(own[name].joules, own[name].seconds))
    return (
        f"The least energy is at {names.get(least, least)}: {show(own[least].joules, 'J')} in "
        f"{show(own[least].seconds, 's')}.",
        f"The least energy-delay product is at {names.get(product, product)}: "
        f"{edp(own[product].joules, own[product].seconds):.3g} J.s.",
    )


def _fits(description: Description, done: Executed) -> str:
    """How much of the memories is used."""
    parts = [
        f"{show(used, 'byte')} of {show(limit, 'byte')} {what}"
        for used, limit, what in (
            (done.weights, description.flash, "for weights"),
            (done.peak.alive, description.sram, "for activations"),
        )
        if limit is not None
    ]
    return f"It fits: {' and '.join(parts)}." if parts else "The device's description sets no limit to memory."


def estimated(sections: Sequence[str]) -> tuple[str, ...]:
    """A sentence that names the figures of a description that nobody printed; nothing where all are printed."""
    if not sections:
        return ()
    return (f"Estimated in the device's description, whose sources say how: {', '.join(sections)}.",)


def _require_operators(description: Description, done: Executed) -> None:
    if description.operators is None:
        return
    for step in done.steps:
        missing = [kind for kind in step.kinds if kind not in description.operators]
        if missing:
            raise NotRunnable(
                f"{description.name} does not run {missing[0]}",
                where=step.name,
                expected=f"one of {', '.join(description.operators)}",
                do="Write that step with one of these, or choose another target.",
            )


def _lacks(description: Description, done: Executed) -> NotRunnable | None:
    """What of its memory is too small, with the layer that shows it and what would fit."""
    flash, sram, peak = description.flash, description.sram, done.peak
    if flash is not None and done.weights > flash:
        largest = max(done.steps, key=lambda step: step.weights)
        return NotRunnable(
            f"{description.name}: the weights do not fit in its flash",
            where=f"{largest.name} is the largest layer, with {show(largest.weights, 'byte')}",
            got=show(done.weights, "byte"),
            expected=f"at most {show(flash, 'byte')}",
            do=f"{100 * flash / done.weights:.0f} % of these weights would fit: cut channels or blocks, or quantise.",
        )
    if sram is not None and peak.alive > sram:
        return NotRunnable(
            f"{description.name}: the activations do not fit in its SRAM",
            where=peak.name,
            got=show(peak.alive, "byte"),
            expected=f"at most {show(sram, 'byte')}",
            do=f"{100 * sram / peak.alive:.0f} % of the activations there would fit: fewer channels there, a smaller "
            "input, or int8.",
        )
    return None
