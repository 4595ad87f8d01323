"""The networks of the coverage bench, by name: small, random, quick to build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.networks_own import OWN
from bench.networks_sequence import SEQUENCE
from bench.networks_signals import SIGNALS
from bench.networks_vision import VISION

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {**OWN, **SIGNALS, **VISION, **SEQUENCE}


def network(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """The named network in eval mode with settled random weights, and one example of a batch of two."""
    torch.manual_seed(seed)
    model, example = NETWORKS[name]()
    return settled(model).eval(), example


def settled(model: nn.Module) -> nn.Module:
    """Give constant weights (zero biases, unit scales, 1e-6 layer scales) and running statistics spread-out values.

    At their initial values they would hide mistakes: a bias cut at the wrong places is still zero.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.copy_(parameter.clamp(min=0.5) if parameter.abs().max() > 0.5 else parameter * 0)
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model
