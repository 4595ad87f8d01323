"""What every device that a target can name keeps."""

from __future__ import annotations

import numpy as np
import pytest

from tests.run.networks import images, quantised, residual
from trimtab.core.metric import METRIC_NAMES
from trimtab.core.target import parse
from trimtab.graph.save import save
from trimtab.hardware.layer import Layer
from trimtab.pipeline.devices import device_of, devices, family_of, name_of, title_of
from trimtab.run.device import MODEL
from trimtab.run.export import export_onnx

DEVICES = devices()
SLOW = {"inductor": pytest.mark.slow, "executorch": pytest.mark.slow}  # they compile
USABLE = [pytest.param(d, id=name_of(d), marks=SLOW.get(name_of(d), ())) for d in DEVICES if d.available() is None]
LAYERS = (Layer(8, 16, (3, 3), (12, 12), (1, 1), (1, 1), (1, 1)), Layer(32, 10, (), (1,)))


@pytest.fixture(scope="module")
def point(tmp_path_factory):
    """A network quantised for what a device runs in integers, as a point's files."""
    made = {}

    def of(device):
        key = id(device.support)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("point") / MODEL
            graph = quantised(residual()[0], images(8), device.support)
            save(graph, made[key].parent)
            export_onnx(graph, made[key])
        return made[key]

    return of


def test_there_are_devices():
    assert len(USABLE) >= 10
    assert {d.source for d in DEVICES} == {"measured", "modelled"}


def test_names_are_unique():
    names = [name_of(d) for d in DEVICES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("device", [pytest.param(d, id=name_of(d)) for d in DEVICES])
def test_a_device_that_cannot_be_used_says_what_is_missing(device):
    missing = device.available()
    assert missing is None or len(missing) > 10
    assert family_of(device)
    assert title_of(device)


@pytest.mark.parametrize("device", USABLE)
def test_its_name_is_a_target(device):
    target = parse(name_of(device))
    assert target.name == name_of(device)
    found = device_of(target)
    assert (name_of(found), found.version()) == (name_of(device), device.version())


@pytest.mark.parametrize("device", USABLE)
def test_what_it_says_of_itself(device):
    assert device.source in ("measured", "modelled")
    assert device.precisions
    assert set(device.precisions) <= {"fp32", "int8"}
    assert "latency" in device.minimises
    assert set(device.minimises) <= set(METRIC_NAMES)
    assert device.support.bits


@pytest.mark.parametrize("device", USABLE)
def test_a_network_against_itself(device, point):
    if "int8" not in device.precisions:
        pytest.skip("it has no int8")
    point, inputs = point(device), [images(1).numpy().astype(np.float32)]
    clocked = device.clock(point, {"same": point}, parse(name_of(device)), inputs, 0.2)["same"]
    for metrics in (clocked.metrics, *clocked.others.values()):
        assert {m.source for m in metrics.values()} == {device.source}
        assert all(m.value > 0 for m in metrics.values())
        assert {"latency", "latency_ratio", "throughput"} <= set(metrics)
    assert set(device.minimises) <= set(clocked.metrics)
    ratios = {name: m.value for name, m in clocked.metrics.items() if name.endswith("_ratio")}
    if device.source == "modelled":
        assert all(value == pytest.approx(1.0) for value in ratios.values())
    device.check(point, clocked.runtime)
    kept = device.artifact(point)
    assert kept
    assert all(path.is_file() for path in kept)


@pytest.mark.parametrize("device", USABLE)
def test_layers_alone_cost_something(device):
    target = parse(name_of(device))
    for precision in device.precisions:
        found = device.layers(LAYERS, precision, target)
        assert set(found) == set(LAYERS)
        assert all(each["latency"] > 0 for each in found.values())
        if "energy" in device.minimises:
            assert all(each["energy"] > 0 for each in found.values())
