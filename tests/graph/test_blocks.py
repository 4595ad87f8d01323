"""Blocks: which residual branches can go, what is left without them, and cuts after them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.small_networks import Call, built, captured
from trimtab.core.errors import SurgeryError
from trimtab.graph.blocks import blocks, remove
from trimtab.graph.capture import capture
from trimtab.graph.coupling import groups
from trimtab.graph.modes import set_mode
from trimtab.graph.surgery import cut


class Basic(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.bn1(self.conv1(x)))))


def residual():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), *(Basic(8) for _ in range(3)), nn.Conv2d(8, 4, 1)).double()


IMAGE = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def test_residual_blocks_are_found_by_name():
    found = blocks(capture(residual(), IMAGE))
    assert [block.name for block in found] == ["2", "3", "4"]
    assert "2.conv1.weight" in found[0].parameters
    assert "2.bn1.running_mean" in found[0].parameters
    assert "2.bn1.num_batches_tracked" in found[0].parameters
    assert len(found[0].nodes) == 5  # two convolutions, a norm with its count of batches, a ReLU


def test_a_block_of_the_paper_that_changes_the_width_is_none():
    assert [block.name for block in blocks(captured("option_a")[0])] == ["conv2"]


def test_removed_blocks_are_the_network_without_them():
    model = residual().eval()
    graph = capture(model, IMAGE)
    small = remove(graph, ["3"])
    expected = nn.Sequential(*(layer for i, layer in enumerate(model) if i != 3))
    torch.testing.assert_close(small(IMAGE), expected(IMAGE), rtol=0, atol=0)
    assert not any(name.startswith("3.") for name in small.tensors())
    assert any(name.startswith("3.") for name in graph.tensors())
    assert [block.name for block in blocks(small)] == ["2", "4"]


def test_neighbouring_blocks_go_together():
    model = residual().eval()
    small = remove(capture(model, IMAGE), ["4", "2", "3"])
    torch.testing.assert_close(small(IMAGE), model[5](model[1](model[0](IMAGE))), rtol=0, atol=0)


def test_attention_and_mlp_of_a_transformer_are_two_blocks():
    model, (graph, example) = built("merged_attention")[0], captured("merged_attention")
    assert [b.name for b in blocks(graph)] == [
        "blocks.0.attention",
        "blocks.0.mlp",
        "blocks.1.attention",
        "blocks.1.mlp",
    ]
    small = remove(graph, ["blocks.0.mlp", "blocks.1.attention"])
    x = torch.cat([model.token.expand(2, -1, -1), model.patch(example)], 1) + model.position
    x = x + model.blocks[0]["attention"](model.blocks[0]["norm1"](x))
    x = x + model.blocks[1]["mlp"](model.blocks[1]["norm2"](x))
    torch.testing.assert_close(small(example), model.head(model.norm(x)[:, 0]), rtol=1e-12, atol=1e-12)


def test_blocks_and_cuts_compose():
    model = residual().eval()
    graph = capture(model, IMAGE)
    keep = {"0.weight:0": [0, 3, 5], "2.conv1.weight:0": [1, 2]}
    one = cut(remove(graph, ["4"]), keep)
    two = remove(cut(graph, keep), ["4"])
    torch.testing.assert_close(one(IMAGE), two(IMAGE), rtol=0, atol=0)
    assert {g.name for g in groups(one) if g.reason is None} == {"0.weight:0", "2.conv1.weight:0", "3.conv1.weight:0"}


def test_a_network_without_a_block_still_trains():
    small = set_mode(remove(capture(residual(), IMAGE), ["2"]), True)
    small(IMAGE).square().sum().backward()
    assert all(p.grad is not None for p in small.net.parameters())
    assert small.net.get_buffer("3.bn1.num_batches_tracked") == 1


def test_a_branch_that_something_else_reads_is_no_block():
    def forward(m, x):
        y = m.a(x)
        hidden = m.b(y)
        return m.c(y + hidden), hidden.mean()

    model = Call(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2))
    assert blocks(capture(model, torch.randn(2, 4))) == ()


def test_a_constant_added_is_no_block():
    model = Call(lambda m, x: m.a(x) + m.a.bias, a=nn.Linear(4, 4))
    assert blocks(capture(model, torch.randn(2, 4))) == ()


def test_an_unknown_block_names_the_others():
    with pytest.raises(SurgeryError, match="remove: 9: got no block of this name among 2, 3, 4"):
        remove(capture(residual(), IMAGE), ["9"])
