"""Gates and experts: sampled gates, rates, clusters and routers by hand; what is deployed computes what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.compress.residual import Residual, setting
from trimtab.compress.exits.experts import Experts, feed_forward
from trimtab.compress.exits.gate import Gates, places
from trimtab.compress.exits.gates import Decider, KeepRate, Learning, Mask, Skip, sampled
from trimtab.compress.exits.mixture import balanced, router
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.model import EXAMPLE_BATCH, Graph
from trimtab.graph.save import load, save
from trimtab.pipeline.ways import ways
from trimtab.run.export import export_onnx
from trimtab.run.turns import depends_on_input

PLAIN = {"precision": "fp32", "channels_last": False}


def test_sampled_is_0_or_1_with_the_gradient_of_the_sigmoid() -> None:
    score = torch.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)
    found = sampled(score, False)
    assert found.tolist() == [[0.0, 1.0, 1.0]]
    found.sum().backward()
    soft = torch.sigmoid(score.detach())
    torch.testing.assert_close(score.grad, soft * (1 - soft))


def test_noise_opens_a_gate_as_often_as_its_sigmoid_says() -> None:
    torch.manual_seed(0)
    share = sampled(torch.full((20000, 1), 1.0), True).mean()
    assert float(share) == pytest.approx(float(torch.sigmoid(torch.tensor(1.0))), abs=0.01)  # 0.731 +- 3 sigma


def test_the_rate_is_held_by_the_work_that_gates_hold() -> None:
    class Net:
        meta = {"gates": {"a": torch.tensor([[1.0], [1.0]]), "b": torch.tensor([[1.0], [0.0]])}}  # noqa: RUF012

    class Training:
        class graph:
            net = Net

    rule = KeepRate({"a": 3.0, "b": 1.0}, rate=0.5, weight=2.0)
    # (3 * 1 + 1 * 0.5) / 4 = 0.875
    assert float(rule.penalty(Training, {}, None)) == pytest.approx(2 * (0.875 - 0.5) ** 2)  # type: ignore[arg-type]


def test_skip_and_mask_compute_what_learning_does_without_noise() -> None:
    torch.manual_seed(0)
    gate = Decider(3, 1, 4, False)
    with torch.no_grad():
        gate.second.bias.zero_()
        gate.second.weight.mul_(100)
    x, joined = torch.randn(16, 3, 4, 4), torch.randn(16, 3, 4, 4)
    skip = Skip(gate)(x, joined)
    torch.testing.assert_close(Learning(gate, True).eval()(x, joined), skip, rtol=1e-5, atol=1e-6)
    opens = gate(x)[:, 0] >= 0
    assert 0 < int(opens.sum()) < 16
    assert torch.equal(skip, torch.where(opens[:, None, None, None], joined, x))
    masks = Decider(3, 3, 4, False)
    torch.testing.assert_close(Learning(masks, False).eval()(x, joined), Mask(masks)(x, joined))


def test_places_lie_behind_the_activation_and_before_the_last_layer() -> None:
    graph = capture(Residual().eval(), torch.randn(2, 3, 16, 16))
    nodes = {n.name: n for n in graph.nodes()}
    for place in places(graph, "blocks"):
        assert str(nodes[place.gated].target) == "aten.relu.default"
        assert str(nodes[place.source].target) == "aten.relu.default"
    assert [p.name for p in places(graph, "channels")] == [p.name for p in places(graph, "blocks")]
    assert places(graph, "blocks")[0].macs == 2 * EXAMPLE_BATCH * 16 * 16 * 16 * 16 * 9  # two layers


def closed(graph: Graph, name: str, bias: float) -> Graph:
    """The network with one gate's scores moved."""
    fresh = graph.copy()
    with torch.no_grad():
        fresh.tensors()[f"gates.{name}.gate.second.bias"].fill_(bias)
    return fresh


