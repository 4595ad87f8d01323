import math
import re
import xml.etree.ElementTree as ET

import pytest

from trimtab.core.errors import InputError
from trimtab.core.metric import Metric, metric
from trimtab.hardware.roofline import Ceilings, Level
from trimtab.profile import Profile, Row
from trimtab.report.picture import Log, named, save
from trimtab.report.roofline import roofline

SVG = "{http://www.w3.org/2000/svg}"


def rate(value):
    return Metric(value, "byte/s", "measured", "up")


CEILINGS = Ceilings(
    "onnxruntime",
    1,
    {"fp32": Metric(1e10, "1/s", "measured", "up"), "int8": Metric(4e10, "1/s", "measured", "up")},
    (Level("L1", 32e3, rate(1e11)), Level("memory", math.inf, rate(1e10))),
    Metric(1e-6, "s", "measured", "down"),
)


def profile(*rows):
    seconds = metric("latency", 1e-3, "measured")
    return Profile("onnxruntime", 1, 1, rows, {"latency": seconds, "kernels": seconds}, CEILINGS, ())


def row(layer, macs, moved, seconds, share, bound="compute", precision="fp32"):
    return Row(0, layer, ("Conv",), "Conv", precision, 10, macs, moved, seconds, share, bound, seconds / 2, 2)


ROWS = (
    row("heavy", 5_000_000, 500_000, 1e-3, 0.6),
    row("light<b>", 100_000, 100_000, 1e-4, 0.15, "memory", "int8"),
    row("nothing", 0, 100_000, 1e-4, 0.25, "memory"),
)


def drawn(*rows):
    return ET.fromstring(str(roofline(profile(*rows), "net")))


def test_a_mark_for_each_layer_that_multiplies_with_its_area_in_proportion():
    picture = drawn(*ROWS)
    circles = [c for c in picture.iter(f"{SVG}g") for c in c.findall(f"{SVG}circle")]
    diamonds = [c for c in picture.iter(f"{SVG}g") for c in c.findall(f"{SVG}polygon")]
    assert [c.get("class") for c in circles] == ["mark one fp32"]
    assert [d.get("class") for d in diamonds] == ["mark two int8"]
    corners = [tuple(map(float, p.split(","))) for p in diamonds[0].get("points").split()]
    width, height = corners[1][0] - corners[3][0], corners[2][1] - corners[0][1]
    assert math.pi * float(circles[0].get("r")) ** 2 / (width * height / 2) == pytest.approx(0.6 / 0.15, rel=0.01)


def test_marks_and_ceilings_lie_where_their_values_are():
    """The fp32 roof is at 10 G/s; 'heavy' reaches 5 G/s at 10 a byte, 'light' 1 G/s at 1: equal steps on both axes."""
    picture = drawn(*ROWS)
    (circle,) = (c for g in picture.iter(f"{SVG}g") for c in g.findall(f"{SVG}circle"))
    ticks = {t.text: t for t in picture.iter(f"{SVG}text")}
    assert float(ticks["10"].get("x")) == pytest.approx(float(circle.get("cx")), abs=0.01)
    roofs = [float(line.get("y1")) for line in picture.iter(f"{SVG}line") if line.get("class") == "roof"]
    labels = {text: float(t.get("y")) - 4 for text, t in ticks.items() if text in ("1 G", "10 G")}
    assert min(abs(r - labels["10 G"]) for r in roofs) < 0.02
    between = labels["10 G"] + (labels["1 G"] - labels["10 G"]) * math.log10(2)
    assert float(circle.get("cy")) == pytest.approx(between, abs=0.05)


def test_what_is_not_drawn_is_told_and_names_cannot_become_markup():
    text = str(roofline(profile(*ROWS), "a<script>"))
    assert "rows without multiply-adds, 25% of the time, are not drawn" in text
    assert "<script>" not in text
    assert "light<b>" not in text
    assert "light&lt;b&gt;" in text


def test_a_network_without_multiply_adds_still_has_its_ceilings():
    picture = drawn(ROWS[2])
    assert not list(picture.iter(f"{SVG}g"))
    assert sum(line.get("class") == "roof" for line in picture.iter(f"{SVG}line")) == 2


def test_a_logarithmic_axis():
    axis = Log(1.0, 100.0, 0.0, 200.0)
    assert [axis(v) for v in (1.0, 10.0, 100.0)] == pytest.approx([0.0, 100.0, 200.0])
    assert axis.ticks == pytest.approx((1, 2, 5, 10, 20, 50, 100))
    assert Log(1.0, 1e8, 0.0, 1.0).ticks == pytest.approx([10.0**p for p in range(9)])


def test_names_do_not_lie_on_each_other():
    crowded = named([(f"layer{i}", 400.0 + i, 300.0, 5.0) for i in range(30)], [])
    spots = [tuple(float(v) for v in re.findall(r' [xy]="([-\d.]+)"', str(part))) for part in crowded]
    assert 2 <= len(spots) < 30
    for i, (x, y) in enumerate(spots):
        assert all(abs(x - a) > 40 or abs(y - b) >= 12 for a, b in spots[:i])


def test_a_picture_is_svg_or_html(tmp_path):
    made = roofline(profile(*ROWS), "net")
    save(made, tmp_path / "a.svg")
    assert ET.parse(tmp_path / "a.svg").getroot().tag == f"{SVG}svg"
    save(made, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    with pytest.raises(InputError, match=r"\.svg or \.html"):
        save(made, tmp_path / "a.png")
