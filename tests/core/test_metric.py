"""Quantities need units, and metrics keep theirs."""

from __future__ import annotations

import pytest

from trimtab.core.errors import InputError
from trimtab.core.metric import Metric, metric, quantity, show


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("2ms", "s", 0.002),
        ("300 us", "s", 3e-4),
        ("1.5MB", "byte", 1.5e6),
        ("1MiB", "byte", 2**20),
        ("300uJ", "J", 3e-4),
        ("1e3/s", "1/s", 1000.0),
        ("90%", "fraction", 0.9),
        ("0.9", "fraction", 0.9),
        ("4x", "1", 4.0),
    ],
)
def test_quantities(text: str, unit: str, value: float) -> None:
    assert quantity(text, unit) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "unit"),
    [("2", "s"), ("2ms", "byte"), ("", "s"), ("ms", "s"), ("1.2.3s", "s"), ("5%", "byte"), ("nan", "1")],
)
def test_a_bare_or_wrong_quantity_is_refused(text: str, unit: str) -> None:
    with pytest.raises(InputError, match="expected a number in"):
        quantity(text, unit)


def test_json_round_trip() -> None:
    found = metric("latency", 0.002, "measured", n=30, interval=(0.0019, 0.0021), how="by the clock")
    assert found.unit == "s"
    assert found.direction == "down"
    assert Metric.of_json(found.json()) == found
    assert "split" not in found.json()


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(InputError, match="wattage"):
        metric("wattage", 1, "measured")


def test_figures_for_people() -> None:
    assert show(0.00056, "s") == "560 us"
    assert show(3_614_155, "byte") == "3.61 MB"
    assert show(0.9076, "fraction") == "90.76 %"
    assert show(2.25, "1") == "2.25"
