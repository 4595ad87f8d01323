"""The law of surgery on a part of the coverage bench's networks: one for each way in which channels are tied."""

import pytest
import torch

from bench import coverage
from bench import coverage_row as rows
from bench.networks import NETWORKS, network
from trimtab.graph.capture import capture
from trimtab.graph.coupling import groups
from trimtab.graph.modes import set_mode
from trimtab.graph.surgery import cut, mask

QUICK = [
    "vgg_bn",
    "densenet",
    "shufflenet",
    "unet",
    "espcn",
    "tcn",
    "lstm_classifier",
    "resnet_cifar",
    "se_resnext",
    "generator",
    "mlp_mixer",
    "convnext",
    "vit",
    "distilbert",
    "gpt2",
    "llama",
    "bart",
]


@pytest.mark.parametrize("name", QUICK)
def test_a_random_cut_obeys_the_law_and_trains(name):
    model, example = network(name, seed=1)
    graph, inputs = set_mode(capture(model, example), False), rows.flat(example)
    found = groups(graph)
    keep = rows.choose(found, seed=1)
    assert rows.share(graph, found, keep) >= coverage.SHARE
    small = cut(graph, keep)
    assert rows.law(small, mask(graph, keep), inputs) <= 1e-5
    sizes = [sum(p.numel() for p in g.net.parameters()) for g in (graph, small)]
    assert sizes[1] < (0.9 if name == "bart" else 0.75) * sizes[0]  # bart's encoder width is an output
    rows.step(small, inputs, rows.untouched(graph, inputs))


def test_the_law_notices_a_wrong_mask():
    model, example = network("resnet_cifar")
    graph, inputs = set_mode(capture(model, example), False), rows.flat(example)
    found = groups(graph)
    one, other = rows.choose(found, seed=1), rows.choose(found, seed=2)
    assert rows.law(cut(graph, one), mask(graph, other), inputs) > 1e-2


def test_the_bench_holds_at_least_forty_networks_that_are_not_constant():
    assert len(NETWORKS) >= 40
    model, example = network("vgg_bn")
    assert not any(bool((p == p.flatten()[0]).all()) for p in model.parameters() if p.numel() > 1)
    with torch.no_grad():
        assert not torch.equal(model(example)[0], model(example)[1])


def test_what_fails_is_told():
    row = {"share": 0.5, "fall": 0.1, "law": 1.0, "reload": 0.0, "onnx": float("inf")}
    told = " ".join(coverage.reasons(row))
    assert "50%" in told
    assert "ONNX" in told
    assert "reloaded" not in told
    assert coverage.reasons({"stage": "cut", "error": "broken"}) == ["cut: broken"]
