"""Cpu: this machine's processor, measured in one of its runtimes or in the fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.core.errors import InputError
from trimtab.core.metric import Metric, Source, metric
from trimtab.core.target import Target
from trimtab.hardware.layer import Layer
from trimtab.hardware.machine import machine
from trimtab.run import runtime as runtime_of
from trimtab.run import runtimes
from trimtab.run.branches import layer_times
from trimtab.run.device import Clocked
from trimtab.run.energy import measure_energy, unavailable
from trimtab.run.fusable import IntegerSupport
from trimtab.run.integer import integer_report, require_integer, smaller
from trimtab.run.layers import layers as stored_layers
from trimtab.run.measure import Timing, cost, latency, measure, ratio, throughput
from trimtab.run.overflow import support_here
from trimtab.run.pinned import pinned
from trimtab.run.runtime import Array, Session, read_onnx
from trimtab.run.turns import depends_on_input, measure_in_turn


@dataclass(frozen=True)
class Cpu:
    """This machine's processor.

    Args:
        runtime: the only one to use; None leaves the choice of those that read the ONNX file itself to the clock.
    """

    runtime: str | None = None
    name: str = "cpu"
    source: Source = "measured"
    precisions: tuple[str, ...] = ("fp32", "int8")
    minimises: tuple[str, ...] = ("latency", "cost")

    @property
    def support(self) -> IntegerSupport:
        """What the runtime runs in integers; what all of them do, where there is a choice."""
        return support_here(self.runtime)

    def available(self) -> str | None:
        """None, or why the runtime cannot be used."""
        return runtime_of(self.runtime).available()

    def version(self) -> str:
        """Of this machine and its libraries."""
        return f"{machine().key()} {runtime_of(self.runtime).version()}"

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The files that the runtime reads."""
        return runtime_of(self.runtime).artifact(file)

    def clock(
        self,
        baseline: Path,
        files: Mapping[str, Path],
        target: Target,
        inputs: Sequence[Array],
        seconds: float = 3.0,
        turns: Sequence[Sequence[Array]] = (),
    ) -> dict[str, Clocked]:
        """Time files against the original in every runtime of the target, interleaved in this process.

        Each file is timed in a measurement of its own, with the original in the default runtime beside it.
        """
        _check_threads(target.threads)
        found = {}
        for name, path in files.items():
            with ExitStack() as stack:

                def load(file: Path, which: str | None, stack: ExitStack = stack) -> Session:
                    session = runtime_of(which).load(file, target.batch, target.threads)
                    stack.enter_context(closing(session))
                    return session

                sessions = {which: load(path, which) for which in self._candidates()}
                both = {"": load(baseline, None), **sessions}
                if depends_on_input(path):
                    timed = (
                        measure(both, inputs, seconds, target.threads)
                        if not turns
                        else measure_in_turn(both, turns, seconds, target.threads)
                    )
                    clocked = replace(fastest(timed), notes=(*fastest(timed).notes, *_in_turn(turns)))
                else:
                    clocked = fastest(measure(both, inputs, seconds, target.threads))
                    clocked = _with_energy(clocked, both[""], sessions[clocked.runtime], inputs, target.threads)
                clocked = replace(clocked, notes=(*clocked.notes, *_smaller(path, clocked.runtime)))
                found[name] = replace(clocked, notes=(*clocked.notes, *_fell_back(path, clocked.runtime, target.batch)))
        return found

    def layers(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        """Seconds of each layer, timed as branches of one model (see `layer_times`)."""
        runtime = runtime_of(self.runtime).name
        times = layer_times(shapes, precision, runtime, target.batch, target.threads)
        return {layer: {"latency": seconds} for layer, seconds in times.items()}

    def check(self, file: Path, runtime: str) -> None:
        """NotInteger if a quantised layer would not run in integers there."""
        require_integer(file, runtime)

    def _candidates(self) -> tuple[str, ...]:
        return (runtime_of(self.runtime).name,) if self.runtime else tuple(r.name for r in runtimes())


def _in_turn(turns: Sequence[Sequence[Array]]) -> tuple[str, ...]:
    """What the user should know of the timing of a network whose work depends on its input."""
    if turns:
        return (
            "The network does less for some inputs than for others: its latency is the mean over real inputs in turn, "
            "and its energy was not measured.",
        )
    return ("The network does less for some inputs than for others, and there were no real ones to time it on.",)


def _smaller(path: Path, runtime: str) -> tuple[str, ...]:
    """What is stored in fewer bits than it is computed in."""
    if not any(layer.stored != "fp32" and not layer.meant for layer in stored_layers(read_onnx(path))):
        return ()
    return smaller(integer_report(path, runtime), runtime)


def fastest(timed: Mapping[str, Timing]) -> Clocked:
    """What the clock said of one file: in the fastest runtime, and in the others.

    Args:
        timed: by runtime, and the baseline as ``""``, all measured together.
    """
    metrics = {which: _metrics(timed[""], timing) for which, timing in timed.items() if which}
    best = min(metrics, key=lambda which: metrics[which]["latency"].value)
    others = {which: found for which, found in metrics.items() if which != best}
    shaky = [t for t in (timed[""], timed[best]) if not t.reliable]
    return Clocked(best, metrics[best], others, notes=(_unsteady(shaky),) if shaky else ())


def _with_energy(
    clocked: Clocked, original: Session, session: Session, inputs: Sequence[Array], threads: int
) -> Clocked:
    """With the joules of an inference and of the original's; a note where the kernel does not tell."""
    why = unavailable()
    if why:
        return replace(clocked, notes=(*clocked.notes, f"{why}."))
    with pinned(threads):
        theirs, own = (measure_energy(each.prepared(inputs)) for each in (original, session))
    more = {
        "energy": own,
        "energy_ratio": metric("energy_ratio", theirs.value / own.value, "measured", n=own.n, how=own.how),
        "edp": metric("edp", own.value * clocked.metrics["latency"].value, "measured", n=own.n, how="their product"),
    }
    return replace(clocked, metrics={**clocked.metrics, **more})


def _fell_back(file: Path, runtime: str, batch: int) -> tuple[str, ...]:
    """A sentence that names what ExecuTorch runs outside XNNPACK; nothing for other runtimes."""
    if runtime != "executorch":
        return ()
    from trimtab.run.pte import outside  # brings torch

    names = outside(file, batch)
    told = ", ".join(names)
    return (f"ExecuTorch runs these outside XNNPACK, in portable kernels that are not tuned: {told}.",) if names else ()


def _unsteady(timings: Sequence[Timing]) -> str:
    spread = max(t.spread for t in timings)
    if any(t.inputs for t in timings):
        return f"The latency is unreliable: repeats of the same input, or the original's, spread by {spread:.0%}."
    width = max((t.interval[1] - t.interval[0]) / t.median_s for t in timings)
    return (
        f"The latency is unreliable: measured twice, its rounds or the original's still spread by {spread:.0%}, "
        f"and the 95 % interval of a median is {width:.0%} wide."
    )


def _metrics(baseline: Timing, timing: Timing) -> dict[str, Metric]:
    times = {"latency": latency(timing), "latency_ratio": ratio(baseline, timing)}
    return {**times, "throughput": throughput(timing), "cost": cost(timing)}


def _check_threads(threads: int) -> None:
    usable = machine().usable
    if threads > usable:
        raise InputError("target: threads", got=threads, expected=f"at most {usable}: the cores this process may use")
