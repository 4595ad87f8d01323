"""Recalibration against torch's own cumulative average."""

import copy

import pytest
import torch
from torch import nn

from trimtab.core.errors import InputError
from trimtab.graph.capture import capture
from trimtab.train.recalibrate import recalibrate_norms

from .small import Net, same


def cumulative(net, batches):
    """Torch's own cumulative average: batch norm with `momentum=None`, everything else evaluating."""
    net = copy.deepcopy(net).eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for x in batches:
            net(x)
    return net


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Net(dropout=0.5), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.second(self.first(x)[:, :, None, None] + self.first.bn1(self.first.conv1(x))[:, :4])


@pytest.mark.parametrize("make", [Net, Deep])
def test_equals_torchs_cumulative_average(make):
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        net(3 * torch.randn(16, 3, 8, 8))  # statistics that are wrong for what comes
    batches = [torch.randn(8, 3, 8, 8) + i for i in range(4)]
    graph = capture(net, batches[0])
    before = graph.copy()
    if make is Net:
        found = recalibrate_norms(graph, batches).tensors()
        expected = cumulative(net, batches).state_dict()
        for name in ("bn1.running_mean", "bn1.running_var"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    else:
        found = recalibrate_norms(graph, batches).tensors()
        assert not torch.equal(found["second.running_mean"], before.tensors()["second.running_mean"])
    assert same(graph, before)
    assert graph.net.code == before.net.code
    kept = [name for name in found if "running" not in name]
    assert all(torch.equal(found[name], before.tensors()[name]) for name in kept)


def test_batches_weigh_by_their_samples_and_nan_is_forgotten():
    net = nn.Sequential(nn.BatchNorm1d(2))
    net[0].running_mean.fill_(float("nan"))
    graph = capture(nn.Sequential(nn.BatchNorm1d(2)), torch.randn(4, 2))
    graph.tensors()["0.running_mean"].fill_(float("nan"))
    a, b = torch.randn(6, 2), torch.randn(2, 2) + 1
    found = recalibrate_norms(graph, [(a, torch.zeros(6)), b, torch.randn(1, 2)]).tensors()
    torch.testing.assert_close(found["0.running_mean"], torch.cat([a, b]).mean(0))
    torch.testing.assert_close(found["0.running_var"], (6 * a.var(0) + 2 * b.var(0)) / 8)


def test_a_network_without_norms_and_no_data():
    graph = capture(nn.Linear(3, 2), torch.randn(2, 3))
    assert same(recalibrate_norms(graph, []), graph)
    normed = capture(nn.Sequential(nn.BatchNorm1d(2)), torch.randn(4, 2))
    with pytest.raises(InputError, match="data: calibrate: got no batch of two samples"):
        recalibrate_norms(normed, [torch.randn(1, 2)])
