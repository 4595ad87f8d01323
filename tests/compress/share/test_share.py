"""Share: few values, zeros kept, centroids that learn from the sum of their members' gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.compress.plan import recipe
from trimtab.compress.share.books import Book, codebook_name, with_books, written
from trimtab.compress.share.technique import Share
from trimtab.core.context import Context
from trimtab.core.errors import FileError, InputError
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.packed import packed_tensors, unpacked_tensors
from trimtab.graph.save import load, save


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 40), nn.Linear(40, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


@pytest.fixture(scope="module")
def setting() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(64, 2, 6, 6)
    y = (x.mean((2, 3))[:, 0] > 0).long()
    task = Task(model, x[:2], train=Arrays(x, y, batch=32, shuffle=True), loss=nn.functional.cross_entropy)
    graph = capture(model, x[:2])
    with torch.no_grad():
        weight = graph.net.get_parameter("fc1.weight")
        weight *= weight.abs() > 0.04
    return graph, Context(task, teacher=graph, calibrate=((x,),))


def distinct(graph: Graph, name: str) -> int:
    return len(graph.tensors()[name].detach().unique())


def test_each_layer_has_as_many_values_as_it_is_given(setting: tuple[Graph, Context]) -> None:
    found = Share(bits=3, layers={"fc2": {"clusters": 5}}, biases=2, skip=("conv",)).apply(*setting)
    assert distinct(found, "fc1.weight") == 8
    assert distinct(found, "fc2.weight") == 5
    assert distinct(found, "fc1.bias") == 4
    assert distinct(found, "conv.weight") > 100
    assert any("not the network faster" in note for note in found.notes)


def test_zeros_of_a_sparse_weight_stay_and_are_a_centroid_of_their_own(setting: tuple[Graph, Context]) -> None:
    graph = setting[0]
    for train in (None, {"steps": 3, "channels_last": False, "lr": 0.01}):
        found = Share(bits=2, train=train).apply(*setting).tensors()["fc1.weight"]
        zero = graph.tensors()["fc1.weight"] == 0
        assert torch.equal(found == 0, zero)
        assert len(found.unique()) == 4
        assert not bool(torch.signbit(found[zero]).any())


def test_one_codebook_for_each_channel_or_group(setting: tuple[Graph, Context]) -> None:
    by_channel = Share(bits=1, per="channel", skip=("conv",)).apply(*setting).tensors()["fc2.weight"]
    assert [len(row.unique()) for row in by_channel] == [2, 2, 2, 2]
    by_group = Share(bits=1, per="group", group=2, skip=("conv", "fc1")).apply(*setting).tensors()["fc2.weight"]
    assert [len(part.unique()) for part in by_group.split(2)] == [2, 2]


def test_rows_of_product_quantisation_come_from_one_codebook(setting: tuple[Graph, Context]) -> None:
    for weighted in (False, True):
        found = Share(bits=4, method="product", block=8, weighted=weighted, skip=("conv",)).apply(*setting)
        assert len(found.tensors()["fc1.weight"].reshape(-1, 8).unique(dim=0)) <= 16
        assert len(found.tensors()["fc2.weight"].reshape(-1, 8).unique(dim=0)) <= 16


def test_weighted_sharing_loses_less_of_what_a_layer_computes() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 64)).eval()
    x = torch.randn(256, 64) * torch.logspace(-1.5, 1.5, 8).repeat(8)
    with torch.no_grad():
        model[0].weight *= torch.logspace(0.7, -0.7, 8).repeat(8)  # loud inputs meet small weights
    graph = capture(model, x[:2])
    context = Context(Task(model, x[:2]), calibrate=((x,),))

    def loss(**more: Any) -> float:
        with torch.no_grad():
            found = Share(bits=3, **more).apply(graph, context)(x)
            assert isinstance(found, torch.Tensor)
            return float((found - model(x)).square().mean())

    assert loss(weighted=True) < 0.7 * loss()
    assert loss(method="product", block=8, weighted=True) < 0.9 * loss(method="product", block=8)


def test_a_centroids_gradient_is_the_sum_of_its_members(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    weight = graph.tensors()["fc2.weight"].detach()
    indices = torch.arange(weight.numel()) % 3
    book = Book(torch.tensor([[0.0], [0.2], [-0.1]]), indices, zero=True)
    plain, looked_up = written(graph, {"fc2.weight": book}), with_books(graph, {"fc2.weight": book})
    x = context.calibrate[0][0]
    for each in (plain, looked_up):
        value = each(x)
        assert isinstance(value, torch.Tensor)
        value.square().sum().backward()
    of_weights = plain.net.get_parameter("fc2.weight").grad
    of_centroids = looked_up.net.get_parameter(codebook_name("fc2.weight")).grad
    assert of_weights is not None
    assert of_centroids is not None
    sums = torch.zeros(3).index_add_(0, indices, of_weights.reshape(-1))
    torch.testing.assert_close(of_centroids[1:, 0], sums[1:], rtol=1e-4, atol=1e-4)
    assert of_centroids[0, 0] == 0  # zero stays zero
    assert "fc2.weight" not in looked_up.tensors()


def test_training_moves_centroids_and_no_weight_to_another(setting: tuple[Graph, Context]) -> None:
    still = Share(bits=2, codebook="fp32").apply(*setting).tensors()["fc2.weight"].detach()
    train = {"steps": 8, "lr": 0.01, "channels_last": False}
    moved = Share(bits=2, codebook="fp32", train=train).apply(*setting).tensors()["fc2.weight"].detach()
    assert not torch.equal(still, moved)
    pairs = {(a, b) for a, b in zip(still.reshape(-1).tolist(), moved.reshape(-1).tolist(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == 4


def test_centroids_are_rounded_to_what_takes_half_of_the_bytes(setting: tuple[Graph, Context]) -> None:
    found = Share(bits=4).apply(*setting).tensors()["fc2.weight"].detach()
    assert torch.equal(found.half().float(), found)
    whole = Share(bits=4, codebook="fp32").apply(*setting).tensors()["fc2.weight"].detach()
    assert not torch.equal(whole.half().float(), whole)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "neither, expected bits or clusters"),
        ({"bits": 9}, "bits: got 9, expected 1 to 8"),
        ({"bits": 2, "clusters": 4}, "both bits and clusters"),
        ({"clusters": 300}, "clusters: got 300, expected 2 to 256"),
        ({"bits": 2, "skip": ("*",)}, "nothing to share"),
        ({"bits": 2, "layers": {"nope": {"bits": 3}}}, "layers: got 'nope'"),
        ({"bits": 2, "layers": {"fc1": {"bit": 3}}}, "layers: fc1: got 'bit', expected only bits"),
        ({"bits": 2, "layers": {"fc1": {"bits": "3"}}}, "expected a whole number"),
        ({"bits": 2, "method": "product", "block": 7}, "a part of its"),
        ({"bits": 2, "method": "product", "block": 0}, "got 0, expected a part of its"),
        ({"bits": 2, "method": "product", "layers": {"conv": {"block": 0}}}, "conv.weight: got 0"),
        ({"bits": 3, "per": "row"}, "per: got 'row', expected one of tensor, channel, group"),
        ({"bits": 2, "method": "product", "init": "density"}, "product quantisation draws"),
        ({"bits": 2, "per": "group"}, "group"),
        ({"bits": 2, "biases": 0}, "biases: got 0"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, Any], said: str, setting: tuple[Graph, Context]) -> None:
    with pytest.raises(InputError) as caught:
        Share(**settings).apply(*setting)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weighted_without_data_is_refused(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    with pytest.raises(InputError, match="weighted: no data"):
        Share(bits=2, weighted=True).apply(graph, Context(context.task))


def test_a_recipe_says_bits_first() -> None:
    assert recipe("share(4)") == Share(bits=4)
    assert recipe("share(clusters=12, init=density)") == Share(clusters=12, init="density")


def test_shared_weights_are_few_bits_in_the_torch_file(setting: tuple[Graph, Context], tmp_path: Path) -> None:
    found = Share(bits=4).apply(*setting)
    save(found, tmp_path / "shared")
    save(setting[0], tmp_path / "plain")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("shared", "plain")]
    assert sizes[0] < sizes[1] / 4
    again = load(tmp_path / "shared").tensors()
    assert all(torch.equal(value, again[name]) for name, value in found.tensors().items())
    assert set(again) == set(found.tensors())


@pytest.mark.parametrize(
    "harm",
    [
        {"codebook": 0}, {"codebook": 257}, {"codebook": True}, {"block": 0}, {"block": 3}, {"shape": [1 << 40, 9]},
        {"shape": [64, 63]}, {"codebook": 3}, {"shape": "x"},
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit_is_refused(harm: dict[str, Any]) -> None:
    value = torch.tensor([0.5, -1.0, 2.0, 0.25, 8.0])[torch.arange(64 * 64) % 5].reshape(64, 64).clone()
    tensors, packed = packed_tensors({"w": value * 1.1})
    assert packed["w"]["codebook"] == 5
    assert torch.equal(unpacked_tensors(tensors, packed, Path("f"))["w"], value * 1.1)
    with pytest.raises(FileError, match="shared tensor"):
        unpacked_tensors(tensors, {"w": packed["w"] | harm}, Path("f"))
    with pytest.raises(FileError, match="no tensor"):
        unpacked_tensors({"w": tensors["w"]}, packed, Path("f"))


@pytest.mark.parametrize(
    ("entry", "shape"),
    [((2, 1 << 19), [1 << 15, 1 << 19]), ((2, 33), [1 << 10, 33]), ((2, 32), [1 << 27, 32])],
)
def test_a_codebook_that_claims_more_than_memory_is_refused_before_any_is_taken(
    entry: tuple[int, int], shape: list[int]
) -> None:
    said = {"codebook": entry[0], "block": entry[1], "shape": shape}
    tensors = {"w": torch.zeros(0, dtype=torch.uint8), "w/codebook": torch.zeros(entry)}
    with pytest.raises(FileError, match="a codebook of 1 to 256 entries") as caught:
        unpacked_tensors(tensors, {"w": said}, Path("f"))
    assert "\n" not in str(caught.value)
