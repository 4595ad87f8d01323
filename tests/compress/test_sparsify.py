"""Sparsify against hand-computed masks, brute force, and the papers' algorithms written plainly."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.compress.plan import recipe, step_of
from trimtab.compress.sparsify.inputs import sparsegpt
from trimtab.compress.sparsify.pattern import Pattern, best_of_groups, masks, pattern_of, rows_of, weight_of
from trimtab.compress.sparsify.permute import permuted
from trimtab.compress.sparsify.technique import Sparsify
from trimtab.compress.sparsify.weights import erdos_renyi, weights
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.train.zeros import share

from ..train.small import setting as training_setting
from .networks import Residual, Tagger, image_batch

TRAIN = {"steps": 8, "lr": 0.02, "precision": "fp32", "channels_last": False}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def captured(model: nn.Module, *x: Tensor) -> tuple[Graph, Context]:
    graph = set_mode(capture(model.eval(), x), False)
    batches = (x[0],) if len(x) == 1 else (x,)
    return graph, Context(Task(model, x), calibrate=batches)


def linear(weight: Tensor, x: Tensor) -> tuple[Graph, Context]:
    """One linear layer without bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return captured(nn.Sequential(layer), x)


def correlated(samples: int, width: int, rank: int) -> Tensor:
    return torch.randn(samples, rank) @ torch.randn(rank, width) + 0.3 * torch.randn(samples, width)


def zeros(graph: Graph, name: str) -> Tensor:
    return graph.tensors()[name].detach() == 0


def test_magnitude_of_a_layer_by_hand() -> None:
    weight = torch.tensor([[3.0, -1.0, 0.5, 2.0], [-0.2, 4.0, -2.5, 0.1]])
    graph, context = linear(weight, torch.randn(8, 4))
    made = Sparsify(ratio=0.5).apply(graph, context)
    expected = torch.tensor([[3.0, 0.0, 0.0, 2.0], [0.0, 4.0, -2.5, 0.0]])
    assert torch.equal(made.tensors()["0.weight"], expected)
    assert not torch.signbit(made.tensors()["0.weight"][expected == 0]).any()
    assert made.notes[-1] == "Sparsify: 50.0 % of 8 weights in 1 layers are zero."


def test_global_ranks_all_layers_together_and_layer_ranks_each() -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(0.1)  # type: ignore[operator]
    graph, context = captured(model, torch.randn(4, 10))
    whole = Sparsify(ratio=0.5, scope="global").apply(graph, context)
    threshold = torch.cat([graph.tensors()[f"{i}.weight"].abs().flatten() for i in "01"]).median()
    for i in "01":
        assert torch.equal(zeros(whole, f"{i}.weight"), graph.tensors()[f"{i}.weight"].abs() <= threshold)
    each = Sparsify(ratio=0.5, scope="layer").apply(graph, context)
    assert [int(zeros(each, f"{i}.weight").sum()) for i in "01"] == [50, 50]
    other = Sparsify(ratio=0.5, scope="layer", layers={"1": 0.9}).apply(graph, context)
    assert [int(zeros(other, f"{i}.weight").sum()) for i in "01"] == [50, 90]


@pytest.mark.parametrize("settings", [{}, {"scope": "erk"}, {"method": "random"}, {"pattern": "block 2x2"}])
def test_a_plan_holds_counts_and_gives_the_same_zeros(settings: dict[str, Any]) -> None:
    graph, context = captured(Residual(), image_batch())
    technique = Sparsify(ratio=0.6, **settings)
    settled = technique.resolve(graph, context)
    assert settled.ratio is None
    assert settled.keep is not None
    assert sum(settled.keep.values()) == pytest.approx(0.4 * (216 + 576 + 40), abs=8)
    first, second = technique.apply(graph, context), settled.apply(graph, context)
    for name in settled.keep:
        assert torch.equal(first.tensors()[name], second.tensors()[name])
    assert "ratio" not in step_of(settled)


