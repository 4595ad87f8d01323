"""Device: what a target names, and what it says that files cost on it, by the clock or by a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trimtab.core.metric import Metric, Source
from trimtab.core.target import Target
from trimtab.hardware.layer import Layer
from trimtab.run.fusable import IntegerSupport
from trimtab.run.runtime import Array

MODEL = "model.onnx"
"""The file of a point that every device is given; others of the same point stand beside it."""


@dataclass(frozen=True)
class Clocked:
    """What a device said of one network.

    Args:
        runtime: what ran it, or what modelled it (`vela`): the fastest one, where there was a choice.
        metrics: latency, latency_ratio and throughput there; energy, edp, peak_memory where the device knows them.
        others: the same in its other runtimes or at its other operating points, by name.
        layers: a row for each layer that the device tells of: `name` and figures whose keys end in their unit
            (`seconds`, `cycles`, `joules`, `sram_bytes`).
        notes: sentences: what fell back, what does not fit.
        lacks: why the device cannot run it, where it is modelled all the same, as the one that ratios count from; such
            a network is never the answer.
    """

    runtime: str
    metrics: Mapping[str, Metric]
    others: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    layers: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    lacks: str | None = None


class Device(Protocol):
    """What a target names."""

    @property
    def name(self) -> str:
        """As in a target."""

    @property
    def source(self) -> Source:
        """Of its latencies: `measured` or `modelled`."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it computes in, of `fp32` and `int8`. Without fp32 the original's latency is that of its int8 form."""

    @property
    def minimises(self) -> tuple[str, ...]:
        """Names of the metrics that it gives and that a goal can minimise: `latency`, and perhaps `energy`."""

    @property
    def support(self) -> IntegerSupport:
        """What it runs in integers."""

    def available(self) -> str | None:
        """None if it can be used, else why not and what to install."""

    def version(self) -> str:
        """Of what measures or models, for the keys of what is kept."""

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The files that it needs to run a point, made where they are missing; the size counts these.

        Args:
            file: the point's ONNX file, with `model.trim.json` beside it.
        """

    def clock(
        self,
        baseline: Path,
        files: Mapping[str, Path],
        target: Target,
        inputs: Sequence[Array],
        seconds: float = 3.0,
        turns: Sequence[Sequence[Array]] = (),
    ) -> dict[str, Clocked]:
        """What each file costs.

        Args:
            baseline: the file that ratios count from: the original, in fp32 where the device has it, else in int8.
            files: ONNX files of points by name; a device that needs another form makes it from the graph beside.
            target: batch and threads.
            inputs: one batch, in the order of the model's inputs.
            seconds: to measure for, each; a model takes none.
            turns: batches of real inputs; files whose work depends on the input are timed on these in turn.

        Raises:
            FileError: a file is missing or damaged. NotRunnable: the device can't run it: which layer, what limit.
            RuntimeMissing: what measures or models is not installed.
        """

    def layers(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        """What each layer costs alone: `latency` in s, and `energy` in J where the device knows it.

        Args:
            shapes: without repeats.
            precision: one of `precisions`.
            target: batch and threads.
        """

    def check(self, file: Path, runtime: str) -> None:
        """NotInteger if a layer of a quantised file would not run in integers in that runtime here."""
