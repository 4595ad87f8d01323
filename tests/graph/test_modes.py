"""Training and evaluation: equal to the eager module in both modes, after any number of switches."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trimtab.core.errors import InputError
from trimtab.graph.capture import capture
from trimtab.graph.modes import set_mode
from trimtab.graph.module import module


class Convolutional(nn.Module):
    """Every flag that torch.nn's layers have, with settings that are nobody's default."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01)
        self.unit = nn.InstanceNorm2d(8, eps=1e-4, momentum=0.2, track_running_stats=True)
        self.plain = nn.InstanceNorm2d(8)
        self.stateless = nn.BatchNorm2d(8, track_running_stats=False)
        self.drop, self.drop2d = nn.Dropout(0.3), nn.Dropout2d(0.2)
        self.alpha, self.feature = nn.AlphaDropout(0.1), nn.FeatureAlphaDropout(0.15)
        self.leaky = nn.RReLU()

    def forward(self, x):
        x = self.leaky(self.unit(self.norm(self.conv(x))))
        x = self.feature(self.alpha(self.drop2d(self.drop(x))))
        return self.stateless(self.plain(x) + x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.15, batch_first=True)

    def forward(self, x):
        q = x.unflatten(-1, (2, 4)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, q, q, dropout_p=0.3 if self.training else 0.0)
        return self.layer(y.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, num_layers=2, dropout=0.4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


class DropPath(nn.Module):
    """Stochastic depth three ways: bernoulli in place, floor of a uniform, bernoulli out of place."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind, self.keep = nn.Linear(8, 8), kind, 0.75

    def mask(self, x):
        shape = (x.shape[0], 1, 1)
        if self.kind == "in place":
            return x.new_empty(shape).bernoulli_(self.keep).div_(self.keep)
        if self.kind == "floor":
            return (self.keep + torch.rand(shape)).floor_() / self.keep
        return torch.bernoulli(torch.empty(shape), self.keep) / self.keep

    def forward(self, x):
        y = self.linear(x)
        return x + (y * self.mask(y) if self.training else y)


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x) if self.training else x


CASES = {
    "convolutional": (Convolutional, (4, 3, 8, 8)),
    "attention": (Attention, (4, 5, 8)),
    "recurrent": (Recurrent, (4, 5, 8)),
    "drop path in place": (lambda: DropPath("in place"), (4, 5, 8)),
    "drop path floor": (lambda: DropPath("floor"), (4, 5, 8)),
    "drop path bernoulli": (lambda: DropPath("bernoulli"), (4, 5, 8)),
    "noise": (Noise, (4, 5, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_eager_module_in_both_modes_twice(case):
    make, shape = CASES[case]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    graph = capture(model, x)
    assert all("Left out" in note for note in graph.notes)  # instance norm's count of batches, which nothing reads
    for training in (True, False, True, False, True):
        model.train(training)
        set_mode(graph, training)
        torch.manual_seed(7)
        expected = model(x)
        torch.manual_seed(7)
        torch.testing.assert_close(graph(x), expected, rtol=1e-6, atol=1e-6)
        for name, value in graph.tensors().items():  # running statistics and the count of batches too
            torch.testing.assert_close(value, model.state_dict(keep_vars=True)[name], rtol=0, atol=0)


def test_the_two_modes_really_differ():
    for case in ("convolutional", "attention", "recurrent", "drop path floor", "noise"):
        make, shape = CASES[case]
        x = torch.randn(shape)
        graph = capture(make(), x)
        evaluated = graph(x)
        torch.testing.assert_close(graph(x), evaluated)  # no randomness left
        assert not torch.allclose(set_mode(graph, True)(x), evaluated)


def test_attention_dropout_survives_copies():
    x = torch.randn(4, 5, 8)
    model = Attention().train()
    graph = set_mode(copy.deepcopy(capture(model, x).copy()), True)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(graph(x), expected)


def test_what_the_user_froze_stays_frozen():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

        def forward(self, x):
            return F.dropout(self.norm(x), 0.5, self.training)

    graph = set_mode(capture(Frozen(), torch.randn(4, 3)), True)
    graph(torch.randn(4, 3) + 5)
    assert graph.net.get_buffer("norm.running_mean").tolist() == [0.0] * 3


def test_norms_without_running_statistics_use_the_batch_in_both_modes():
    graph = capture(nn.BatchNorm1d(3), torch.randn(4, 3))
    norm = next(graph.nodes(torch.ops.aten.batch_norm.default))
    legit = torch.ops.aten._native_batch_norm_legit.no_stats
    norm.target, norm.args = legit, (*norm.args[:3], True, 0.1, 1e-5)
    set_mode(graph, True)
    set_mode(graph, False)
    assert norm.args[3] is True


def test_a_switch_that_changes_nothing_compiles_nothing(monkeypatch):
    graph = capture(Convolutional(), torch.randn(2, 3, 8, 8))
    calls = []
    monkeypatch.setattr(type(graph.net), "recompile", lambda _: calls.append(1))
    set_mode(graph, False)
    assert calls == []
    set_mode(graph, True)
    assert calls == [1]


def test_only_flags_change():
    graph = capture(Convolutional(), torch.randn(2, 3, 8, 8))
    before = [(n.target, n.args, n.kwargs) for n in graph.nodes()]
    set_mode(set_mode(graph, True), False)
    assert before == [(n.target, n.args, n.kwargs) for n in graph.nodes()]
    norm = next(graph.nodes(torch.ops.aten.batch_norm.default))
    assert norm.args[5:8] == (False, 0.01, 1e-3)


def test_module_switches_modes_and_keeps_the_users_names():
    torch.manual_seed(0)
    model, x = Convolutional(), torch.randn(4, 3, 8, 8)
    net = module(capture(model, x))
    assert list(net.state_dict()) == [name for name in model.state_dict() if name != "unit.num_batches_tracked"]
    assert not net.training
    torch.testing.assert_close(net(x), model.eval()(x))
    net.train()
    model.train()
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    torch.testing.assert_close(net(x=x), expected)
    assert net.state_dict()["norm.num_batches_tracked"] == 1
    net.eval()
    torch.testing.assert_close(net(x), model.eval()(x))


def test_module_loads_moves_and_copies():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids, bias):
            return self.head(self.embed(ids)) + bias["b"]

    ids, bias = torch.randint(0, 9, (3, 5)), torch.randn(9)
    model, other = Tied(), Tied()
    net = module(capture(model, (ids, {"b": bias})))
    assert list(net.state_dict()) == ["embed.weight", "head.weight"]
    net.load_state_dict(other.state_dict())
    torch.testing.assert_close(net(ids, {"b": bias}), other(ids, {"b": bias}))
    torch.testing.assert_close(net(ids=ids, bias={"b": bias}), other(ids, {"b": bias}))
    assert len(list(net.parameters())) == 1
    double = copy.deepcopy(net).double()
    assert double(ids, bias.double()).dtype == torch.float64
    assert net(ids, bias).dtype == torch.float32
    torch.testing.assert_close(net.graph(ids, bias), other(ids, {"b": bias}))


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((), {"y": torch.ones(2, 3)}), ((3.0,), {})])
def test_module_refuses_wrong_inputs(args, kwargs):
    net = module(capture(nn.Linear(3, 2), torch.randn(2, 3)))
    with pytest.raises(InputError, match="input"):
        net(*args, **kwargs)
    with pytest.raises(InputError, match="twice"):
        net(torch.ones(2, 3), input=torch.ones(2, 3))
