"""A network as training calls it."""

from __future__ import annotations

import torch
from torch import nn

from trimtab.graph.capture import capture
from trimtab.train.network import Learner


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.bf16, self.channels_last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.channels_last(self.bf16(self.last(x)))


def test_parts_may_have_the_names_of_its_own_attributes() -> None:
    model, x = Named().eval(), torch.randn(3, 4)
    network = Learner(capture(model, x))
    found = network(x)
    assert torch.equal(found, model(x))
    assert network.last is not None
    assert network.last[2] is found
