"""Smooth: scales against the papers' formulas and torchao's, where they are folded, and what is gained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.compress import Equalise, Quantise, Smooth
from trimtab.compress.plan import recipe
from trimtab.compress.quantise.links import Reader
from trimtab.compress.quantise.scales import Seen, awq_scale, grouped, output_error
from trimtab.compress.quantise.smooth import _linear
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph

WIDTH = 32


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tokens(n: int = 16) -> Tensor:
    """Embeddings [n, 6, WIDTH]."""
    return torch.randn(n, 6, WIDTH, generator=torch.Generator().manual_seed(3))


def captured(model: nn.Module, example: Tensor | None = None) -> tuple[Graph, Context]:
    example = tokens() if example is None else example
    model.eval()
    return capture(model, example[:2]), Context(Task(model, example), calibrate=((example[:8],), (example[8:],)))


@torch.no_grad()
def outputs(graph: Graph, x: Tensor) -> Tensor:
    value = graph(x)
    assert isinstance(value, Tensor)
    return value


def assert_same(found: Graph, wanted: Graph, x: Tensor) -> None:
    expected = outputs(wanted, x)
    torch.testing.assert_close(outputs(found, x), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class Normed(nn.Module):
    """A layer norm with a few channels far wider than the others, which a linear layer takes back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24)
        with torch.no_grad():
            self.norm.weight[::11] *= 60
            self.linear.weight[:, ::11] /= 60
            self.norm.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_the_scale_is_that_of_the_paper(alpha: float) -> None:
    model = Normed()
    graph, context = captured(model)
    result = Smooth(alpha=alpha).apply(graph, context)
    x = model.norm(tokens()).flatten(0, 1)
    scale = x.abs().amax(0) ** alpha / model.linear.weight.abs().amax(0) ** (1 - alpha)
    found = result.tensors()
    torch.testing.assert_close(found["linear.weight"].data, model.linear.weight * scale, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found["norm.weight"].data, model.norm.weight / scale, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found["norm.bias"].data, model.norm.bias / scale, rtol=1e-5, atol=1e-7)
    assert torch.equal(found["linear.bias"], model.linear.bias)
    assert_same(result, graph, torch.randn(4, 6, WIDTH))


@torch.no_grad()
def test_the_scale_is_that_of_torchao() -> None:
    core = pytest.importorskip("torchao.prototype.smoothquant.core")
    model = Normed()
    graph, context = captured(model)
    observer = core.SmoothQuantObserver(model.linear.weight, alpha=0.5)
    observer(model.norm(tokens()))
    theirs, _, _ = observer.calculate_qparams()
    ours = Smooth(alpha=0.5).apply(graph, context).tensors()["linear.weight"] / model.linear.weight
    torch.testing.assert_close(ours, theirs.expand_as(ours), rtol=1e-4, atol=0)


class Attending(nn.Module):
    """A transformer block with norms first: attention with fewer heads of values, and a gated layer."""

    def __init__(self, norm: Any = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(WIDTH), norm(WIDTH)
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)
        self.o = nn.Linear(WIDTH, WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, 48, bias=False)
        self.down = nn.Linear(48, WIDTH)
        with torch.no_grad():
            for one in (self.norm1, self.norm2):
                one.weight.uniform_(0.1, 10)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        h = self.norm1(x)
        q, k, v = (layer(h).view(n, length, -1, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(2, 1) for part in (k, v))
        a = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, WIDTH)
        x = x + self.o(a)
        h = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Rms(nn.Module):
    """Root mean square norm, written by hand as language models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class ByHand(nn.Module):
    """Layer norm by hand: a product with one parameter, a sum with another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6) * self.weight + self.bias


@torch.no_grad()
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, Rms, ByHand])
@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_a_block_of_a_transformer(norm: Any, method: Any) -> None:
    model = Attending(norm)
    graph, context = captured(model)
    technique = Smooth(method=method)
    # v is read by o through attention, up by down through a product with what does not depend on the scale
    assert [a.name for a in technique.sites(graph, context)] == [f"Smooth:{n}" for n in ("norm1", "v", "norm2", "up")]
    result = technique.apply(graph, context)
    assert result.notes == ()
    assert_same(result, graph, torch.randn(4, 6, WIDTH))
    far = ("norm2.weight", "k.weight", "v.weight", "o.weight", "down.weight") if method == "smoothquant" else ()
    for name in ("norm1.weight", "q.weight", *far):
        assert not torch.allclose(result.tensors()[name], graph.tensors()[name])
    assert torch.equal(result.tensors()["o.bias"], graph.tensors()["o.bias"])


