"""What each layer costs: read from a report, and shown."""

import pytest

from tests.report.sample import costs, report
from tests.report.test_page import text
from trimtab.core.errors import FileError
from trimtab.report import parse
from trimtab.report.costs import costs as section
from trimtab.report.page import page


def told(rows, **goal):
    data = report()
    next(p for p in data["points"] if p["name"] == data["chosen"])["costs"] = rows
    data["goal"] |= goal
    return parse(data)


def test_rows_are_read_as_figures_and_words():
    conv, _, head = told(costs()).winner.costs
    assert (conv.name, conv.figures["cycles"], conv.words["kind"]) == ("conv1", 30000, "Conv2D")
    assert (head.figures, head.words["runs_on"]) == ({}, "the processor beside")


def test_each_layer_has_its_share_and_what_fell_back_is_named():
    words = text(section(told(costs())))
    for said in ("share of the time", "75.0%", "25.0%", "30,000", "60 us", "442 k", "2 uJ", "1 fell back", ": head."):
        assert said in words, said
    assert "each figure is measured" in words  # as the latency of the sample is


def test_the_bars_are_of_energy_where_that_was_minimised():
    markup = section(told(costs(), minimise="energy"))
    assert "share of the energy" in text(markup)
    assert "--of: 33.3%" in markup  # 2 uJ of the 6 of the largest
    assert "25.0%" in text(markup)


def test_another_machine_is_told_with_its_address():
    data = report()
    data["machine"] = {"address": "http://board:7070", "processor": "Cortex-A76"}
    words = text(page(parse(data)))
    assert "the machine at this address" in words
    assert "http://board:7070" in words


def test_a_device_that_tells_of_no_layers_has_no_such_section():
    assert section(parse(report())) is None
    assert "What each layer costs" not in page(parse(report()))
    assert "What each layer costs" in page(told(costs()))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"name": 3}, "name"),
        ({"name": "a", "seconds": "NaN", "cycles": [1]}, "cycles"),
        ({"name": "a", "seconds": True}, "seconds"),
        ({"seconds": 1.0}, "name"),
        ("conv1", "costs[0]"),
    ],
)
def test_a_wrong_row_is_named(row, expected):
    with pytest.raises(FileError) as caught:
        told([row])
    assert expected in str(caught.value)
