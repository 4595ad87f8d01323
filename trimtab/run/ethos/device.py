"""EthosU: Arm's Ethos-U as a device, modelled by Vela."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trimtab._version import VERSION
from trimtab.core.errors import FileError, InputError, NotRunnable
from trimtab.core.metric import Metric, Source, metric, show
from trimtab.core.store import digest, write_atomic
from trimtab.core.target import Target
from trimtab.graph.save import load
from trimtab.hardware.layer import Layer
from trimtab.run.device import Clocked
from trimtab.run.ethos.configuration import Configuration
from trimtab.run.ethos.lower import Lowered, Part, lowered
from trimtab.run.ethos.numbers import check_numbers
from trimtab.run.ethos.single import single
from trimtab.run.ethos.vela import Compiled, Operator, compiled
from trimtab.run.fusable import ETHOS_U, IntegerSupport
from trimtab.run.runtime import Array

RUNTIME = "vela"
"""What models it, where a runtime's name is asked for."""
PACKAGES = ("executorch", "ethos-u-vela", "tosa-tools")
_KEPT = 64


@dataclass(frozen=True)
class EthosU:
    """An Ethos-U with its memories.

    Args:
        configuration: size, memory mode and system.
    """

    configuration: Configuration
    source: Source = "modelled"
    precisions: tuple[str, ...] = ("int8",)
    minimises: tuple[str, ...] = ("latency",)
    support: IntegerSupport = ETHOS_U

    @property
    def name(self) -> str:
        """As in a target."""
        return self.configuration.name

    @property
    def title(self) -> str:
        """One phrase for people."""
        how = self.configuration
        return f"Arm Ethos-{how.family.upper()}, {how.macs} multiply-adds a cycle, {how.system_config}, {how.mode}"

    def available(self) -> str | None:
        """None if the compiler and ExecuTorch are installed, else what to install."""
        missing = [name for name in PACKAGES if _version(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed. Install with: pip install 'trimtab[npu]'."
        return None

    def version(self) -> str:
        """Of what models it."""
        return " ".join([VERSION, *(f"{name} {_version(name)}" for name in PACKAGES), digest(self.configuration)])

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The ExecuTorch program, `model.pte`, lowered from the graph beside the ONNX file."""
        path = file.with_suffix(".pte")
        program = _of(file, self.configuration).program
        if not path.exists() or path.read_bytes() != program:
            write_atomic(path, lambda temporary: temporary.write_bytes(program))
        return (path,)

    def clock(
        self,
        baseline: Path,
        files: Mapping[str, Path],
        target: Target,
        inputs: Sequence[Array],
        seconds: float = 3.0,
        turns: Sequence[Sequence[Array]] = (),
    ) -> dict[str, Clocked]:
        """Cycles that Vela counts for each point, from the graph that stands beside its file.

        Raises:
            NotRunnable: nothing of it runs there, or its feature maps are larger than the memory.
            FileError: a graph is missing or damaged. RuntimeMissing: the extra `npu` is not installed.
        """
        _require_one(target)
        reference = self.compiled(baseline)
        found = {}
        for name, path in files.items():
            own = self.compiled(path)
            lacks = _exceeds(own, self.name, path)
            if lacks is not None and path != baseline:
                raise lacks
            fallen = _of(path, self.configuration).fallen
            found[name] = self._clocked(own, reference, fallen, lacks)
        return found

    def compiled(self, file: Path) -> Compiled:
        """What Vela says of a point, all parts that run there together, its layers by the user's names."""
        parts = [
            _named(part, compiled(part.network, "tosa", self.configuration, where=file))
            for part in _of(file, self.configuration).parts
        ]
        return replace(
            parts[0],
            cycles=sum(p.cycles for p in parts),
            sram=max(p.sram for p in parts),
            outside=sum(p.outside for p in parts),
            traffic={name: sum(p.traffic[name] for p in parts) for name in parts[0].traffic},
            operators=tuple(operator for p in parts for operator in p.operators),
        )

    def layers(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        """Seconds of each layer compiled alone; a grouped convolution is as many plain ones."""
        _require_one(target)
        found = {}
        for layer in shapes:
            parts = layer.groups if 1 < layer.groups < layer.inputs else 1
            part = replace(layer, inputs=layer.inputs // parts, outputs=layer.outputs // parts, groups=1)
            own = compiled(single(part if parts > 1 else layer), "tosa", self.configuration, where=layer)
            found[layer] = {"latency": parts * own.seconds}
        return found

    def check(self, file: Path, runtime: str) -> None:
        """ExportError if the program computes something else than the ONNX file that its score is taken with.

        What does not run in integers does not run there at all, and `clock` names it.
        """
        check_numbers(load(file.parent, file.stem), _of(file, self.configuration), file)

    def _clocked(
        self, own: Compiled, reference: Compiled, fallen: tuple[str, ...], lacks: NotRunnable | None
    ) -> Clocked:
        notes = [_memory(own), f"{own.cycles:,} cycles at {own.clock / 1e6:g} MHz."]
        if fallen:
            notes.append(f"Fell back to the processor beside, whose time is not counted: {', '.join(fallen)}.")
        if lacks is not None:
            notes.append(str(lacks))
        rows = tuple(_row(operator, own.clock) for operator in own.operators if operator.cycles)
        rows += tuple(_fell(told) for told in fallen)
        return Clocked(
            runtime=RUNTIME,
            metrics=_metrics(own, reference, self.configuration),
            layers=rows,
            notes=tuple(notes),
            lacks=None if lacks is None else str(lacks),
        )


def _metrics(own: Compiled, reference: Compiled, how: Configuration) -> dict[str, Metric]:
    text = f"modelled (Vela {_version('ethos-u-vela')}): {own.cycles} cycles, {how.system_config}, {how.mode}"
    values = {
        "latency": own.seconds,
        "latency_ratio": reference.seconds / own.seconds,
        "throughput": 1 / own.seconds,
        "peak_memory": own.sram,
    }
    return {name: metric(name, value, "modelled", how=text) for name, value in values.items()}


def _memory(own: Compiled) -> str:
    return f"{show(own.sram, 'byte')} of SRAM, {show(own.outside, 'byte')} of flash or DRAM."


def _named(part: Part, own: Compiled) -> Compiled:
    """Operators that multiply with the user's names of their layers."""
    operators = (replace(o, name=part.names.get(o.name, o.name)) if o.macs else o for o in own.operators)
    return replace(own, operators=tuple(operators))


def _row(operator: Operator, clock: float) -> dict[str, Any]:
    """An operator as a row of the report."""
    return {
        "name": operator.name,
        "kind": operator.kind,
        "cycles": operator.cycles,
        "seconds": operator.cycles / clock,
        "macs": operator.macs,
        "sram_bytes": operator.sram,
    }


def _fell(told: str) -> dict[str, Any]:
    """A row without figures for what fell back, from `softmax (head)`."""
    kind, _, name = told.partition(" (")
    return {"name": name.removesuffix(")"), "kind": kind, "runs_on": "the processor beside"}


def _exceeds(own: Compiled, name: str, where: Path) -> NotRunnable | None:
    """What says that the feature maps do not fit, or None."""
    if own.sram <= own.limit:
        return None
    most = max(own.operators, key=lambda o: o.sram, default=None)
    return NotRunnable(
        f"{name}: too large for its SRAM",
        where=f"{where}: {most.name}" if most else where,
        got=show(own.sram, "byte"),
        expected=f"at most {show(own.limit, 'byte')}",
        do=f"{100 * own.limit / own.sram:.0f} % of that would fit: fewer channels there, or a smaller input.",
    )


def _require_one(target: Target) -> None:
    if target.batch != 1:
        raise InputError("Ethos-U: batch", got=target.batch, expected="1", do="Leave batch out of the target.")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class _Source:
    """A graph on disk; two of the same content are one."""

    key: str
    folder: Path = field(compare=False)
    stem: str = field(compare=False)


def _of(file: Path, how: Configuration) -> Lowered:
    description = file.with_name(f"{file.stem}.trim.json")
    if not description.exists():
        raise FileError("Ethos-U: no graph beside the ONNX", where=description, do="Keep a point's files together.")
    # the description holds the hash of the weights
    return _lowered(_Source(digest(description.read_bytes()), file.parent, file.stem), how)


@lru_cache(maxsize=_KEPT)
def _lowered(source: _Source, how: Configuration) -> Lowered:
    return lowered(load(source.folder, source.stem), how, where=source.folder)