@torch.no_grad()
def test_all_that_read_one_norm_share_one_scale() -> None:
    model = Attending()
    graph, context = captured(model)
    found = Smooth(skip=("o", "down")).apply(graph, context).tensors()
    x = model.norm1(tokens()).flatten(0, 1).abs().amax(0)
    w = torch.cat([layer.weight for layer in (model.q, model.k, model.v)]).abs().amax(0)
    scale = (x / w) ** 0.5
    for name in ("q", "k", "v"):
        ratio = found[f"{name}.weight"] / graph.tensors()[f"{name}.weight"]
        torch.testing.assert_close(ratio, scale.expand_as(ratio), rtol=1e-4, atol=0)


class After(nn.Module):
    """Norms last, as in BERT: a residual sum reads what the linear layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wide, self.back = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        with torch.no_grad():
            self.norm1.weight[::11] *= 60

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        return self.norm2(x + self.back(nn.functional.gelu(self.wide(x))))


@torch.no_grad()
def test_what_cannot_be_folded_is_left_and_said_or_multiplied() -> None:
    graph, context = captured(After())
    result = Smooth().apply(graph, context)
    assert result.notes == (
        "Smooth leaves wide as they were: add reads the same tensor.",
        "Smooth leaves back as they were: gelu comes before.",
    )
    for name in graph.tensors():
        assert torch.equal(result.tensors()[name], graph.tensors()[name])
    inserted = Smooth(insert=True).apply(graph, context)
    assert inserted.notes == ()
    assert {*inserted.tensors()} - {*graph.tensors()} == {"wide.smooth", "back.smooth"}
    assert_same(inserted, graph, torch.randn(4, 6, WIDTH))
    # a second time there is a parameter to fold into
    again = Smooth(insert=True).apply(inserted, context)
    assert {*again.tensors()} == {*inserted.tensors()}
    assert_same(again, graph, torch.randn(4, 6, WIDTH))


@torch.no_grad()
def test_integer_activations_gain() -> None:
    graph, context = captured(Normed())
    x = tokens(64)
    wanted = outputs(graph, x)
    before = relative(outputs(Quantise().apply(graph, context), x), wanted)
    after = relative(outputs(Quantise().apply(Smooth().apply(graph, context), context), x), wanted)
    assert before > 10 * after, (before, after)  # seen: 0.264 and 0.0123, 21 times


def reading(seed: int) -> tuple[dict[str, Tensor], Reader, dict[str, Seen]]:
    """A linear layer of a captured network, with rows of which some channels are far wider."""
    graph, _ = captured(Normed())
    layer = next(iter(_linear(graph)))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(256, WIDTH, generator=generator, dtype=torch.float64)
    rows *= 10 ** torch.randn(WIDTH, generator=generator, dtype=torch.float64).clamp(-1.5, 1.5)
    stats = Seen(rows.abs().amax(0), rows.abs().sum(0), len(rows), [rows])
    weight = torch.randn(24, WIDTH, generator=generator, dtype=torch.float64)
    return {layer.weight: weight}, Reader(layer, torch.arange(WIDTH)), {str(layer.node.args[0]): stats}


def test_awq_is_never_worse_than_no_scale_and_is_a_power_of_the_mean() -> None:
    gains = []
    for seed in range(5):
        weights, reader, stats = reading(seed)
        free = torch.ones(WIDTH, dtype=torch.bool)
        scale = awq_scale(weights, [reader], free, stats, 4, 16)
        none = output_error(reader, weights, torch.ones(WIDTH), stats, 4, 16)
        gains.append(none / output_error(reader, weights, scale, stats, 4, 16))
        mean = next(iter(stats.values())).mean
        powers = (scale / scale[0]).log()[1:] / (mean / mean[0]).log()[1:]
        torch.testing.assert_close(powers, powers[:1].expand_as(powers), rtol=1e-6, atol=1e-9)
        assert float(powers[0] * 20) == pytest.approx(round(float(powers[0]) * 20), abs=1e-6)
        assert float(scale.amax() * scale.amin()) == pytest.approx(1.0)
    assert min(gains) >= 1
    assert max(gains) > 1.5


def test_groups_have_a_scale_of_their_own() -> None:
    weight = torch.tensor([[7.0, 3.4, 70.0, 34.0], [0.0, 0.0, 1.0, -1.0]])
    expected = torch.tensor([[7.0, 3.0, 70.0, 30.0], [0.0, 0.0, 1.0, -1.0]])
    torch.testing.assert_close(grouped(weight, 4, 2), expected)
    torch.testing.assert_close(grouped(weight, 4, 3)[0], torch.tensor([10.0, 0.0, 70.0, 30.0]))


@torch.no_grad()
def test_a_channel_that_is_always_zero_is_left() -> None:
    model = Normed()
    model.norm.weight[3], model.norm.bias[3] = 0.0, 0.0
    graph, context = captured(model)
    for method in ("smoothquant", "awq"):
        result = Smooth(method=method).apply(graph, context)  # type: ignore[arg-type]
        assert torch.equal(result.tensors()["linear.weight"][:, 3], model.linear.weight[:, 3])
        assert_same(result, graph, torch.randn(4, 6, WIDTH))


class Gpt(nn.Module):
    """A norm that convolves after: GPT-2's linear layers hold [in, out], and add with addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.weight, self.bias = nn.Parameter(torch.randn(WIDTH, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, self.norm(x).view(-1, WIDTH), self.weight).view(x.shape[0], -1, 8)