def test_gated_blocks_are_skipped_and_the_file_agrees(tmp_path: Path) -> None:
    import onnxruntime

    graph, context = setting()
    technique = Gates(train={"steps": 3, "lr": 0.001, **PLAIN}, rate=0.5)
    resolved = technique.resolve(graph, context)
    assert resolved.at == ("layer1.0", "layer1.1", "layer2.1")
    result = resolved.apply(graph, context)
    x = context.validate[0][0]
    shut = closed(closed(closed(result, "layer1_0", -99.0), "layer1_1", 99.0), "layer2_1", -99.0)
    save(shut, tmp_path)
    export_onnx(shut, tmp_path / "model.onnx")
    assert depends_on_input(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    with torch.no_grad():
        expected = load(tmp_path)(x)
        for size in (1, len(x)):
            found = torch.cat([torch.from_numpy(session.run(None, {"x": part.numpy()})[0]) for part in x.split(size)])
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    told = ways(shut, context.validate, "validate", context)
    assert told == (
        "Of 192 inputs of `validate`, so many run each gated part: 0% layer1_0, 100% layer1_1, 0% layer2_1.",
    )


def test_training_moves_the_rate_towards_its_target() -> None:
    graph, context = setting()
    found = Gates(train={"steps": 40, "lr": 0.05, **PLAIN}, rate=0.2, weight=50.0).apply(graph, context)
    (told,) = ways(found, context.validate, "v", context)
    shares = [float(part.split("%")[0]) for part in told.split(": ")[1].split(", ")]
    assert sum(shares) / len(shares) < 70


def test_gated_channels_are_multiplied_by_0_or_1() -> None:
    graph, context = setting()
    result = Gates("channels", train={"steps": 2, **PLAIN}).apply(graph, context)
    assert "no faster in dense kernels" in " ".join(result.notes)
    masks = list(result.nodes(torch.ops.aten.mul.Tensor))
    assert len(masks) == 3


def test_gates_without_residual_blocks_and_bad_settings_are_refused() -> None:
    graph, context = setting()
    wrong = (({"rate": 1.5}, "Gates: rate"), ({"at": ("nowhere",)}, "layer1.0"), ({"hidden": 0}, "hidden"))
    for settings, message in wrong:
        with pytest.raises(InputError, match=message):
            Gates(**{"train": {"steps": 0}, **settings}).apply(graph, context)  # type: ignore[arg-type]
    x = torch.randn(4, 4)
    plain = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), x)
    with pytest.raises(InputError, match="no residual blocks"):
        Gates().apply(plain, Context(Task(nn.Linear(1, 1), x)))


def test_clusters_are_of_one_size_and_hold_what_is_alike() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9], [2.0, 0.0], [0.0, 3.0]])
    found = balanced(rows, 2, seed=0)
    assert sorted(sorted(group) for group in found.tolist()) == [[0, 2, 4], [1, 3, 5]]
    assert balanced(torch.ones(8, 3), 4, 0).shape == (4, 2)


def test_the_router_finds_linear_activity() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator)
    w1 = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]])
    h = x @ w1.T + 100.0  # always above 0, so that the sums are linear
    weight, bias = router(w1, torch.tensor([[0, 1], [2, 3]]), x, h)
    torch.testing.assert_close(weight, torch.tensor([[1.0, 1, 0], [1, 1, 1]]), rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(bias, torch.tensor([200.0, 200.0]), rtol=1e-3, atol=0.1)
    centre, zero = router(w1, torch.tensor([[0, 1], [2, 3]]), None, None)
    assert torch.equal(centre, torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0.5]]))
    assert torch.equal(zero, torch.zeros(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.linear = nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + self.down(functional.gelu(self.up(x))))


@pytest.fixture(scope="module", params=[(32, 6), (8, 5, 6)], ids=["vectors", "sequences"])
def mlp(request: Any) -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model, x = Mlp().eval(), torch.randn(*request.param)
    graph = capture(model, x[:2])
    return graph, Context(Task(model, x[:2], train=Arrays(x)), teacher=graph, calibrate=((x,),))


@pytest.mark.parametrize("split", ["weights", "activity"])
def test_with_all_experts_active_a_mixture_is_the_dense_layer(mlp: Any, split: Any, tmp_path: Path) -> None:
    graph, context = mlp
    x = context.calibrate[0][0]
    result = Experts(experts=4, active=4, split=split).apply(graph, context)
    with torch.no_grad():
        torch.testing.assert_close(result(x), graph(x), rtol=1e-4, atol=1e-5)
    some = Experts(experts=4, active=1, split=split).apply(graph, context)
    with torch.no_grad():
        assert not torch.allclose(some(x), graph(x), rtol=1e-3)
        save(some, tmp_path)
        assert torch.equal(load(tmp_path)(x), some(x))
    export_onnx(some, tmp_path / "model.onnx")


def test_one_expert_of_two_gives_what_its_neurons_give() -> None:
    torch.manual_seed(0)
    model, x = Mlp().eval(), torch.randn(32, 6)
    graph = capture(model, x[:2])
    context = Context(Task(model, x[:2]), calibrate=((x,),))
    result = Experts(experts=2, active=1).apply(graph, context)
    groups = balanced(model.up.weight.detach(), 2, context.seed)
    with torch.no_grad():
        h = functional.gelu(model.up(x))
        weight, bias = router(model.up.weight.detach(), groups, x, h)
        chosen = (x @ weight.T + bias).argmax(1)
        mask = torch.zeros_like(h).scatter_(1, groups[chosen], 1.0)
        torch.testing.assert_close(result(x), model.linear(x + model.down(h * mask)), rtol=1e-4, atol=1e-5)


def test_feed_forward_layers_are_found_and_bad_settings_refused(mlp: Any) -> None:
    graph, context = mlp
    (found,) = feed_forward(graph)
    assert (found.name, found.activation, found.width) == ("up", "gelu", 16)
    assert Experts(experts=4).resolve(graph, context).layers == ("up",)
    for settings, message in (
        ({"experts": 5}, "a divisor"),
        ({"active": 9}, "1 or more of at least 2"),
        ({"layers": ("nowhere",)}, "some of up"),
    ):
        with pytest.raises(InputError, match=message):
            Experts(**settings).apply(graph, context)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no feed-forward layer"):
        Experts().apply(*setting())
