"""Surgery: the law (cut equals masked), networks cut by hand, and cuts that are refused."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.small_networks import NETWORKS, Attention, Call, built, captured, chain, recurrent
from trimtab.core.errors import SurgeryError
from trimtab.graph.capture import capture
from trimtab.graph.coupling import groups
from trimtab.graph.modes import set_mode
from trimtab.graph.surgery import cut, mask


def random_keep(graph, seed, share=0.6):
    pick = random.Random(seed)
    return {
        g.name: sorted(pick.sample(range(g.size), max(1, round(share * g.size))))
        for g in groups(graph)
        if g.reason is None
    }


def inputs_like(example, batch):
    if not example.is_floating_point():
        return torch.randint(0, 11, (batch, *example.shape[1:]))
    return torch.randn(batch, *example.shape[1:], dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_law_of_surgery(name):
    graph, example = captured(name)
    before = {n: t.clone() for n, t in graph.tensors().items()}
    code = graph.net.code
    keep = random_keep(graph, 0)
    small, masked = cut(graph, keep), mask(graph, keep)
    assert sum(p.numel() for p in small.net.parameters()) < sum(p.numel() for p in graph.net.parameters())
    for batch in (1, 2, 5):
        x = inputs_like(example, batch)
        torch.testing.assert_close(small(x), masked(x), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(graph(x), masked(x), rtol=1e-3, atol=1e-3)
    assert graph.net.code == code
    assert all(torch.equal(before[n], t) for n, t in graph.tensors().items())


@pytest.mark.parametrize("name", ["chain", "option_a", "dense", "mobile", "u_net"])
def test_law_of_surgery_in_training(name):
    graph, example = captured(name)
    keep = random_keep(graph, 0)
    small, masked = set_mode(cut(graph, keep), True), set_mode(mask(graph, keep), True)
    x = inputs_like(example, 6)
    one, two = small(x), masked(x)
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    one.square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.net.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_everything_changes_nothing(name):
    graph, example = captured(name)
    same = cut(graph, {g.name: range(g.size) for g in groups(graph)})
    assert torch.equal(same(example), graph(example))


def test_cut_twice_is_cut_at_once():
    graph, example = captured("option_a")
    twice = cut(cut(graph, {"conv1.weight:0": [0, 1, 3]}), {"conv1.weight:0": [1, 2], "conv3.weight:0": [3]})
    once = cut(graph, {"conv1.weight:0": [1, 3], "conv3.weight:0": [3]})
    assert torch.equal(twice(example), once(example))


def test_a_chain_cut_by_hand():
    graph, x = captured("chain")
    wide = built("chain")[0]
    first, second = [0, 2, 5], [1, 4, 6, 7]
    narrow = chain().double().eval()
    narrow[0], narrow[1], narrow[3] = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
    narrow[5] = nn.Linear(64, 5)
    narrow = narrow.double().eval()
    pixels = [16 * c + i for c in second for i in range(16)]
    with torch.no_grad():
        narrow[0].weight.copy_(wide[0].weight[first])
        narrow[0].bias.copy_(wide[0].bias[first])
        for part in ("weight", "bias", "running_mean", "running_var"):
            getattr(narrow[1], part).copy_(getattr(wide[1], part)[first])
        narrow[3].weight.copy_(wide[3].weight[second][:, first])
        narrow[3].bias.copy_(wide[3].bias[second])
        narrow[5].weight.copy_(wide[5].weight[:, pixels])
        narrow[5].bias.copy_(wide[5].bias)
    small = cut(graph, {"0.weight:0": first, "3.weight:0": second})
    torch.testing.assert_close(small(x), narrow(x), rtol=1e-12, atol=1e-12)


def test_option_a_cut_by_hand():
    """Channels 1 and 2 of the first stage stay, and new channels 0 (in front) and 7 (behind) of the second."""
    graph, x = captured("option_a")
    m = built("option_a")[0]
    old, out = [1, 2], [0, 3, 4, 7]

    def expected(x):
        norm = (m.bn1.running_mean[old], m.bn1.running_var[old], m.bn1.weight[old], m.bn1.bias[old])
        x = F.relu(F.batch_norm(F.conv2d(x, m.conv1.weight[old], m.conv1.bias[old], 1, 1), *norm))
        x = F.relu(x + F.conv2d(x, m.conv2.weight[old][:, old], m.conv2.bias[old], 1, 1))
        y = F.conv2d(x, m.conv3.weight[out][:, old], m.conv3.bias[out], 2, 1)
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)) + y)
        return F.linear(x.mean((2, 3)), m.linear.weight[:, out], m.linear.bias)

    small = cut(graph, {"conv1.weight:0": old, "conv3.weight:0": [0, 3]})
    torch.testing.assert_close(small(x), expected(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("by_hand", [False, True])
def test_attention_cut_by_hand(by_hand):
    """Heads 0 and 3 of four stay; each keeps its own scale 1/sqrt(4)."""
    torch.manual_seed(0)
    wide = Call(lambda m, x: m.attention(x), attention=Attention(16, 4, by_hand=by_hand)).double().eval()
    narrow = Attention(16, 4, by_hand=by_hand).double().eval()
    narrow.heads = 2
    narrow.qkv, narrow.out = nn.Linear(16, 24).double(), nn.Linear(8, 16).double()
    kept = [0, 1, 2, 3, 12, 13, 14, 15]
    rows = [16 * part + i for part in range(3) for i in kept]
    with torch.no_grad():
        narrow.qkv.weight.copy_(wide.attention.qkv.weight[rows])
        narrow.qkv.bias.copy_(wide.attention.qkv.bias[rows])
        narrow.out.weight.copy_(wide.attention.out.weight[:, kept])
        narrow.out.bias.copy_(wide.attention.out.bias)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    small = cut(capture(wide, x), {"attention.qkv.weight:0": [0, 3]})
    torch.testing.assert_close(small(x), narrow(x), rtol=1e-12, atol=1e-12)


def test_a_layer_norm_over_a_cut_width_is_that_of_what_is_left():
    wide = Call(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Linear(6, 8), norm=nn.LayerNorm(8), b=nn.Linear(8, 5)).double()
    x, kept = torch.randn(3, 6, dtype=torch.float64), [1, 2, 6]
    small = cut(capture(wide, x), {"a.weight:0": kept})
    y = F.linear(x, wide.a.weight[kept], wide.a.bias[kept])
    y = F.layer_norm(y, [3], wide.norm.weight[kept], wide.norm.bias[kept])
    torch.testing.assert_close(small(x), F.linear(y, wide.b.weight[:, kept], wide.b.bias), rtol=1e-12, atol=1e-12)


def test_an_lstm_cut_by_hand():
    graph, x = captured("lstm")
    wide, narrow = built("lstm")[0], recurrent(nn.LSTM).double().eval()
    kept = [0, 3, 4]
    narrow.rnn, narrow.head = nn.LSTM(10, 3, num_layers=2, batch_first=True).double(), nn.Linear(3, 5).double()
    rows = [8 * gate + i for gate in range(4) for i in kept]
    with torch.no_grad():
        narrow.embed.load_state_dict(wide.embed.state_dict())
        for name, weight in narrow.rnn.named_parameters():
            source = getattr(wide.rnn, name)[rows]
            weight.copy_(source[:, kept] if ("hh" in name and weight.ndim > 1) or name == "weight_ih_l1" else source)
        narrow.head.weight.copy_(wide.head.weight[:, kept])
        narrow.head.bias.copy_(wide.head.bias)
    small = cut(graph, {"rnn.weight_ih_l0:0": kept})
    torch.testing.assert_close(small(x), narrow(x), rtol=1e-12, atol=1e-12)


def test_parts_written_in_place_cut_by_hand():
    graph, x = captured("written_in_place")
    wide, kept = built("written_in_place")[0], [0, 2, 4, 5, 7]
    small = cut(graph, {"a.weight:0": [0, 2], "a.weight:0/2": [1, 2, 4]})
    y = F.linear(x, wide.a.weight[kept], wide.a.bias[kept])
    y = torch.cat([y[..., :2], F.pad(y[:, :-1, 2:] * 2, (0, 0, 1, 0))], -1)
    torch.testing.assert_close(small(x), F.linear(y, wide.b.weight[:, kept], wide.b.bias), rtol=1e-12, atol=1e-12)


def test_a_cut_width_of_attention_keeps_the_scale():
    wide = Call(
        lambda m, x: m.o(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))),
        q=nn.Linear(6, 16), k=nn.Linear(6, 16), v=nn.Linear(6, 8), o=nn.Linear(8, 5),
    ).double()  # fmt: skip
    x, kept = torch.randn(2, 4, 6, dtype=torch.float64), [0, 5, 9]
    small = cut(capture(wide, x), {"q.weight:0": kept})
    q, k = (F.linear(x, f.weight[kept], f.bias[kept]) for f in (wide.q, wide.k))
    expected = wide.o(torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ wide.v(x))
    torch.testing.assert_close(small(x), expected, rtol=1e-12, atol=1e-12)


def test_tied_weights_stay_tied():
    graph, ids = captured("decoder")
    small = cut(graph, {"embed.weight:1": range(0, 16, 2)})
    assert small.net.get_parameter("embed.weight").shape == (11, 8)
    assert graph.tied == small.tied != ()
    assert sum(p.shape[0] == 11 for p in small.net.parameters()) == 1
    assert small(ids).shape == (2, 5, 11)


def test_buffers_stay_buffers_and_frozen_parameters_frozen():
    model, example = built("chain")
    model[0].weight.requires_grad_(False)
    small = cut(capture(model, example), {"0.weight:0": [0]})
    assert small.net.get_buffer("1.running_mean").shape == (1,)
    assert not small.net.get_parameter("0.weight").requires_grad
    assert small.net.get_parameter("3.weight").requires_grad


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"0.weight:0": [0, 6]}, "cut: 0.weight:0: got unit 6, expected 0 to 5"),
        ({"0.weight:0": [-1]}, "cut: 0.weight:0: got unit -1, expected 0 to 5"),
        ({"0.weight:0": []}, "cut: 0.weight:0: got no unit to keep, expected at least one"),
        ({"5.weight:0": [0]}, "cut: 5.weight:0: got 1 units, expected all 5: it is the network's output 'output'"),
    ],
)
def test_cuts_that_are_refused(keep, message):
    graph, _ = captured("chain")
    with pytest.raises(SurgeryError) as error:
        cut(graph, keep)
    assert str(error.value) == message


def test_a_misspelt_group_names_its_neighbours():
    graph, _ = captured("chain")
    with pytest.raises(SurgeryError, match=r"got 0\.weigth:0\. The nearest names are 0\.weight:0"):
        cut(graph, {"0.weigth:0": [0]})


def test_a_cut_that_would_empty_a_part_is_refused():
    model = Call(
        lambda m, x: (m.b(m.a(x).chunk(2, -1)[0]), m.a(x)[..., 4:].sum()), a=nn.Linear(6, 8), b=nn.Linear(4, 5)
    )
    graph = capture(model, torch.randn(2, 6))
    with pytest.raises(SurgeryError, match="none of its 4 channels left at dimension 1"):
        cut(graph, {"a.weight:0": [5, 6]})
