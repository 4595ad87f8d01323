import logging

import pytest
import torch

from tests.hardware.test_accelerator import ARRAY, four
from tests.run.networks import images, quantised, residual
from tests.run.test_described import pointed
from trimtab.core.errors import NotRunnable, RuntimeMissing
from trimtab.core.target import Target
from trimtab.graph.capture import capture
from trimtab.hardware.accelerator import accelerators
from trimtab.hardware.layer import Layer
from trimtab.run import zigzag as module
from trimtab.run.mapping import mapped, shape_of
from trimtab.run.zigzag import ZigZag

pytest.importorskip("zigzag")

CATALOGUE = accelerators()


def conv(inputs, outputs, kernel, side, groups=1, stride=1):
    pads = (kernel // 2, kernel // 2)
    return Layer(inputs, outputs, (kernel, kernel), (side, side), (stride, stride), pads, (1, 1), groups)


def by_name(name):
    return next(a for a in CATALOGUE if a.name == name)


def test_a_layer_computed_by_hand(tmp_path):
    # 4 -> 4 channels, 1x1, on 4x4: 256 multiply-adds on 16 multipliers, all weights in place at once
    made = four(tmp_path)
    layer = conv(4, 4, 1, 4)
    own = mapped(made, layer)
    assert made.ideal_cycles(layer) == 16
    assert own.spatial == "outputs 4 | inputs 4"
    assert 16 <= own.cycles <= 24  # and a few to load 16 weights and store the last outputs
    assert own.utilisation == pytest.approx(16 / own.cycles)
    joules = dict(own.buffers)
    assert joules["DRAM"] == pytest.approx(16 * 100e-12)  # each weight once; all else stays in the buffer
    assert joules["buffer"] == pytest.approx((64 + 64) * 2e-12)  # 64 inputs read once, 64 outputs written once
    assert own.joules == pytest.approx(256 * 1e-12 + sum(joules.values()))


def test_what_does_not_stay_in_the_buffer_goes_to_dram(tmp_path):
    small = four(tmp_path, ARRAY.replace("capacity = 1024", "capacity = 64"))
    own = dict(mapped(small, conv(4, 4, 1, 4)).buffers)
    assert own["DRAM"] == pytest.approx((16 + 64 + 64) * 100e-12)


@pytest.mark.parametrize("accelerator", CATALOGUE, ids=lambda a: a.name)
@pytest.mark.parametrize(
    "layer",
    [
        conv(3, 8, 3, 12), conv(8, 16, 3, 12, stride=2), conv(16, 16, 3, 8, groups=16), conv(16, 16, 1, 8, groups=4),
        Layer(20, 10, spatial=(1,)), Layer(32, 64, spatial=(7,)), conv(5, 7, 3, 11), conv(1, 1, 1, 1),
        Layer(4, 8, (5,), (40,), (1,), (2,), (1,)),
    ],
    ids=shape_of,
)  # fmt: skip
def test_no_layer_beats_its_bounds(accelerator, layer):
    own = mapped(accelerator, layer)
    assert own.cycles >= accelerator.ideal_cycles(layer)
    assert 0 < own.utilisation <= 1
    # every multiply-add, and every weight read from the farthest memory once
    floor = layer.macs * accelerator.energy + layer.weights * accelerator.buffers[-1].energy
    assert own.joules >= 0.999 * floor


def test_twice_the_channels_take_twice_the_cycles_where_the_array_is_full():
    array = by_name("fpga-like")
    once, twice = (mapped(array, conv(24, n, 3, 16)) for n in (32, 64))
    assert twice.cycles / once.cycles == pytest.approx(2, rel=0.15)
    assert twice.joules / once.joules == pytest.approx(2, rel=0.15)


def test_a_batch_costs_more_than_a_sample():
    array = by_name("edge-tpu-like")
    layer = Layer(64, 64, spatial=(1,))
    one, eight = mapped(array, layer), mapped(array, layer, 8)
    assert one.joules < eight.joules < 8 * one.joules  # the weights are read once


def test_depthwise_leaves_a_systolic_array_idle():
    dense, depthwise = (mapped(by_name("tpu-like"), conv(64, 64, 3, 16, g)) for g in (1, 64))
    assert depthwise.cycles > dense.cycles
    assert depthwise.utilisation < 0.01


def test_a_layer_that_does_not_fit_is_named(tmp_path):
    tiny = four(tmp_path, ARRAY.replace("capacity = 65536", "capacity = 100"))
    with pytest.raises(NotRunnable, match="conv 16 -> 16, kernel 3x3, on 16x16"):
        mapped(tiny, conv(16, 16, 3, 16))
    with pytest.raises(NotRunnable, match="3 dimensions"):
        mapped(tiny, Layer(2, 2, (1, 1, 1), (2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network as it is, and in int8."""
    folder = tmp_path_factory.mktemp("accelerated")
    model, graph = residual()
    made = {"fp32": graph, "int8": quantised(model, images(8))}
    return {name: pointed(made[name], folder / name) for name in made}


def test_a_quantised_network_end_to_end(files, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    device = ZigZag(by_name("eyeriss-like"))
    target = Target("eyeriss-like")
    clocked = device.clock(files["int8"], {"a": files["int8"]}, target, [])["a"]
    metrics, rows = clocked.metrics, clocked.layers
    assert clocked.runtime == "zigzag"
    assert all(m.source == "modelled" and "ZigZag" in m.how for m in metrics.values())
    assert metrics["latency_ratio"].value == metrics["energy_ratio"].value == 1
    assert metrics["latency"].value == pytest.approx(sum(r["cycles"] for r in rows) / 200e6)
    assert metrics["energy"].value == pytest.approx(sum(r["joules"] for r in rows))
    assert metrics["edp"].value == pytest.approx(metrics["energy"].value * metrics["latency"].value)
    named = {r["name"]: r for r in rows}
    assert {"stem", "conv1", "conv2"} <= set(named)
    assert named["stem"]["macs"] == 3 * 8 * 9 * 144
    assert "kernel_y 3" in named["stem"]["spatial"]
    # the table of layers alone says the same as the network
    alone = device.layers([conv(3, 8, 3, 12)], "int8", target)[conv(3, 8, 3, 12)]
    assert named["stem"]["seconds"] == pytest.approx(alone["latency"])
    assert named["stem"]["joules"] == pytest.approx(alone["energy"])
    # silent, and nothing written
    out = capfd.readouterr()
    assert (out.out, out.err, list(tmp_path.iterdir())) == ("", "", [])
    assert logging.getLogger("zigzag").level == logging.NOTSET


def test_addition_and_pooling_cost_the_bytes_they_move(files):
    device = ZigZag(by_name("fpga-like"))
    rows = device.clock(files["int8"], {"a": files["int8"]}, Target("fpga-like"), [])["a"].layers
    added = next(r for r in rows if r["operator"].startswith("add"))
    moved = 3 * 16 * 36  # two inputs and an output of 16 channels on 6x6, a byte each
    assert added["cycles"] == pytest.approx(moved / 14.2)
    assert added["joules"] == pytest.approx(moved * 1.63e-10)


def test_a_layer_in_floating_point_is_named(files):
    with pytest.raises(NotRunnable, match="stem"):
        ZigZag(CATALOGUE[0]).clock(files["fp32"], {"a": files["fp32"]}, Target("edge-tpu-like"), [])


def test_the_name_of_a_layer_that_does_not_map_is_the_networks_own(files, tmp_path):
    tiny = four(tmp_path, ARRAY.replace("capacity = 65536", "capacity = 100"))
    with pytest.raises(NotRunnable, match="stem, conv 3 -> 8"):
        ZigZag(tiny).clock(files["int8"], {"a": files["int8"]}, Target("four"), [])


def test_without_zigzag_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    device = ZigZag(CATALOGUE[0])
    with pytest.raises(RuntimeMissing, match=r"trimtab\[accelerator\]"):
        device.layers([conv(1, 1, 1, 1)], "int8", Target("edge-tpu-like"))


def test_shapes_of_a_quantised_network_are_those_of_the_original():
    from trimtab.run.shapes import calls

    model, graph = residual()
    before = [(c.name, c.layer) for c in calls(graph)]
    after = [(c.name, c.layer) for c in calls(quantised(model, images(8)))]
    assert before == after
    assert before[0] == ("stem", conv(3, 8, 3, 12))


def test_a_bare_layer_is_called_by_its_node():
    from trimtab.run.shapes import calls

    graph = capture(torch.nn.Linear(4, 2).eval(), (torch.zeros(2, 4),))
    (call,) = calls(graph)
    assert (call.weight, call.name, call.layer) == ("weight", call.node, Layer(4, 2, spatial=(1,)))
