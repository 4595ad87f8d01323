"""A report.json from a stranger: read whole, or refused in one line."""

import copy
import json

import pytest

from tests.report.sample import report
from trimtab.core.errors import FileError
from trimtab.report import parse, read


def put(data, path, value):
    """A copy of the data with one value replaced."""
    made = copy.deepcopy(data)
    here = made
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return made


def test_everything_in_a_report_is_read():
    found = parse(report())
    assert (found.task, found.chosen, found.met, found.runtime) == ("ResNet-56 on CIFAR-10", "plan-3", True, "openvino")
    assert [p.name for p in found.points][:2] == ["original", "int8"]
    assert found.winner.metrics["score"].interval == (0.9004 - 0.008, 0.9004 + 0.008)
    assert found.layers[0].before == (16, 3, 3, 3)
    assert next(x.name for x in found.layers if x.after is None) == "layer1.4.conv1"
    assert found.timeline[0] == ("prepare", 21.4)
    assert found.goal["at_least"] == {"latency_ratio": 5.0}


def test_a_drop_counts_from_the_better_of_original_and_control():
    found = parse(report())
    assert found.reference["score"].value == 0.9088
    assert parse(put(report(), ["control"], None)).reference["score"].value == 0.9076
    lower = parse(put(report(), ["control", "metrics", "score", "value"], 0.90))
    assert lower.reference["score"].value == 0.9076


def test_what_may_be_absent_may_be_absent():
    data = report()
    for key in ("notes", "layers", "timeline", "control", "runtime", "failed", "machine"):
        del data[key]
    found = parse(data)
    assert (found.notes, found.layers, found.timeline, found.control, found.failed) == ((), (), (), None, ())


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["schema"], 2, "schema"),
        (["task"], 7, "task"),
        (["met"], "yes", "met"),
        (["points"], {}, "points"),
        (["points", 0, "metrics", "score", "value"], "0.9", "points[0]: metrics: score: value"),
        (["points", 0, "metrics", "score", "value"], True, "points[0]: metrics: score: value"),
        pytest.param(
            ["points", 0, "metrics", "score", "value"], 10**400, "points[0]: metrics: score: value", id="huge"
        ),
        (["points", 0, "metrics", "score", "source"], "guessed", "measured, modelled or predicted"),
        (["points", 0, "metrics", "score", "direction"], "left", "up or down"),
        (["points", 0, "metrics", "score", "interval"], [1], "two numbers"),
        (["points", 0, "metrics", "score", "n"], 1.5, "a whole number"),
        (["points", 1, "plan"], [{"settings": 1}], "technique"),
        (["points", 1, "files"], [1], "files[0]"),
        (["points", 1, "dropped"], "all", "dropped"),
        (["goal", "at_most"], {"size": "big"}, "goal: at_most: size"),
        (["goal", "max_drop"], [], "max_drop"),
        (["baseline"], None, "baseline"),
        (["layers", 0, "before"], "wide", "layers[0]: before"),
        (["timeline", 0, "seconds"], None, "timeline[0]: seconds"),
        (["failed", 0, "error"], {}, "failed[0]: error"),
        (["machine"], [], "machine"),
        (["seed"], "0", "seed"),
        (["notes"], ["x" * 200_000], "notes[0]"),
    ],
)
def test_a_wrong_field_is_named(path, value, told):
    with pytest.raises(FileError) as caught:
        parse(put(report(), path, value))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "[" * 100_000, '{"schema": 1, "seed": NaN}'])
def test_what_is_no_report_is_one_file_error(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(FileError):
        read(tmp_path)


def test_a_number_that_json_does_not_have_is_refused(tmp_path):
    data = put(report(), ["points", 0, "metrics", "score", "value"], float("nan"))
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(FileError):
        read(tmp_path)


def test_no_report_is_one_file_error(tmp_path):
    with pytest.raises(FileError, match=r"report\.json"):
        read(tmp_path)