def test_blocks_go_whole_by_their_mean_magnitude() -> None:
    weight = torch.tensor([[1.0, 9.0, 0.1], [1.0, 0.0, 0.1], [2.0, 3.0, 5.0]])
    graph, context = linear(weight, torch.randn(8, 3))
    made = Sparsify(ratio=0.4, pattern="block 2x1").apply(graph, context)
    # blocks of two outputs: means 1, 4.5, 0.1 and, alone in the last row, 2, 3, 5; five of nine values fit
    expected = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 0.0], [2.0, 3.0, 5.0]])
    assert torch.equal(made.tensors()["0.weight"], expected)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "random"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_every_group_of_inputs_keeps_n(method: str, pattern: str) -> None:
    graph, context = captured(Residual(), image_batch())
    made = Sparsify(pattern=pattern, method=method).apply(graph, context)  # type: ignore[arg-type]
    weight = made.tensors()["conv2.weight"].detach()  # [8, 8, 3, 3]
    left = (weight != 0).unflatten(1, (2, 4)).sum(2)
    assert bool((left == int(pattern[0])).all())
    assert not bool(zeros(made, "conv1.weight").any())  # three inputs
    assert any("leaves conv1 dense" in note for note in made.notes)


def test_n_of_m_is_the_best_by_brute_force() -> None:
    scores = torch.rand(3, 8, 2)
    mask = best_of_groups(scores, Pattern("n:m", 2, 4))
    for o, g, k in itertools.product(range(3), range(2), range(2)):
        group, kept = scores[o, 4 * g : 4 * g + 4, k], mask[o, 4 * g : 4 * g + 4, k]
        best = max(itertools.combinations(range(4), 2), key=lambda pair: float(group[list(pair)].sum()))
        assert kept.nonzero().flatten().tolist() == sorted(best)


def test_wanda_is_magnitude_times_the_norm_of_the_input_in_each_row() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    x = torch.tensor([[8.0, 3.0, 1.0, 0.1], [0.0, 4.0, 1.0, 0.1]])  # norms 8, 5, 1.41, 0.14
    graph, context = linear(weight, x)
    made = Sparsify(ratio=0.5, method="wanda").apply(graph, context)
    # products 8 10 4.2 0.6 and 32 15 2.8 0.1
    assert torch.equal(made.tensors()["0.weight"], torch.tensor([[1.0, 2.0, 0, 0], [4.0, 3.0, 0, 0]]))


def test_wanda_of_a_convolution_in_groups_is_that_of_its_patches() -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    x = torch.randn(5, 4, 7, 7) * torch.tensor([1.0, 3.0, 0.2, 1.0]).reshape(1, 4, 1, 1)
    graph, context = captured(nn.Sequential(conv), x)
    made = Sparsify(ratio=0.5, method="wanda").apply(graph, context).tensors()["0.weight"]
    columns = nn.functional.unfold(x, 3, padding=1, stride=2).reshape(5, 2, 18, -1).square().sum((0, 3)).sqrt()
    score = conv.weight.detach().flatten(1).abs() * columns.repeat_interleave(3, 0)
    expected = torch.zeros(6, 18).scatter_(1, score.topk(9, 1).indices, 1.0)
    assert torch.equal((made != 0).flatten(1).float(), expected)


def test_sparsegpt_on_two_columns_is_the_exact_update() -> None:
    x = correlated(200, 2, 1).double()
    hessian = 2 * x.T @ x
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(2, dtype=torch.float64)
    weight = torch.tensor([[0.3, 2.0]], dtype=torch.float64)
    made = sparsegpt(weight[..., None], hessian[None], 0.5, Pattern())[..., 0]
    # OBS: w_2 -= w_1 / [H^-1]_11 [H^-1]_12, which is least squares on what is left: w_2 += w_1 H_12 / H_22
    expected = 2.0 + 0.3 * damped[0, 1] / damped[1, 1]
    assert made[0, 0] == 0
    assert float(made[0, 1]) == pytest.approx(float(expected), rel=1e-9)


