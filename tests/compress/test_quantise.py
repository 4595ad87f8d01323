"""Quantise: ranges, annotation, numerics and the form of the result."""

from __future__ import annotations

import torch
from torch import nn

from trimtab.compress import Quantise
from trimtab.core.context import Context
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(y + self.bn2(self.conv2(y)))
        return self.linear(y.mean((2, 3)))


def captured() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(8, 3, 8, 8)
    return capture(model, x), Context(Task(model, x), calibrate=((x,),))


def test_int8_weights_keep_their_names_and_outputs_stay_close() -> None:
    graph, context = captured()
    before = {k: v.clone() for k, v in graph.tensors().items()}
    quantised = Quantise().apply(graph, context)
    tensors = quantised.tensors()
    assert tensors["conv1.weight"].dtype == torch.int8
    assert tensors["conv1.weight_scale"].shape == (8,)
    x = context.calibrate[0][0]
    with torch.no_grad():
        wanted, found = graph(x), quantised(x)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 0.05
    assert all(torch.equal(before[k], v) for k, v in graph.tensors().items())
