"""Fresh: an architecture with new weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from trimtab.core.errors import InputError


def fresh(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a module whose parameters are drawn anew, by each layer's own `reset_parameters`.

    Those that have `_reset_parameters`, as attention has, draw theirs after the layers inside them, as they are made.

    Args:
        model: any; it is not changed.
        seed: of the random numbers.

    Raises:
        InputError: a parameter belongs to a module that cannot draw it anew.
    """
    own = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        later: list[Any] = []
        for name, module in own.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif callable(getattr(module, "_reset_parameters", None)):
                later.append(module)
            elif next(module.parameters(recurse=False), None) is not None:
                parameter = next(module.named_parameters(recurse=False))[0]
                raise InputError(
                    "fresh: a parameter that no layer can draw anew",
                    where=f"{name}.{parameter}".lstrip("."),
                    got=f"{type(module).__name__} without reset_parameters()",
                    do="Give it one, or give a task whose model has new weights already.",
                )
        for module in reversed(later):
            module._reset_parameters()
    return own