def test_sparsegpt_goes_as_the_paper_does_column_by_column() -> None:
    n, block, x = 12, 4, correlated(300, 12, 4).double()
    hessian, weight = 2 * x.T @ x, torch.randn(5, 12, dtype=torch.float64)
    inverse = torch.linalg.inv(hessian + 0.01 * hessian.diagonal().mean() * torch.eye(n, dtype=torch.float64))
    rest, stays = weight.clone(), torch.ones(5, n, dtype=torch.bool)
    chol = torch.linalg.cholesky(inverse, upper=True)
    for j in range(n):
        if j % block == 0:
            cost = rest[:, j : j + block].square() / chol.diagonal()[j : j + block].square()
            limit = cost.flatten().sort().values[5 * block // 2 - 1]
            stays[:, j : j + block] = cost > limit
        error = (rest[:, j] - rest[:, j] * stays[:, j]) / inverse[j, j]
        rest -= error[:, None] * inverse[j]
        inverse = inverse - inverse[:, j, None] * inverse[j] / inverse[j, j]
    from trimtab.compress.quantise import gptq

    before, gptq.BLOCK = gptq.BLOCK, block
    try:
        made = sparsegpt(weight[..., None], hessian[None], 0.5, Pattern())[..., 0]
    finally:
        gptq.BLOCK = before
    torch.testing.assert_close(made, rest * stays, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("pattern", ["free", "2:4"])
def test_sparsegpt_changes_the_outputs_less_than_wanda_and_magnitude(pattern: str) -> None:
    x = correlated(512, 64, 12) * torch.linspace(0.1, 3, 64)
    graph, context = linear(torch.randn(48, 64), x)
    wanted = graph(x).detach()  # type: ignore[union-attr]
    errors = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        ratio = 0.5 if pattern == "free" else None
        made = Sparsify(ratio, method, pattern).apply(graph, context)  # type: ignore[arg-type]
        assert share(made.tensors()["0.weight"]) == 0.5
        errors[method] = float((made(x) - wanted).detach().square().mean())  # type: ignore[operator]
    assert errors["sparsegpt"] < 0.5 * min(errors["wanda"], errors["magnitude"])
    if pattern == "free":
        assert errors["wanda"] < errors["magnitude"]


def test_sparsegpt_of_convolutions_keeps_the_ratio_and_beats_magnitude() -> None:
    graph, context = captured(Residual(), image_batch(64))
    x = image_batch(64)
    wanted = graph(x)
    found = {m: Sparsify(0.5, m, scope="layer").apply(graph, context) for m in ("magnitude", "sparsegpt")}  # type: ignore[arg-type]
    for name in ("conv1.weight", "conv2.weight", "linear.weight"):
        assert share(found["sparsegpt"].tensors()[name]) == pytest.approx(0.5, abs=0.02)
    errors = {m: float((g(x) - wanted).detach().square().mean()) for m, g in found.items()}  # type: ignore[operator]
    assert errors["sparsegpt"] < errors["magnitude"]


def test_permutation_computes_the_same_and_loses_less() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
    with torch.no_grad():  # large channels beside each other: 2:4 in this order loses many of them
        model[3].weight.mul_(torch.tensor([3.0] * 4 + [0.1] * 12).reshape(1, 16, 1, 1))  # type: ignore[operator]
    graph, context = captured(model, torch.randn(4, 3, 8, 8))
    found = weights(graph)
    other = permuted(graph, found, pattern_of("2:4"), (), 0, context.progress)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(other(x), graph(x), rtol=1e-4, atol=1e-5)
    assert not torch.equal(other.tensors()["0.weight"], graph.tensors()["0.weight"])
    plain, moved = (Sparsify(pattern="2:4", permute=p).apply(graph, context) for p in (False, True))
    total = {k: float(g.tensors()["3.weight"].abs().sum()) for k, g in (("plain", plain), ("moved", moved))}
    assert total["moved"] > 1.2 * total["plain"]


class Beside(nn.Module):
    """A convolution that reads two others side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1))  # type: ignore[no-any-return]


def test_channels_side_by_side_stay_in_order() -> None:
    model = Beside()
    with torch.no_grad():  # an order that would be changed
        model.c.weight.mul_(torch.tensor([3.0] * 4 + [0.1] * 4).repeat(2).reshape(1, 16, 1, 1))
    graph, context = captured(model, torch.randn(4, 3, 6, 6))
    made = Sparsify(pattern="2:4", permute=True).apply(graph, context)
    left = (made.tensors()["c.weight"] != 0).unflatten(1, (4, 4)).sum(2)
    assert bool((left == 2).all())
    assert torch.equal(made.tensors()["a.weight"], graph.tensors()["a.weight"])


def test_weights_that_an_embedding_shares_stay_whole() -> None:
    graph, _ = captured(Tagger(), torch.randint(20, (2, 5)), torch.ones(2, 5, 1))
    assert [w.name for w in weights(graph)] == ["qkv.weight", "out.weight"]


def test_rows_of_every_layout_go_back() -> None:
    for weight, axis in ((torch.randn(4, 3, 2, 5), 0), (torch.randn(4, 3), 1), (torch.randn(4, 3, 2), 1)):
        assert torch.equal(weight_of(rows_of(weight, axis), weight, axis), weight)


def test_erdos_renyi_by_hand() -> None:
    # (10 + 10) / 100 = 0.2 and (100 + 100) / 10000 = 0.02: scale 1000 / 220 gives 0.909 and 0.0909
    assert erdos_renyi({"a": (10, 10, 1), "b": (100, 100, 1)}, 1000) == {"a": 91, "b": 909}
    # 3000 would give the first 2.7 of its weights: it stays dense
    assert erdos_renyi({"a": (10, 10, 1), "b": (100, 100, 1)}, 3000) == {"a": 100, "b": 2900}


def test_equal_scores_keep_the_first() -> None:
    mask = masks({"w": torch.ones(2, 3, 1)}, {"w": 4}, Pattern())["w"]
    assert mask.flatten().tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "neither of ratio and keep"),
        ({"ratio": 0.5, "keep": {"*": 3}}, "both"),
        ({"ratio": 1.0}, "below 1"),
        ({"ratio": 0.99999}, "leaves none"),
        ({"ratio": 0.99, "scope": "global"}, "empty a layer"),
        ({"ratio": 0.5, "pattern": "4:2"}, "2:4"),
        ({"ratio": 0.3, "pattern": "2:4"}, "0.5"),
        ({"ratio": 0.5, "method": "movement"}, "no training"),
        ({"ratio": 0.5, "schedule": {"kind": "cubic"}}, "no training"),
        ({"ratio": 0.5, "dynamic": "rigl"}, "no training"),
        ({"ratio": 0.5, "method": "sparsegpt", "pattern": "block 2x2"}, "free or N:M"),
        ({"ratio": 0.5, "permute": True}, "N:M"),
        ({"ratio": 0.5, "skip": ("no_such",)}, "no_such"),
        ({"ratio": 0.5, "schedule": {"kind": "cubic", "last": 99}, "train": TRAIN}, "8 steps"),
        ({"keep": {"linear.weight": 41}}, "1 to 40"),
        ({"keep": {"*": 400}, "method": "wanda"}, r"keep: wanda: got '\*', expected a count for each weight"),
        ({"keep": {"conv1.weight": 9, "*": 400}, "method": "sparsegpt"}, r"keep: sparsegpt: got '\*'"),
        ({"ratio": 0.8, "pattern": "block 4x4", "layers": {"linear": 0.0}}, "empty a layer: conv2"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], words: str) -> None:
    graph, context = captured(Residual(), image_batch())
    with pytest.raises(InputError, match=words) as caught:
        Sparsify(**settings).apply(graph, context)
    assert "\n" not in str(caught.value)


def test_scores_of_inputs_without_data_are_refused() -> None:
    graph, context = captured(Residual(), image_batch())
    with pytest.raises(InputError, match="wanda needs data"):
        Sparsify(0.5, "wanda").apply(graph, replace(context, calibrate=()))


def test_recipes() -> None:
    assert recipe("sparsify(0.9)") == Sparsify(ratio=0.9)
    assert recipe("sparsify(0.5, sparsegpt)") == Sparsify(ratio=0.5, method="sparsegpt")
    assert recipe("sparsify(pattern='2:4', permute=True)") == Sparsify(pattern="2:4", permute=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": {"kind": "cubic", "every": 2}},
        {"method": "movement"},
        {"dynamic": "rigl", "scope": "erk"},
        {"dynamic": {"kind": "set", "every": 2}, "method": "random"},
        {},
        {"method": "movement", "pattern": "block 2x2"},
    ],
)
def test_what_trains_ends_with_the_ratio_and_replays(settings: dict[str, Any]) -> None:
    graph, context = training_setting()
    technique = Sparsify(ratio=0.5, train=TRAIN | {"ema": 0.9}, **settings)
    made = technique.apply(graph, context)
    found = [made.tensors()[n] for n in ("conv1.weight", "linear.weight")]
    gone = sum(int((t == 0).sum()) for t in found)
    assert gone == pytest.approx(0.5 * 248, abs=4)
    assert all(bool((t != 0).any()) for t in found)
    again = technique.resolve(graph, context).apply(graph, context)
    assert all(torch.equal(again.tensors()[k], v) for k, v in made.tensors().items())
