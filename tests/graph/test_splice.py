"""Splice: a module in the place of a node computes what it computes, and is a part of the network like any other."""

import pytest
import torch
from torch import nn

from trimtab.core.errors import SurgeryError
from trimtab.graph.capture import capture
from trimtab.graph.coupling import groups
from trimtab.graph.modes import set_mode
from trimtab.graph.save import load, save
from trimtab.graph.splice import spliced
from trimtab.graph.surgery import cut

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear((x + torch.relu(self.bn2(self.conv2(x)))).mean((2, 3)))


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return capture(Net().eval(), torch.randn(2, 3, 8, 8))


def eager(graph):
    own = Net().eval()
    own.load_state_dict(dict(graph.tensors()))
    return own


def node(graph, target, index):
    return list(graph.nodes(target))[index]


def separated(graph):
    """conv2 as a depthwise and a pointwise convolution that compute something of their own."""
    conv = node(graph, aten.conv2d.default, 1)
    module = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 8, 1))
    return module, spliced(graph, module, [conv.args[0].name], conv.name, "conv2.separable")


def test_a_module_computes_in_the_place_of_a_node(graph):
    x = torch.randn(5, 3, 8, 8)
    own = eager(graph)
    own.conv2, made = separated(graph)
    with torch.no_grad():
        torch.testing.assert_close(made(x), own(x), rtol=1e-5, atol=1e-6)
    names = set(made.tensors())
    assert "conv2.weight" not in names
    assert {"conv2.separable.0.weight", "conv2.separable.1.weight", "conv2.separable.1.bias"} <= names
    assert "conv2.weight" in graph.tensors()


def test_a_whole_block_with_its_norm_goes_and_its_counter_too(graph):
    first, last = node(graph, aten.relu.default, 0), node(graph, aten.relu.default, 1)
    made = spliced(graph, nn.Conv2d(8, 8, 1), [first.name], last.name, "short")
    assert {n for n in made.tensors() if n.startswith(("conv2", "bn2"))} == set()
    assert not [n for n in made.net.graph.nodes if "bn2" in n.name]
    assert made(torch.randn(3, 3, 8, 8)).shape == (3, 4)


def test_a_module_behind_a_node_reads_that_node(graph):
    last = node(graph, aten.relu.default, 1)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        same = spliced(graph, nn.Identity(), [last.name], last.name, "same")
        torch.testing.assert_close(same(x), graph(x))
        gate = nn.Conv2d(8, 8, 1)
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
        made = spliced(graph, gate, [last.name], last.name, "gate")
        plain = eager(graph)
        expected = plain.linear(torch.relu(plain.bn1(plain.conv1(x))).mean((2, 3)))
        torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-6)


def test_the_result_trains_is_cut_and_saved(graph, tmp_path):
    _, made = separated(graph)
    set_mode(made, True)
    made(torch.randn(4, 3, 8, 8)).sum().backward()
    assert made.tensors()["conv2.separable.0.weight"].grad is not None
    set_mode(made, False)
    found = {g.name: g for g in groups(made)}
    name = next(n for n, g in found.items() if g.reason is None)
    smaller = cut(made, {name: [0, 3, 4, 7]})
    assert smaller.tensors()["conv2.separable.0.weight"].shape[0] == 4
    save(smaller, tmp_path)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(x), smaller(x))


def test_what_cannot_be_spliced_is_told(graph):
    conv = node(graph, aten.conv2d.default, 1)
    source = conv.args[0].name
    with pytest.raises(SurgeryError, match="nowhere"):
        spliced(graph, nn.Identity(), ["nowhere"], conv.name, "new")
    with pytest.raises(SurgeryError, match="the name is taken"):
        spliced(graph, nn.Identity(), [source], conv.name, "bn1")
    with pytest.raises(SurgeryError, match=r"new.*\(2, 6, 8, 8\).*expected \(2, 8, 8, 8\)"):
        spliced(graph, nn.Conv2d(8, 6, 1), [source], conv.name, "new")
