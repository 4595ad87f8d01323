"""How each operator carries channels, by family of operators."""

from __future__ import annotations

from typing import Any

import torch

from trimtab.graph.rules import (
    attention,
    convolution,
    elementwise,
    layout,
    normalisation,
    picking,
    recurrent,
    spatial,
    views,
)
from trimtab.graph.rules.ties import Rule

RULES: dict[Any, Rule] = {
    **elementwise.RULES,
    **convolution.RULES,
    **normalisation.RULES,
    **attention.RULES,
    **layout.RULES,
    **picking.RULES,
    **views.RULES,
    **spatial.RULES,
    **recurrent.RULES,
}


def rule(target: Any) -> Rule | None:
    """The rule of an operator; `None` where there is none, and what it touches is left whole."""
    if target in RULES:
        return RULES[target]
    return elementwise.POINTWISE if torch.Tag.pointwise in getattr(target, "tags", ()) else None
