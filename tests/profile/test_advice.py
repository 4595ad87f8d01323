import math

import pytest
import torch
from torch import nn

from trimtab.core.metric import Metric
from trimtab.core.target import Target
from trimtab.graph.capture import capture
from trimtab.hardware.roofline import Ceilings, Level, bound
from trimtab.profile import Row, profile
from trimtab.profile.advice import advice, gains

# 1 GMAC/s in fp32, 4 in int8; 1 GB/s; 1 us a node: the ridge is at 1 multiply-add per byte.
CEILINGS = Ceilings(
    "onnxruntime",
    1,
    {name: Metric(rate, "1/s", "measured", "up") for name, rate in (("fp32", 1e9), ("int8", 4e9))},
    (Level("memory", math.inf, Metric(1e9, "byte/s", "measured", "up")),),
    Metric(1e-6, "s", "measured", "down"),
)


def row(macs, moved, parameters, power, precision="fp32", slower=2.0, **more):
    limit = bound(CEILINGS, precision, macs, moved)
    values = {"kinds": ("Conv",), "kernel": "Conv", "bound": limit.by, "least": limit.seconds, **more}
    return Row(0, "layer", values.pop("kinds"), values.pop("kernel"), precision, parameters, macs, moved,
               slower * limit.seconds, 1.0, values["bound"], values["least"], power)  # fmt: skip


def test_a_compute_bound_convolution():
    # 10 ms; int8: max(2.5 ms, 0.25 ms); a quarter of the multiply-adds: 2.5 ms
    found = row(10_000_000, 1_000_000, 10_000, 2)
    assert found.bound == "compute"
    assert gains(found, CEILINGS) == {"int8": pytest.approx(4.0), "half the channels": pytest.approx(4.0)}
    assert advice(found, CEILINGS) == "int8 4.0x, half the channels 4.0x"


def test_int8_gains_no_more_than_memory_allows():
    # 1 ms of compute, 0.9 ms of memory: in int8 0.25 and 0.225
    balanced = gains(row(1_000_000, 900_000, 1000, 2), CEILINGS)
    assert balanced["int8"] == pytest.approx(4.0)
    # half the channels: 0.25 ms of compute, but (0.9 MB - 4 kB) / 2 + 1 kB = 449 kB
    assert balanced["half the channels"] == pytest.approx(1e-3 / 449e-6)


def test_a_memory_bound_depthwise_layer_gains_little_from_fewer_channels():
    found = row(900_000, 8_000_000, 900, 1)
    assert found.bound == "memory"
    assert gains(found, CEILINGS)["half the channels"] == pytest.approx(2.0)
    assert gains(found, CEILINGS)["int8"] == pytest.approx(4.0)
    assert advice(found, CEILINGS) == "int8 4.0x, fewer channels gain little: half the channels 2.0x, not 4x"


def test_a_linear_layer_at_batch_one_is_bound_by_its_weights():
    found = row(1_000_000, 4_008_000, 1_000_000, 2)
    assert found.bound == "memory"
    assert gains(found, CEILINGS)["half the channels"] == pytest.approx(4_008_000 / (1_000_000 + 4000))
    assert "weights are 100% of its bytes: larger batch, lower rank" in advice(found, CEILINGS)


def test_what_is_already_int8_is_not_told_to_become_it():
    found = row(10_000_000, 250_000, 10_000, 2, precision="int8")
    assert set(gains(found, CEILINGS)) == {"half the channels"}
    assert advice(found, CEILINGS) == "already int8, half the channels 4.0x"


def test_below_the_cost_of_a_node_only_removal_helps():
    found = row(100, 100, 10, 2)
    assert found.bound == "overhead"
    assert gains(found, CEILINGS) == {"int8": 1.0, "half the channels": 1.0}
    assert advice(found, CEILINGS) == "remove or merge it: below the cost of a node (1 us)"


def test_what_only_moves_bytes_and_what_the_runtime_added():
    assert advice(row(0, 5_000_000, 0, 0, kinds=("Add",)), CEILINGS) == "fuse or remove it: it only moves 5 MB"
    added = row(0, 0, 0, 0, bound=None, least=0.0)
    assert gains(added, CEILINGS) == {}
    assert "layout" in advice(added, CEILINGS)


def test_far_below_its_ceiling_the_kernel_is_named():
    assert "far below" in advice(row(10_000_000, 1_000_000, 10_000, 2, slower=5.0), CEILINGS)
    assert "far below" not in advice(row(10_000_000, 1_000_000, 10_000, 2, slower=3.0), CEILINGS)


def test_a_network_with_depthwise_and_dense_layers():
    """stem reads the input: power 1; depthwise 1; dense 2; head gives the output: 1."""
    layers = {"stem": nn.Conv2d(3, 8, 3), "deep": nn.Conv2d(8, 8, 3, groups=8), "point": nn.Conv2d(8, 8, 1)}
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
        net.add_module(f"{name}_relu", nn.ReLU())
    net.add_module("head", nn.Conv2d(8, 4, 1))
    found = profile(capture(net.eval(), torch.randn(2, 3, 8, 8)), Target(runtime="onnxruntime"), CEILINGS)
    assert {r.layer: r.power for r in found.rows if r.macs} == {"stem": 1, "deep": 1, "point": 2, "head": 1}
    data = {r["layer"]: r for r in found.json()["rows"]}
    assert data["point"]["advice"] == advice(next(r for r in found.rows if r.layer == "point"), CEILINGS)
    assert all({"advice", "gains"} <= set(r) for r in data.values())
