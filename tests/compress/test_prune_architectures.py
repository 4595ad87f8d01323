"""Heads, feed-forward widths and experts are found and cut, by every score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.compress import Prune, RemoveBlocks
from trimtab.compress.prune.scores import SCORES, unit_scores
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.coupling import Group, groups
from trimtab.graph.model import Graph

WIDTH, HEADS, HIDDEN, EXPERTS = 8, 4, 12, 4


class Experts(nn.Module):
    """Each token goes to all experts, weighed by a softmax: stacked weights, each with a ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 6) * 0.4)
        self.down = nn.Parameter(torch.randn(EXPERTS, 6, WIDTH) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)  # [B, T, experts]
        hidden = torch.einsum("btd,edh->beth", x, self.up).relu()
        return torch.einsum("beth,ehd,bte->btd", hidden, self.down, share)


class Layer(nn.Module):
    """Attention and a feed-forward part, pre-norm: plain, gated, or of experts."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.gate = nn.Linear(WIDTH, HIDDEN) if kind == "gated" else None
        self.experts = Experts() if kind == "experts" else None

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(b, t, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, -1))
        y = self.norm2(x)
        if self.experts is not None:
            return x + self.experts(y)
        if self.gate is not None:
            return x + self.down(self.gate(y).relu() * self.up(y))
        return x + self.down(self.up(y).relu())


class Small(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(5, WIDTH), Layer(kind), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


def small(kind: str) -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model, x = Small(kind).eval(), torch.randn(6, 7, 5)
    task = Task(model, x, loss=functional.cross_entropy)
    return capture(model, x), Context(task, calibrate=((x, torch.arange(6) % 3),))


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[Graph, Context]]:
    return {kind: small(kind) for kind in ("plain", "gated", "experts")}


def reach(group: Group) -> set[str]:
    return {m.parameter for m in group.members}


def found(graph: Graph, size: int, parameter: str) -> Group:
    """The group of so many units that reaches a parameter and can be cut."""
    (group,) = (g for g in groups(graph) if g.size == size and parameter in reach(g) and g.reason is None)
    return group


def test_what_is_found(networks: dict[str, tuple[Graph, Context]]) -> None:
    for graph, _ in networks.values():
        heads = found(graph, HEADS, "layer.out.weight")
        assert reach(heads) >= {"layer.q.weight", "layer.k.weight", "layer.v.weight"}
    gated, experts = networks["gated"][0], networks["experts"][0]
    both = {f"layer.{n}.{w}" for n in ("up", "gate") for w in ("weight", "bias")}
    assert reach(found(gated, HIDDEN, "layer.down.weight")) == both | {"layer.down.weight"}
    assert reach(found(experts, 6, "layer.experts.up")) == {"layer.experts.up", "layer.experts.down"}
    assert reach(found(experts, EXPERTS, "layer.experts.router.weight")) >= {"layer.experts.up", "layer.experts.down"}


@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize("score", [s for s in SCORES if s != "batch_norm"])
def test_the_feed_forward_width_is_cut_by_every_score(
    networks: dict[str, tuple[Graph, Context]], kind: str, score: Any
) -> None:
    graph, context = networks[kind]
    everything_else = ("embed", "layer.q", "layer.k", "layer.v", "layer.out", "head")
    settled = Prune(ratio=0.5, score=score, multiple=1, fixed=everything_else).resolve(graph, context)
    assert isinstance(settled, Prune)
    (units,) = (settled.keep or {}).values()
    assert len(units) == HIDDEN // 2
    result = settled.apply(graph, context)
    assert result.tensors()["layer.down.weight"].shape == (WIDTH, HIDDEN // 2)


@pytest.mark.parametrize("score", [s for s in SCORES if s not in ("batch_norm", "apoz")])
def test_heads_are_cut_by_every_score(networks: dict[str, tuple[Graph, Context]], score: Any) -> None:
    graph, context = networks["plain"]
    group = found(graph, HEADS, "layer.out.weight")
    scores = unit_scores(graph, [group], score, context)[group.name]
    result = Prune(keep={group.name: sorted(scores.topk(2).indices.tolist())}).apply(graph, context)
    assert result.tensors()["layer.out.weight"].shape == (WIDTH, WIDTH // 2)
    assert result.tensors()["layer.q.weight"].shape == (WIDTH // 2, WIDTH)


def test_heads_never_read_zero_where_nothing_is_rectified(networks: dict[str, tuple[Graph, Context]]) -> None:
    graph, context = networks["plain"]
    with pytest.raises(InputError, match="values that are never zero"):
        unit_scores(graph, [found(graph, HEADS, "layer.out.weight")], "apoz", context)


@pytest.mark.parametrize("allocate", ["global", "macs", "params"])
def test_all_widths_of_a_transformer_together(networks: dict[str, tuple[Graph, Context]], allocate: Any) -> None:
    graph, context = networks["gated"]
    result = Prune(ratio=0.4, score="taylor", allocate=allocate, multiple=1).apply(graph, context)
    x = context.calibrate[0][0]
    with torch.no_grad():
        assert result(x).shape == (6, 3)  # type: ignore[union-attr]
    before, after = (sum(p.numel() for p in g.net.parameters()) for g in (graph, result))
    assert after < 0.85 * before


@pytest.mark.parametrize("score", ["l2", "fpgm", "lamp", "taylor", "eq9", "taylor_gate", "fisher", "random"])
def test_experts_are_cut(networks: dict[str, tuple[Graph, Context]], score: Any) -> None:
    graph, context = networks["experts"]
    group = found(graph, EXPERTS, "layer.experts.up")
    scores = unit_scores(graph, [group], score, context)[group.name]
    result = Prune(keep={group.name: sorted(scores.topk(3).indices.tolist())}).apply(graph, context)
    assert result.tensors()["layer.experts.up"].shape == (3, WIDTH, 6)
    assert result.tensors()["layer.experts.router.weight"].shape == (3, WIDTH)


@pytest.mark.parametrize("score", ["cosine", "angular", "output"])
def test_blocks_of_a_transformer_by_how_they_turn_the_stream(
    networks: dict[str, tuple[Graph, Context]], score: Any
) -> None:
    graph, context = networks["plain"]
    with torch.no_grad():
        graph = graph.copy()
        graph.tensors()["layer.down.weight"].mul_(1e-3)
        graph.tensors()["layer.down.bias"].mul_(1e-3)
    (name,) = RemoveBlocks(count=1, score=score).resolve(graph, context).blocks or ()
    left = RemoveBlocks(blocks=(name,)).apply(graph, context).tensors()
    assert "layer.down.weight" not in left
    assert "layer.out.weight" in left
