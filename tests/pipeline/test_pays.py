"""Pays: of two timings, the ratio to the original that each was timed beside decides, by its interval."""

import pytest

from trimtab.core.metric import metric
from trimtab.pipeline.pays import faster
from trimtab.run.device import Clocked


def clocked(seconds: float, ratio: float | None = None, spread: float = 0.01) -> Clocked:
    around = {"latency": seconds} if ratio is None else {"latency": seconds, "latency_ratio": ratio}
    return Clocked(
        "onnxruntime",
        {
            name: metric(name, value, "measured", n=9, interval=(value * (1 - spread), value * (1 + spread)))
            for name, value in around.items()
        },
    )


@pytest.mark.parametrize(
    ("a", "b", "wins"),
    [
        (clocked(0.9), clocked(1.0), True),
        (clocked(1.0), clocked(0.9), False),
        (clocked(0.99), clocked(1.0), False),  # within the intervals
        (clocked(1.2, ratio=2.2), clocked(1.0, ratio=2.0), True),  # the machine was slower by then, the original too
        (clocked(0.9, ratio=2.0), clocked(1.0, ratio=2.0), False),
        (clocked(0.9, ratio=2.2), clocked(1.0), True),  # one has no ratio: seconds decide
    ],
)
def test_faster_is_beyond_both_intervals_and_by_ratios_where_there_are_some(a: Clocked, b: Clocked, wins: bool) -> None:
    assert faster(a, b) is wins
