"""2:4 linear layers: found by content; on a GPU, they compute what the dense ones do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.compress.sparsify.technique import Sparsify
from trimtab.core.context import Context
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.save import save
from trimtab.run.cuda import Cuda
from trimtab.run.semi_sparse import semi_sparse_weights, two_of_four


def network() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    x = torch.randn(64, 128)
    return set_mode(capture(model, x[:2]), False), Context(Task(model, x[:2]), calibrate=(x,))


def test_weights_are_found_by_where_their_zeros_lie() -> None:
    graph, context = network()
    assert semi_sparse_weights(graph) == ()
    made = Sparsify(pattern="2:4", method="wanda").apply(graph, context)
    assert semi_sparse_weights(made) == ("0.weight", "2.weight")  # ten rows are no multiple of 64
    assert semi_sparse_weights(Sparsify(0.5, scope="layer").apply(graph, context)) == ()
    assert not two_of_four(torch.zeros(64, 64, 1, 1))


@pytest.mark.gpu
def test_the_kernel_computes_what_dense_layers_do(tmp_path: Path) -> None:
    if why := Cuda().available():
        pytest.skip(why)
    from trimtab.run.cuda_session import CudaSession, has_semi_sparse

    graph, context = network()
    made = Sparsify(pattern="2:4").apply(graph, context)
    save(made, tmp_path)
    assert has_semi_sparse(tmp_path / "model.onnx")
    x = torch.randn(64, 128).numpy()
    dense, sparse = (CudaSession(tmp_path / "model.onnx", 64, "fp16", sparse=s).run([x])[0] for s in (False, True))
    assert np.abs(dense - sparse).max() <= 1e-2 * np.abs(dense).max()
