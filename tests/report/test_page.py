"""The page: what it says, and that no text of a report becomes markup."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest

from tests.report.sample import report
from trimtab.core.errors import FileError
from trimtab.report import parse, write
from trimtab.report.html import element, joined
from trimtab.report.page import page
from trimtab.report.plots import front, minutes, share_left
from trimtab.report.read import Layer

HOSTILE = '<script>alert("x")</script>\' onload=alert(1) <img src=x onerror=alert(2)>'


class Tags(HTMLParser):
    """The elements of a page, with what is never closed, and its visible text."""

    def __init__(self):
        super().__init__()
        self.seen, self.open, self.words, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(markup):
    found = Tags()
    found.feed(markup)
    found.close()
    assert found.open == []
    return found


def text(markup):
    return " ".join(" ".join(read(markup).words).split())


def test_the_page_says_what_the_report_says():
    words = text(page(parse(report())))
    for said in (
        "ResNet-56 on CIFAR-10", "goal met", "90.04 %", "5.37x", "8.69x", "0.84 points lost against the control",
        "231 us", "398 kB", "measured, n = 5,000, test", "modelled", "openvino", "RemoveBlocks", "layer3.7.conv2",
        "removed", "its weights stay in floating point", "NotInteger: layer2.0.conv1 runs in fp32", "AMD EPYC",
        "trimtab verify", "24 min 40 s", "at most 1.00 points lost", "at most 500 kB", "95 % in 5.21x to 5.53x",
    ):  # fmt: skip
        assert said in words, said


def test_a_goal_that_is_not_met_names_what_binds():
    data = report() | {"met": False, "binding": "latency_ratio"}
    assert "goal not met: times faster binds" in text(page(parse(data)))


def test_the_page_needs_nothing_beside_it():
    markup = page(parse(report()))
    assert "script" not in read(markup).seen
    assert not {"src", "href", "onload", "onclick"} & set(read(markup).attributes)
    assert not re.search(r"https?://|url\(|@import", markup)


def hostile(value):
    """The same data with every text a reader would see replaced by markup."""
    fixed = {"source", "direction", "schema", "chosen"}
    if isinstance(value, dict):
        return {k: v if k in fixed else hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text():
    data = hostile(report())
    for point in data["points"]:
        point["metrics"][HOSTILE] = copy.deepcopy(point["metrics"]["score"])
    data["machine"][HOSTILE] = HOSTILE
    data["goal"]["at_most"][HOSTILE] = 1.0
    data["chosen"] = HOSTILE
    found = read(page(parse(data)))
    assert not {"script", "img"} & set(found.seen)
    assert not {"onload", "onerror", "src"} & set(found.attributes)
    assert "alert" in " ".join(found.words)


@pytest.mark.parametrize("missing", ["points", "layers", "timeline", "failed", "notes"])
def test_a_page_without_a_part_leaves_it_out(missing):
    words = text(page(parse(report() | {missing: []})))
    assert "ResNet-56" in words


def test_a_task_without_a_score_has_a_page():
    data = report()
    for each in (data["baseline"], data["control"], *data["points"]):
        each["metrics"].pop("score", None)
        each["metrics"].pop("agreement", None)
    words = text(page(parse(data)))
    assert "points lost against" not in words
    assert "5.37x" in words


def test_a_score_where_less_is_better():
    data = report()
    for each in (data["baseline"], data["control"], *data["points"]):
        each["metrics"]["score"] |= {"direction": "down", "unit": "1", "value": 20 + each["metrics"]["score"]["value"]}
    data["points"][4]["metrics"]["score"]["value"] = 25.0
    words = text(page(parse(data)))
    assert "lost against the original" in words
    assert "the goal allows no more" in words


def test_the_picture_has_a_mark_for_each_network():
    picture = front(parse(report()))
    assert picture.count("<circle") == 8  # seven points and the control
    assert picture.count('class="point chosen"') == 1
    assert "times faster 5.37x (measured)" in picture


def test_marks_lie_where_their_figures_are():
    data = report()
    data["points"] = [data["points"][0], data["points"][4]]
    data |= {"control": None}
    data["goal"] |= {"max_drop": None, "at_least": {}}
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', front(parse(data)))]
    # the two ends of an axis from 72 to 834 px with 9 % of air on each side
    assert sorted(places) == pytest.approx([72 + 762 * 0.09 / 1.18, 834 - 762 * 0.09 / 1.18], abs=0.01)


def test_one_network_is_no_picture():
    data = report() | {"points": [], "control": None}
    assert front(parse(data)) is None


def test_the_same_figures_everywhere_still_make_a_picture():
    data = report()
    for each in data["points"]:
        each["metrics"] = copy.deepcopy(data["points"][0]["metrics"])
    assert "NaN" not in front(parse(data))


def test_share_of_weights_left():
    assert share_left(Layer("a", (16, 8, 3, 3), (8, 8, 3, 3), "int8")) == 0.5
    assert share_left(Layer("a", (16, 8), None, "")) == 0.0
    assert share_left(Layer("a", (0, 8), (0, 8), "")) == 0.0


@pytest.mark.parametrize(("seconds", "told"), [(3.25, "3.2 s"), (42, "42 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")])
def test_minutes(seconds, told):
    assert minutes(seconds) == told


def test_text_is_escaped_and_elements_are_not():
    made = element("p", "a < b", element("b", "&"), class_='"x"', title=None)
    assert made == '<p class="&quot;x&quot;">a &lt; b<b>&amp;</b></p>'
    assert joined(["<", made])[:4] == "&lt;"


def test_write_puts_the_page_beside_the_report(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report()))
    path = write(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text().startswith("<!doctype html>")
    assert path.stat().st_size < 200_000


def test_a_sparse_layer_says_how_many_of_its_weights_are_zero():
    data = report()
    data["layers"][0]["zeros"] = 0.75
    made = parse(data)
    assert made.layers[0].zeros == 0.75
    assert share_left(made.layers[0]) == 0.25
    assert "int8, 75 % zeros" in str(page(made))
    data["layers"][0]["zeros"] = "many"
    with pytest.raises(FileError, match="zeros"):
        parse(data)
