import math

import pytest

from trimtab.core.errors import FileError, InputError
from trimtab.core.metric import Metric
from trimtab.hardware.roofline import Ceilings, Level, attainable, bound, level_of, ridge


def measured(value, unit, direction="up"):
    return Metric(value, unit, "measured", direction, n=5)


CEILINGS = Ceilings(
    runtime="onnxruntime",
    threads=1,
    peak={"fp32": measured(100e9, "1/s"), "int8": measured(400e9, "1/s")},
    levels=(
        Level("L1", 32e3, measured(200e9, "byte/s")),
        Level("L2", 1e6, measured(50e9, "byte/s")),
        Level("memory", math.inf, measured(10e9, "byte/s")),
    ),
    overhead=measured(1e-6, "s", "down"),
)


def test_the_roof_is_the_lower_of_its_two_sides():
    assert attainable(100.0, 10.0, 4.0) == 40.0
    assert attainable(100.0, 10.0, 10.0) == 100.0 == attainable(100.0, 10.0, 1000.0)


def test_both_sides_meet_at_the_ridge():
    at = ridge(100e9, 10e9)
    assert at == 10.0
    assert attainable(100e9, 10e9, at) == 100e9
    assert attainable(100e9, 10e9, at / 2) == 50e9


def test_the_nearest_level_that_holds_the_bytes_is_taken():
    names = [level_of(CEILINGS.levels, n).name for n in (1, 32e3, 32e3 + 1, 1e6, 1e9)]
    assert names == ["L1", "L1", "L2", "L2", "memory"]


def test_finite_levels_only_end_at_the_farthest():
    assert level_of(CEILINGS.levels[:2], 1e9).name == "L2"


def test_compute_binds_above_the_ridge():
    found = bound(CEILINGS, "fp32", macs=1e9, moved=100e3)  # 10 ms of arithmetic, 2 us of copying
    assert (found.by, found.seconds) == ("compute", pytest.approx(1e-2))


def test_int8_raises_the_roof():
    assert bound(CEILINGS, "int8", 1e9, 100e3).seconds == pytest.approx(2.5e-3)


def test_memory_binds_below_the_ridge():
    found = bound(CEILINGS, "fp32", macs=50e6, moved=100e6)  # 0.5 ms of arithmetic, 10 ms from memory
    assert (found.by, found.seconds) == ("memory", pytest.approx(1e-2))


def test_overhead_binds_where_there_is_next_to_nothing_to_do():
    found = bound(CEILINGS, "fp32", macs=1000, moved=1000)
    assert (found.by, found.seconds) == ("overhead", 1e-6)


def test_the_bound_is_the_roofline_turned_into_time():
    macs, moved = 3e8, 2e6
    rate = attainable(100e9, 10e9, macs / moved)
    assert bound(CEILINGS, "fp32", macs, moved).seconds == pytest.approx(macs / rate)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="got int4, expected one of fp32, int8"):
        bound(CEILINGS, "int4", 1, 1)


def test_no_levels_are_refused():
    with pytest.raises(InputError, match="no memory levels"):
        level_of((), 1)


def test_json_comes_back_the_same():
    assert Ceilings.of_json(CEILINGS.json()) == CEILINGS


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("peak"),
        lambda d: d.update(levels=3),
        lambda d: d["levels"][0].pop("value"),
        lambda d: d["levels"][0].update(surprise=1),
        lambda d: d.update(threads="many"),
        lambda d: d.update(overhead=None),
    ],
)
def test_damaged_json_is_a_file_error(damage):
    data = CEILINGS.json()
    damage(data)
    with pytest.raises(FileError, match="ceilings"):
        Ceilings.of_json(data, "probe.json")


@pytest.mark.parametrize("data", [None, [], "text", {}])
def test_other_json_is_a_file_error(data):
    with pytest.raises(FileError, match="ceilings"):
        Ceilings.of_json(data)
