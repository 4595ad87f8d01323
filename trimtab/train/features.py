"""Features: learn from what the teacher computes on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional


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

    net.register_forward_hook(keep, prepend=True)  # a network tapped twice strips what came last first
    return seen


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """How far features are from the teacher's, mean over the places.

    ||r(s) - t||^2 / ||t||^2, each squared norm over the whole batch

    Args:
        student: r(s) by place: values through their learned map (`mapped`), or as they are where the shapes agree.
        teacher: t: the same places, the same shapes.

    Source: Romero et al. 2015 (FitNets), equation 3 (EQUATIONS 17), which is half the squared norm; here the
    distance is relative, so that places of different size count alike.
    """
    terms = []
    for name, mine in student.items():
        theirs = teacher[name].float()
        terms.append((mine.float() - theirs).square().sum() / theirs.square().sum().clamp(min=1e-12))
    return torch.stack(terms).mean()


def attention_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """How far the maps of where a network answers strongly are from the teacher's, mean over batch and places.

    ||q_s / ||q_s|| - q_t / ||q_t||||^2,  q = vec(sum over channels of a^2)

    Args:
        student: a_s [N, channels, ...] by place; any number of channels.
        teacher: a_t: the same places, the same spatial sizes.

    Source: Zagoruyko & Komodakis 2017 (attention transfer), equation 2 with F = sum |a|^2; the norm is squared, as
    in the authors' code, since the norm itself has no gradient where the maps agree.
    """
    terms = []
    for name, mine in student.items():
        gap = _attention(mine) - _attention(teacher[name])
        terms.append(gap.square().sum(1).mean())
    return torch.stack(terms).mean()


def _attention(values: Tensor) -> Tensor:
    return functional.normalize(values.float().square().sum(1).flatten(1), dim=1)


def alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two values [N, channels, ...] of one spatial size: averaged over areas down to the smaller of the two."""
    sizes = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return _resized(student, sizes), _resized(teacher, sizes)


def _resized(values: Tensor, sizes: list[int]) -> Tensor:
    if list(values.shape[2:]) == sizes:
        return values
    pool: Any = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)
    found: Tensor = pool[len(sizes) - 1](values.float(), sizes)
    return found


def new_map(into: int, of: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The weight [into, of] and bias [into] of a map to learn: normal with standard deviation 1 / sqrt(of), and 0.

    Args:
        into: channels that it gives.
        of: channels that it reads.
        generator: of the random numbers.
    """
    return torch.randn(into, of, generator=generator) / of**0.5, torch.zeros(into)


def mapped(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A learned map of channels: for images a 1x1 convolution, for vectors a linear layer.

    Args:
        values: [N, channels, ...].
        weight: [further channels, channels].
        bias: [further channels].
    """
    return functional.linear(values.float().movedim(1, -1), weight, bias).movedim(-1, 1)
