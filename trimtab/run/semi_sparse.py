"""Semi-sparse: linear layers of which each four inputs have two zeros, in the GPU kernel that skips them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.graph.model import Graph

MULTIPLE = 64
"""Rows and columns that the kernel takes are multiples of this many, in 16 bits."""


def semi_sparse_weights(graph: Graph) -> tuple[str, ...]:
    """The names of the weights of linear layers that are 2:4 and that the kernel takes.

    Args:
        graph: any; only weights that linear layers alone read are looked at.
    """
    tensors, found = graph.tensors(), []
    for node in graph.net.graph.find_nodes(op="get_attr"):
        linear = all(u.target is torch.ops.aten.linear.default and u.args[1] is node for u in node.users)
        weight = tensors.get(str(node.target))
        if node.users and linear and weight is not None and two_of_four(weight):
            found.append(str(node.target))
    return tuple(dict.fromkeys(found))


def two_of_four(weight: Tensor) -> bool:
    """Whether a weight [out, in] has at least two zeros in each four inputs, in shapes that the kernel takes."""
    if weight.ndim != 2 or not weight.is_floating_point() or any(n % MULTIPLE for n in weight.shape):
        return False
    return bool(((weight != 0).reshape(len(weight), -1, 4).sum(-1) <= 2).all())


def put_kernels(net: nn.Module, names: tuple[str, ...]) -> None:
    """Give weights on a GPU, in 16 bits, the form that the kernel reads, in place.

    It is the form of torchao's `semi_sparse_weight`, which takes modules; a captured graph has none.

    Args:
        net: the caller's own.
        names: of weights that `semi_sparse_weights` found.
    """
    from torch.sparse import to_sparse_semi_structured

    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = net.get_submodule(path)
        dense = getattr(owner, leaf).detach()
        setattr(owner, leaf, nn.Parameter(to_sparse_semi_structured(dense), requires_grad=False))