@torch.no_grad()
def test_weights_of_inputs_before_outputs() -> None:
    model = Gpt()
    graph, context = captured(model)
    result = Smooth().apply(graph, context)
    scale = (model.norm(tokens()).flatten(0, 1).abs().amax(0) / model.weight.abs().amax(1)) ** 0.5
    torch.testing.assert_close(result.tensors()["weight"].data, model.weight * scale[:, None])
    assert_same(result, graph, torch.randn(4, 6, WIDTH))


def test_a_weight_that_something_else_reads_is_left() -> None:
    model = Normed()
    model.other = nn.Linear(WIDTH, 24)
    model.other.weight = model.linear.weight
    model.forward = lambda x: model.linear(model.norm(x)) + model.other(x)  # type: ignore[method-assign]
    graph, context = captured(model)
    assert Smooth().sites(graph, context) == Equalise().sites(graph, context) == ()
    assert_same(Smooth(insert=True).apply(graph, context), graph, torch.randn(4, 6, WIDTH))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "Smooth: alpha: got 1.5, expected 0 to 1"),
        ({"method": "smooth"}, "Smooth: method: got 'smooth', expected smoothquant or awq"),
        ({"method": "awq", "bits": 1}, "Smooth: bits: got 1"),
        ({"method": "awq", "group": 1}, "Smooth: group: got 1"),
        ({"skip": ("nothing",)}, "Smooth: skip: got 'nothing', expected one of linear"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    graph, context = captured(Normed())
    with pytest.raises(InputError, match=message):
        Smooth(**settings).apply(graph, context)


def test_wrong_data_a_quantised_network_and_none() -> None:
    graph, context = captured(Normed())
    with pytest.raises(InputError, match="Smooth: the network is quantised already"):
        Smooth().apply(Quantise().apply(graph, context), context)
    constant = Context(context.task, calibrate=((torch.ones(4, 6, WIDTH),),))
    with pytest.raises(InputError, match="Smooth: calibrate: x: got the same value everywhere"):
        Smooth().apply(graph, constant)
    result = Smooth().apply(graph, Context(context.task))
    assert [note for note in result.notes if "random normal inputs" in note]


def test_recipes() -> None:
    assert recipe("smooth(0.5)") == recipe("smooth") == Smooth()
    assert recipe("smooth(method=awq, bits=4, group=64)") == Smooth(method="awq", group=64)
