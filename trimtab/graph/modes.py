"""Training and evaluation: switch only the flags, keep p, eps and momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from trimtab.graph.model import Graph

_ATEN = torch.ops.aten
_FLAGS = ("train", "training", "use_input_stats")
_EVALUATING: dict[Any, Any] = {
    _ATEN.bernoulli_.float: _ATEN.fill_.Scalar,
    _ATEN.bernoulli.p: _ATEN.full_like.default,
    _ATEN.floor_.default: _ATEN.fill_.Scalar,
    _ATEN.floor.default: _ATEN.full_like.default,
    _ATEN.randn.default: _ATEN.zeros.default,
    _ATEN.randn_like.default: _ATEN.zeros_like.default,
}
_BY_NAME = {str(op): op for op in _EVALUATING}


def set_mode(graph: Graph, training: bool) -> Graph:
    """Switch a graph to training or evaluation in place and return it.

    Changed are batch and instance norm's training flag, the count of batches, every dropout's flag,
    attention's dropout argument, recurrent layers' flag, and random masks (drop path), which become
    their expected value. What was off when the graph was captured (a frozen batch norm) stays off.

    The graph's owner alone may call this: whoever made, copied or loaded it. Nodes whose
    `meta["train"]` is set are evaluating; the entry holds what training needs back.
    """
    change = _to_training if training else _to_evaluation
    changed = 0
    for node in graph.nodes():
        changed += change(node)
    if changed:
        graph.net.recompile()
    graph.net.training = training
    return graph


def _to_evaluation(node: Node) -> bool:
    if "train" in node.meta:
        return False
    edit = _edit(node)
    if edit is None:
        return False
    target, args, saved = edit
    node.meta["train"] = {"op": str(node.target), "arity": len(node.args), "args": saved}
    node.target, node.args = target, args
    return True


def _to_training(node: Node) -> bool:
    saved = node.meta.pop("train", None)
    if saved is None:
        return False
    args = list(node.args[: saved["arity"]])
    for index, value in saved["args"].items():
        args[int(index)] = value
    node.target = _BY_NAME.get(saved["op"], node.target)
    node.args = tuple(args)
    return True


def _edit(node: Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Target and arguments for evaluation, and the arguments that training needs back."""
    if node.target in _EVALUATING:
        args = _expected(node)
        return None if args is None else (_EVALUATING[node.target], args, {})
    off = _switched_off(node)
    if not off:
        return None
    args = tuple(off.get(index, value) for index, value in enumerate(node.args))
    return node.target, args, {str(index): node.args[index] for index in off}


def _expected(node: Node) -> tuple[Any, ...] | None:
    if node.target not in (_ATEN.floor.default, _ATEN.floor_.default):
        return node.args
    # drop path as floor(keep + uniform): one with probability keep
    total = node.args[0]
    if isinstance(total, Node) and total.target is _ATEN.add.Tensor:
        uniform, keep = total.args[:2]
        if isinstance(uniform, Node) and uniform.target in (_ATEN.rand.default, _ATEN.rand_like.default):
            return (total, keep) if isinstance(keep, (int, float)) else None
    return None


def _switched_off(node: Node) -> dict[int, Any]:
    if node.target is _ATEN.add_.Tensor:
        counter = node.args[0]
        counts = isinstance(counter, Node) and str(counter.target).endswith("num_batches_tracked")
        return {1: 0} if counts and node.args[1] != 0 else {}
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    given = dict(zip(names, node.args, strict=False))
    if "norm" in str(node.target) and given.get("running_mean") is None:
        return {}  # no running statistics: the batch's own are used in evaluation too
    off: dict[int, Any] = {names.index(name): False for name in _FLAGS if given.get(name) is True}
    if given.get("dropout_p"):
        off[names.index("dropout_p")] = 0.0
    return off
