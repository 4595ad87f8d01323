"""Row: one layer of a profile, as the runtime executes it."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.hardware.roofline import Side


@dataclass(frozen=True)
class Row:
    """One layer, or chain of fused operators, as the runtime executes it.

    Args:
        position: in the order of execution.
        layer: the user's name of the layer that computes most; for an operator without parameters, what it follows.
        kinds: the operators computed together.
        kernel: what computed them: an operator of ONNX Runtime, a primitive of OpenVINO.
        precision: `int8` or `fp32`.
        parameters: elements.
        macs: multiply-adds.
        bytes: moved: parameters, inputs and outputs, each once.
        seconds: median, by the runtime's profiler.
        share: of the sum of all rows' seconds.
        bound: what binds it; None for a conversion that the runtime added, whose bytes it doesn't tell.
        least: seconds that its ceiling allows; 0 where `bound` is None.
        power: of the channels that its multiply-adds grow with: 2 in a dense layer, 1 where each channel has a filter
            of its own or one side belongs to the network's input or output, 0 where nothing can be cut.
    """

    position: int
    layer: str
    kinds: tuple[str, ...]
    kernel: str
    precision: str
    parameters: int
    macs: int
    bytes: int
    seconds: float
    share: float
    bound: Side | None
    least: float
    power: int = 0

    @property
    def intensity(self) -> float:
        """Multiply-adds per byte moved; 0 where nothing moves."""
        return self.macs / self.bytes if self.bytes else 0.0

    @property
    def rate(self) -> float:
        """Multiply-adds per second that it reaches; 0 where it takes no time that the clock sees."""
        return self.macs / self.seconds if self.seconds > 0 else 0.0

    @property
    def achieved(self) -> float | None:
        """Share of its ceiling that the row reaches: least time over measured time; None without a ceiling.

        It can be above 1: the profiler's clock counts whole microseconds, and the probe's shapes are not all shapes.
        """
        return self.least / self.seconds if self.bound is not None and self.seconds > 0 else None
