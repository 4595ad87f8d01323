"""Chain: where the values lie through which everything must pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.compress.residual import Residual
from trimtab.graph.capture import capture
from trimtab.graph.chain import chain


def names(model: nn.Module, *shape: int) -> list[str]:
    return [link.name for link in chain(capture(model.eval(), torch.randn(2, *shape)))]


def test_a_residual_network_is_a_chain_of_its_blocks() -> None:
    graph = capture(Residual().eval(), torch.randn(2, 3, 16, 16))
    found = chain(graph)
    assert [link.name for link in found] == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    nodes = {n.name: n for n in graph.nodes()}
    assert all(str(nodes[link.node].target) == "aten.relu.default" for link in found[:-1])
    stem, block = 3 * 16 * 9 * 256, 2 * 16 * 16 * 9 * 256
    later = (16 * 32 + 3 * 32 * 32) * 9 * 64 + 32 * 4
    assert found[0].share == pytest.approx(stem / (stem + 2 * block + later))
    assert found[2].share == pytest.approx((stem + 2 * block) / (stem + 2 * block + later))


def test_a_plain_chain_ends_its_blocks_behind_pools_and_activations() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, 1, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3)),
    )
    graph = capture(model.eval(), torch.randn(2, 3, 8, 8))
    found = chain(graph)
    nodes = {n.name: str(n.target) for n in graph.nodes()}
    assert [nodes[link.node] for link in found] == ["aten.max_pool2d.default", "aten.relu.default", "aten.relu.default"]
    assert [link.name for link in found] == ["0", "3", "6"]


class Skipping(nn.Module):
    """A connection from the first layer to the last passes all between by."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3 if i == 0 else 4, 4, 3, 1, 1) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        return self.d(torch.relu(self.c(torch.relu(self.b(a)))) + a).mean((2, 3))  # type: ignore[no-any-return]


def test_what_a_connection_passes_by_is_no_link() -> None:
    assert names(Skipping(), 3, 8, 8) == ["a", ""] or names(Skipping(), 3, 8, 8)[0] == "a"
    graph = capture(Skipping().eval(), torch.randn(2, 3, 8, 8))
    reads = {link.node for link in chain(graph)}
    inner = [n.name for n in graph.nodes(torch.ops.aten.relu.default)][1:]
    assert not reads & set(inner)


class Layers(nn.Module):
    """A transformer whose mask goes to every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            mask = torch.zeros_like(keep).masked_fill(keep < 0, -1e9)
            x = layer(x, src_key_padding_mask=mask)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_a_transformer_is_a_chain_of_its_layers_though_a_mask_passes_by() -> None:
    graph = capture(Layers().eval(), (torch.randn(2, 6, 5), torch.ones(2, 6)))
    found = [link.name for link in chain(graph)]
    assert {"layers.0", "layers.1"} <= set(found)


def test_a_value_that_is_written_over_is_no_link() -> None:
    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(functional.relu(y, inplace=True))  # type: ignore[no-any-return]

    graph = capture(Over().eval(), torch.randn(2, 4))
    (only,) = chain(graph)
    assert only.node.startswith("relu")
