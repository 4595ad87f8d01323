"""The full-size network that computes what a cut one computes: removed channels masked to zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.model import EXAMPLE_BATCH, Graph, shaped
from trimtab.graph.rules import rule
from trimtab.graph.rules.ties import Bools, Kept, Labels, Value, given, shape

aten = torch.ops.aten


def masked(graph: Graph, values: dict[Node, Value], stays: Callable[[Labels], Bools]) -> Graph:
    """Put zeros where channels were removed, after every node.

    Where an operator's result depends on how many channels there are (a norm, a mean, a softmax),
    its inputs are gathered first, and its result is scattered into zeros.

    Args:
        graph: the network; it is not changed.
        values: the labels of each of its nodes.
        stays: which labels stay.
    """
    result = graph.copy()
    nodes = list(zip(graph.net.graph.nodes, result.net.graph.nodes, strict=True))
    kept = Kept(_constant(graph, {new: values[old] for old, new in nodes if old in values}), stays)
    writer = _Writer(result, kept)
    for _, node in nodes:
        known = rule(node.target) if node.op == "call_function" else None
        over = known.counts(node) if known is not None and known.counts is not None else ()
        counted = any(kept.mask(node.args[0], d) is not None for d in over)
        if known is not None and counted:
            writer.gather(node, known.rewrite)
        else:
            writer.zero(node)
    result.net.graph.lint()
    result.net.recompile()
    return shaped(result)


def _constant(graph: Graph, values: dict[Node, Value]) -> dict[Node, Value]:
    """The labels of dimensions whose size does not depend on the batch; zeros pass through the others."""
    larger = shaped(graph.copy(), EXAMPLE_BATCH + 1)
    sizes = {node.name: shape(node) for node in larger.net.graph.nodes}
    constant: dict[Node, Value] = {}
    for node, value in values.items():
        own: Any = zip(value, shape(node), sizes[node.name], strict=False)
        constant[node] = tuple(x if a == b else None for x, a, b in own) if shape(node) else value
    return constant


def _written(node: Node) -> bool:
    """Whether an operator writes its result into this node's memory, or into a view of it that is a view itself."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if schema is None or not user.args or given(user, 0) is not node:
            continue
        if schema.is_mutable or (_is_view(node) and _is_view(user) and _written(user)):
            return True
    return False


def _is_view(node: Node) -> bool:
    """Whether a node's result shares the memory of its first input."""
    schema = getattr(node.target, "_schema", None)
    first = schema.arguments[0].alias_info if schema is not None and schema.arguments else None
    return first is not None and not first.is_write


class _Writer:
    """Puts nodes into the graph; constants are buffers named `mask_0`, `mask_1`, ..."""

    def __init__(self, graph: Graph, kept: Kept) -> None:
        self.net, self.kept, self.count, self.device = graph.net, kept, 0, graph.device

    def constant(self, tensor: torch.Tensor) -> Node:
        name = f"mask_{self.count}"
        self.count += 1
        self.net.register_buffer(name, tensor.to(self.device))
        node = self.net.graph.get_attr(name)
        node.meta["val"] = tensor
        return node

    def stand_in(self, new: Node, old: Node) -> Node:
        """Let a new node carry the labels of the one it stands for."""
        new.meta["val"] = old.meta["val"]
        self.kept.alias(new, old)
        return new

    def zero(self, node: Node) -> None:
        """Zero what is removed of a node's floating-point result."""
        value = node.meta.get("val")
        masks = self.kept.masks(node) if isinstance(value, torch.Tensor) else {}
        if not isinstance(value, torch.Tensor) or not masks or not value.is_floating_point():
            return
        if _written(node):
            return  # its next form, which an operator writes into the same memory, is zeroed instead
        users = list(node.users)
        with self.net.graph.inserting_after(node):
            last = node
            for dim, keep in masks.items():
                shape = [1] * value.ndim
                shape[dim] = -1
                with self.net.graph.inserting_before(node):
                    mask = self.constant(torch.from_numpy(keep).view(shape))
                with self.net.graph.inserting_after(last):
                    last = self.stand_in(self.net.graph.call_function(aten.where.ScalarOther, (mask, last, 0.0)), node)
        for user in users:
            user.replace_input_with(node, last)

    def gather(self, node: Node, rewrite: Any) -> None:
        """Run an operator on what is left of its inputs, and put its result back into zeros."""
        graph = self.net.graph
        users = list(node.users)
        for arg in list(node.all_input_nodes):
            last = arg
            masks = self.kept.masks(arg)
            for dim, keep in masks.items():
                with graph.inserting_before(node):
                    index = self.constant(torch.from_numpy(np.flatnonzero(keep)))
                    last = self.stand_in(graph.call_function(aten.index_select.default, (last, dim, index)), arg)
            node.replace_input_with(arg, last)
        if rewrite is not None:
            rewrite(node, self.kept)
        last = node
        for dim, keep in self.kept.masks(node).items():
            back = np.where(keep, np.cumsum(keep) - 1, keep.sum())
            rank = node.meta["val"].ndim
            padding = [0] * (2 * (rank - dim))
            padding[-1] = 1
            with graph.inserting_before(node):
                index = self.constant(torch.from_numpy(back))
            with graph.inserting_after(last):
                last = self.stand_in(graph.call_function(aten.constant_pad_nd.default, (last, padding, 0.0)), node)
            with graph.inserting_after(last):
                last = self.stand_in(graph.call_function(aten.index_select.default, (last, dim, index)), node)
        for user in users:
            user.replace_input_with(node, last)
