"""Networks quantised for the Ethos-U."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.compress import Quantise
from trimtab.core.context import Context
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.run.fusable import ETHOS_U, IntegerSupport


def quantised(model: nn.Module, example: Tensor, support: IntegerSupport = ETHOS_U) -> Graph:
    context = Context(Task(model, example[:2]), support=support, calibrate=((example,),))
    return Quantise().apply(capture(model, example[:2]), context)


class Mixed(nn.Module):
    """What has rules of its own: relu6 and hardtanh, concatenation of a clipped and a plain branch, a gate, pools."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 8, 1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.cat([nn.functional.relu6(self.a(x)), self.b(x)], 1)
        x = nn.functional.max_pool2d(nn.functional.hardtanh(self.depth(x)), 2)
        x = x * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(x, 1)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
