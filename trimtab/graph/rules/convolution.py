"""Convolutions of one to three dimensions, plain, grouped, depthwise and transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.rules.ties import Kept, Labels, Rule, Ties, Value, argument, given, set_argument, shape

aten = torch.ops.aten


def _layout(node: Node) -> tuple[bool, int, int]:
    """Whether it is transposed, where the number of groups stands, and what it is."""
    if node.target is aten.convolution.default:
        return bool(given(node, 6)), 8, int(given(node, 8))
    return "transpose" in str(node.target), 6, int(argument(node, 6, "groups", 1))


def convolution(ties: Ties, node: Node) -> Value:
    """Weights are (out, in / groups, ...), or (in, out / groups, ...) where transposed; a group is one unit."""
    x, weight, bias = given(node, 0), given(node, 1), argument(node, 2, "bias")
    transposed, _, groups = _layout(node)
    rank = len(shape(weight))
    wide, thin = ties.of(weight)[:2]
    for kernel in ties.of(weight)[2:]:
        ties.hide(kernel)
    source = ties.of(x)[-rank + 1]
    for space in ties.of(x)[-rank + 2 :]:
        ties.pin(space, f"{node.name} slides over it")
    if groups == 1:
        into, out = (wide, thin) if transposed else (thin, wide)
        ties.tie(source, into, f"{node.name} reads an input that is left whole")
        ties.produce(weight, 1 if transposed else 0)
    else:
        out = _grouped(ties, node, transposed, groups)
    if isinstance(bias, Node):
        ties.tie(out, ties.of(bias)[0], f"{node.name} has a bias that is left whole")
    batch = ties.of(x)[: -rank + 1]
    return (*batch, out, *(None,) * (rank - 2))


def _grouped(ties: Ties, node: Node, transposed: bool, groups: int) -> Labels | None:
    x, weight = given(node, 0), given(node, 1)
    wide, thin = ties.of(weight)[:2]
    ties.hide(thin)
    source = ties.of(x)[-len(shape(weight)) + 1]
    width = shape(x)[-len(shape(weight)) + 1]
    why = f"{node.name} reads an input that is left whole"
    units = None if wide is None else ties.tie_rows(wide.reshape(groups, -1), "")
    if source is None or units is None:
        ties.tie(source, units, why)
    else:
        ties.tie(ties.tie_rows(source.reshape(groups, width // groups), ""), units, why)
    if not transposed or units is None:
        return wide
    return np.repeat(units, shape(weight)[1])


def rewrite_groups(node: Node, kept: Kept) -> None:
    """A grouped convolution keeps whole groups: as many as are left."""
    _, at, groups = _layout(node)
    mask = kept.mask(given(node, 1), 0)
    if groups > 1 and mask is not None:
        set_argument(node, at, "groups", int(mask.sum()) * groups // len(mask))


_OPS = [
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    aten.convolution.default,
]  # fmt: skip
RULES: dict[Any, Rule] = {op: Rule(convolution, rewrite_groups) for op in _OPS}
