"""What a layer's quantisation costs: switches, figures by hand, and a ranking that finds the culprit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.pipeline.networks import lively
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.context import Context
from trimtab.core.task import Task, accuracy
from trimtab.graph.capture import capture
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.pipeline.layer_costs import OTHERS, decibel, layer_costs
from trimtab.pipeline.switched import Switched
from trimtab.run.overflow import support_here

CULPRIT = "layer2.0.conv2"


@pytest.fixture(scope="module")
def made() -> tuple[Graph, Context]:
    x = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    network = lively(x)
    graph = set_mode(capture(network, x[:2]), False)
    with torch.no_grad():
        labels = network(x).argmax(1)
    task = Task(network, x[:2])
    context = Context(task, teacher=graph, calibrate=(x,), validate=((x, labels),), score=accuracy)
    return graph, context


def switched(graph: Graph, context: Context, **settings: Any) -> Switched:
    prepared = Quantise(**settings).prepare(graph, context)
    return Switched(prepared, for_inference(graph).tensors())


def test_all_on_is_the_prepared_graph_and_all_off_the_network(made: tuple[Graph, Context]) -> None:
    graph, context = made
    net = switched(graph, context)
    x = context.calibrate[0][:8]
    with torch.no_grad():
        torch.testing.assert_close(net.returned(net.values((x,), net.everything)), net.graph_of(x), rtol=0, atol=0)
        torch.testing.assert_close(net.returned(net.values((x,), ())), graph(x), rtol=1e-4, atol=1e-5)
    assert len(net.sites) == 11


def test_what_starts_in_the_middle_is_what_starts_at_the_front(made: tuple[Graph, Context]) -> None:
    graph, context = made
    net = switched(graph, context)
    x = context.calibrate[0][:8]
    off, on = net.values((x,), ()), net.values((x,), net.everything)
    for site in net.sites:
        for known, choice in ((off, {site.name}), (on, net.everything - {site.name})):
            whole = net.returned(net.values((x,), choice))
            torch.testing.assert_close(net.outputs(known, site.start, choice), whole, rtol=0, atol=0)
            assert not torch.equal(whole, net.returned(known))


def test_a_layer_of_two_bits_is_found(made: tuple[Graph, Context]) -> None:
    graph, context = made
    found = layer_costs(Quantise(layers={CULPRIT: {"bits": 2}}), graph, context)
    worst = found.layers[0]
    assert (worst.name, worst.kind, worst.bits) == (CULPRIT, "int2", 8)
    assert worst.cost == pytest.approx((worst.one.loss + found.all.loss - worst.but_one.loss) / 2)
    assert worst.cost > 10 * found.layers[1].cost
    assert worst.but_one.loss < 0.2 * found.all.loss
    assert (found.samples, found.split) == (48, "validate")
    assert found.none.loss == pytest.approx(0.0, abs=1e-6)
    assert found.none.score == 1.0
    assert found.all.score is not None
    assert found.layers[-1].cost <= found.layers[-2].cost
    assert {row.name for row in found.layers} == {s.name for s in switched(graph, context).sites} | {OTHERS}


def test_the_ratio_of_a_weight_is_that_of_its_rounding(made: tuple[Graph, Context]) -> None:
    graph, context = made
    row = next(r for r in layer_costs(Quantise(), graph, context).layers if r.name == "linear")
    weight = graph.tensors()["linear.weight"].detach()
    step = weight.abs().amax(1, keepdim=True) / support_here(None).top
    noise = ((weight / step).round() * step - weight).square().sum()
    assert row.weight_sqnr == pytest.approx(float(10 * (weight.square().sum() / noise).log10()), abs=0.05)
    assert row.output_sqnr is not None
    assert 25 < row.output_sqnr < 60  # eight bits of weights and of inputs
    assert decibel(100.0, 1.0) == pytest.approx(20.0)
    assert decibel(1.0, 0.0) is None


def test_the_histogram_counts_every_value_and_the_range_holds_what_is_not_clipped(made: tuple[Graph, Context]) -> None:
    graph, context = made
    found = layer_costs(Quantise(layers={CULPRIT: {"bits": 2}}), graph, context)
    worst = found.layers[0]
    assert sum(found.histogram) == 48 * 32 * 4 * 4  # its input: 32 channels of 4 by 4
    assert worst.range is not None
    assert worst.seen is not None
    assert worst.clipped < 1e-3  # the data are those that the range was calibrated on
    assert worst.range[0] <= 0.0
    assert worst.range[1] == pytest.approx(worst.seen[1], rel=0.02)
    assert math.isfinite(worst.cost)


def test_without_labels_there_is_no_score(made: tuple[Graph, Context]) -> None:
    graph, context = made
    found = layer_costs(Quantise(), graph, Context(context.task, teacher=graph, calibrate=context.calibrate))
    assert (found.split, found.all.score) == ("calibrate", None)
