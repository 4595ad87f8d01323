"""Features: learn from what the teacher computes on the way, at places that both networks still have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from trimtab.graph.model import Graph

aten = torch.ops.aten
_JOINS = (aten.add.Tensor, aten.add_.Tensor)
_ACTIVATIONS = (aten.relu.default, aten.relu_.default, aten.silu.default, aten.gelu.default, aten.hardswish.default)
MOST = 8
"""Places that are compared: more cost memory and teach little new."""


def places(student: Graph, teacher: Graph, most: int = MOST) -> tuple[str, ...]:
    """Names of the nodes at which a cut network can be compared with its original, in order.

    They are the results of residual additions, behind their activation, or of activations where there is
    no addition; of those, the ones that have the same name, operator and shape in both, evenly spread, the
    last one always among them.
    """
    theirs = {node.name: node for node in teacher.nodes()}

    def shared(node: Node) -> bool:
        other = theirs.get(node.name)
        return other is not None and other.target == node.target and _shape(other) == _shape(node)

    joins = [_behind(n) for n in student.nodes(*_JOINS) if all(isinstance(a, Node) for a in n.args[:2])]
    found = [n for n in dict.fromkeys(joins) if len(_shape(n)) > 2 and shared(n)]
    if not found:
        found = [n for n in student.nodes(*_ACTIVATIONS) if len(_shape(n)) > 2 and shared(n)]
    if len(found) > most:
        found = [found[round((i + 1) * len(found) / most) - 1] for i in range(most)]
    return tuple(node.name for node in found)


def _behind(node: Node) -> Node:
    """The activation behind a node where that is all that reads it, else the node."""
    user = next(iter(node.users), None)
    return user if user is not None and len(node.users) == 1 and user.target in _ACTIVATIONS else node


def _shape(node: Node) -> tuple[object, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def tapped(net: GraphModule, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Make a network keep the values of some of its nodes, in place; gives where those of the last call lie.

    Args:
        net: gets further outputs, which its callers don't see.
        names: of the nodes.
    """
    nodes = {node.name: node for node in net.graph.nodes}
    end = next(node for node in net.graph.nodes if node.op == "output")
    own: Any = end.args[0]
    end.args = ((*own, *(nodes[name] for name in names)),)
    net.recompile()
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, __: Any, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.update(zip(names, values[len(own) :], strict=True))
        return tuple(values[: len(own)])

    net.register_forward_hook(keep)
    return seen


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """How far features are from the teacher's, mean over the places.

    ||s - t||^2 / ||t||^2, each squared norm over the whole batch

    Args:
        student: values by place.
        teacher: the same places, the same shapes.

    Source: Romero et al. 2015 (FitNets), equation 3 (EQUATIONS 17); the learned map is the identity, as the shapes
    agree, and the distance is relative, so that places of different size count alike.
    """
    terms = []
    for name, mine in student.items():
        theirs = teacher[name].float()
        terms.append((mine.float() - theirs).square().sum() / theirs.square().sum().clamp(min=1e-12))
    return torch.stack(terms).mean()
