"""Algebra: what an exported file does not hold any more, whichever runtime reads it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from trimtab.graph.capture import capture
from trimtab.run import runtimes
from trimtab.run.export import export_onnx


class Wasteful(nn.Module):
    """One linear layer and a sigmoid, with much that does nothing around them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("table", torch.arange(16.0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) * 1.0 + 0.0  # neutral elements
        y = (y - 0.0) / 1.0
        y = y.permute(0, 2, 1).permute(0, 2, 1)  # two transposes that undo each other
        y = y.reshape(-1, 4, 2, 16).reshape(-1, 8, 16)  # two reshapes, of which the last one counts
        y = torch.relu(torch.relu(y))
        _ = torch.tanh(y) * 3.0  # dead
        scale = (self.table * 2.0 + 1.0).sqrt()  # of constants
        return (torch.sigmoid(y) + torch.sigmoid(y)) * scale  # one value, computed twice


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    network = Wasteful().eval()
    path = tmp_path_factory.mktemp("algebra") / "net.onnx"
    export_onnx(capture(network, torch.randn(2, 8, 16)), path)
    return network, path


def test_only_what_computes_is_left(made: tuple[nn.Module, Path]) -> None:
    kinds = Counter(node.op_type for node in onnx.load(made[1]).graph.node)
    assert kinds.pop("Reshape", 0) <= 1
    assert kinds == {"MatMul": 1, "Add": 2, "Relu": 1, "Sigmoid": 1, "Mul": 1}


def test_it_computes_the_same(made: tuple[nn.Module, Path]) -> None:
    network, path = made
    x = torch.randn(5, 8, 16)
    for runtime in runtimes():
        session = runtime.load(path)
        (found,) = session.run([x.numpy()])
        session.close()
        torch.testing.assert_close(torch.from_numpy(found), network(x), rtol=1e-5, atol=1e-6)


def test_onnxscript_finds_nothing_left_to_do(made: tuple[nn.Module, Path]) -> None:
    """So that it is not run a second time on the packed file."""
    import onnx_ir
    from onnxscript import optimizer, rewriter

    before = onnx.load(made[1])
    again = onnx_ir.serde.serialize_model(rewriter.rewrite(optimizer.optimize(onnx_ir.serde.deserialize_model(before))))
    assert [n.op_type for n in again.graph.node] == [n.op_type for n in before.graph.node]
