"""What became of each layer: its shape, the integers that its weights are, and what is said of few bits."""

from __future__ import annotations

import torch
from torch import nn

from trimtab.compress.factorise.technique import Factorise
from trimtab.compress.quantise.technique import Quantise
from trimtab.compress.sparsify.technique import Sparsify
from trimtab.core.context import Context
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.modes import set_mode
from trimtab.pipeline.layers import layer_rows, stored_only


def test_each_layer_says_what_its_weights_are() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)), nn.Linear(64, 64, bias=False)).eval()
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    graph = set_mode(capture(network, x[:2]), False)
    layers = {"1": {"bits": 4}, "2": {"kind": "binary"}, "3": {"kind": "ternary"}, "4": {"bits": 4, "group": 32}}
    made = Quantise(layers=layers, skip=("5",)).apply(graph, Context(Task(network, x[:2]), calibrate=(x,)))
    rows = layer_rows(graph, made)
    kinds = ["int8", "int4", "binary", "int2", "int4 by group", "float32"]
    assert [(row["name"], row["precision"]) for row in rows] == list(zip("012345", kinds, strict=True))
    told = stored_only(rows)
    assert told is not None
    assert told.startswith("3 of 6 layers keep their weights in few bits on disk (binary, int2, int4)")
    assert "smaller, not faster" in told
    assert stored_only(rows[:1] + rows[4:]) is None


def test_a_chain_of_layers_is_one_row_with_its_number_of_weights() -> None:
    network = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    graph = set_mode(capture(network, torch.randn(2, 12)), False)
    made = Factorise(ranks={"0": 3}).apply(graph, Context(Task(network, torch.randn(2, 12))))
    first, last = layer_rows(graph, made)
    assert first == {"name": "0", "before": [10, 12], "after": [3 * (12 + 10)], "precision": "float32"}
    assert last["after"] == [4, 10]


def test_sparse_layers_tell_the_share_of_their_zeros() -> None:
    network = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10)).eval()
    x = torch.randn(16, 40, generator=torch.Generator().manual_seed(1))
    graph = set_mode(capture(network, x[:2]), False)
    context = Context(Task(network, x[:2]), calibrate=(x,))
    made = Sparsify(ratio=0.9, scope="layer", skip=("2",)).apply(graph, context)
    rows = layer_rows(graph, made)
    assert [row.get("zeros") for row in rows] == [0.9, None]
    told = stored_only(rows)
    assert told is not None
    assert told.startswith("1 of 2 layers are sparse (90.0 % of their weights are zero)")
    assert "smaller, not faster" in told
    both = stored_only(layer_rows(graph, Quantise(weight={"bits": 4}).apply(made, context)))
    assert both is not None
    assert "few bits" in both
    assert "are sparse" in both


def test_levels_that_are_zero_are_not_sparse_where_they_are_stored_as_any_others() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
        for layer in network:
            nn.init.normal_(layer.weight)
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    graph = set_mode(capture(network, x[:2]), False)
    weight = {"bits": 4, "per": "tensor"}
    made = Quantise(weight=weight).apply(graph, Context(Task(network, x[:2]), calibrate=(x,)))
    levels = [t for t in made.tensors().values() if t.dtype == torch.int8 and t.ndim == 2]
    assert [float((t == 0).float().mean()) > 0.2 for t in levels] == [True, True]
    rows = layer_rows(graph, made)
    assert [row["precision"] for row in rows] == ["int4", "int4"]
    assert not any("zeros" in row for row in rows)
    assert "sparse" not in str(stored_only(rows))
