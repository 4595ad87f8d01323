"""Fuse for deployment: batch norm into the layer before it, and what depends on parameters alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from trimtab.graph.model import Graph, place, shaped
from trimtab.graph.modes import set_mode
from trimtab.graph.simplify import pruned, simplify

_ATEN = torch.ops.aten
_PLAIN = {
    *(_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default),
    *(_ATEN.conv1d.padding, _ATEN.conv2d.padding, _ATEN.conv3d.padding),
}
_TRANSPOSED = {_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input}
_LARGEST = 1 << 20


def for_inference(graph: Graph, live: Collection[str] = ()) -> Graph:
    """The graph as it is deployed: nothing that only training needs, batch norm folded, constants computed.

    Args:
        graph: any.
        live: names of weights whose batch norm stays.
    """
    return fold_constants(fold_batch_norm(simplify(graph), live))


def fold_batch_norm(graph: Graph, live: Collection[str] = ()) -> Graph:
    """Fold each evaluating batch norm into the convolution or linear layer whose output it alone reads.

        w' = w gamma / sqrt(var + eps),    b' = (b - mean) gamma / sqrt(var + eps) + beta

    (Jacob et al. 2018, section 3.2, equation 14.) Weights keep their names; a layer without a bias
    gets one named beside its weight. A layer whose weight something else reads too, or whose norm is
    over another dimension, is left as it is, and so is one whose weight is in `live`. The result evaluates.
    """
    fresh = set_mode(graph.copy(), False)
    kept = {n.name for n in fresh.net.graph.find_nodes(op="get_attr") if n.target in live}
    for node in list(fresh.nodes(_ATEN.batch_norm.default)):
        layer = node.args[0]
        if isinstance(layer, Node) and _foldable(node, layer) and str(layer.args[1]) not in kept:
            _fold(fresh, node, layer)
    return pruned(fresh)


def _foldable(norm: Node, layer: Node) -> bool:
    linear = layer.target is _ATEN.linear.default and layer.meta["val"].ndim == 2
    if not (linear or layer.target in _PLAIN or layer.target in _TRANSPOSED) or len(layer.users) > 1:
        return False
    weight, bias = layer.args[1], _argument(layer, 2)
    own = [weight] if bias is None else [weight, bias]
    statistics = [value for value in norm.args[1:5] if value is not None]
    alone = all(isinstance(n, Node) and n.op == "get_attr" and len(n.users) == 1 for n in own)
    given = all(isinstance(n, Node) and n.op == "get_attr" for n in statistics)
    return alone and given and norm.args[3] is not None and norm.args[5] is False


def _fold(graph: Graph, norm: Node, layer: Node) -> None:
    gamma, beta, mean, variance = (None if n is None else _value(graph, n).double() for n in norm.args[1:5])
    assert mean is not None  # _foldable has seen to it
    assert variance is not None
    scale = torch.rsqrt(variance + float(str(norm.args[7])))
    scale = scale if gamma is None else scale * gamma
    weight_node, bias_node = layer.args[1], _argument(layer, 2)
    weight = _value(graph, weight_node)
    bias = -mean if bias_node is None else _value(graph, bias_node).double() - mean
    bias = bias * scale if beta is None else bias * scale + beta
    name = str(weight_node.target)  # type: ignore[union-attr]
    bias_name = str(bias_node.target) if bias_node is not None else _free(graph, name.rpartition(".")[0])
    _set(graph, name, _scaled(weight.double(), scale, layer).to(weight.dtype), weight)
    _set(graph, bias_name, bias.to(weight.dtype), weight)
    if bias_node is None:
        with graph.net.graph.inserting_after(weight_node):  # type: ignore[arg-type]
            bias_node = graph.net.graph.get_attr(bias_name)
        bias_node.meta["val"] = norm.args[3].meta["val"]  # type: ignore[union-attr]
        layer.args = (*layer.args[:2], bias_node, *layer.args[3:])
    _erase_counter(graph, norm)
    norm.replace_all_uses_with(layer)
    graph.net.graph.erase_node(norm)


def _scaled(weight: Tensor, scale: Tensor, layer: Node) -> Tensor:
    if layer.target not in _TRANSPOSED:
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))  # [C_out, ...]
    groups = int(_argument(layer, 6) or 1)
    split = weight.reshape(groups, -1, *weight.shape[1:])  # [groups, C_in / groups, C_out / groups, ...]
    factor = scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (split * factor).reshape(weight.shape)


def _erase_counter(graph: Graph, norm: Node) -> None:
    name = str(norm.args[3].target).rpartition(".")[0] + ".num_batches_tracked"  # type: ignore[union-attr]
    for counter in graph.net.graph.find_nodes(op="get_attr"):
        if counter.target == name:
            for user in [u for u in counter.users if u.target is _ATEN.add_.Tensor and not u.users]:
                graph.net.graph.erase_node(user)


def fold_constants(graph: Graph) -> Graph:
    """Compute what depends on parameters and numbers alone (weight norm, masks, ranges) and keep the result.

    A result is named after its first parameter, or after its node. Left as they are: views of
    parameters, random numbers, what is written in place, the dequantising of stored integers, and
    results of more than a million elements that are larger than what they come from.
    """
    fresh = graph.copy()
    constant, written = _constant(fresh), _written(fresh)
    stored = {key for n in fresh.net.graph.find_nodes(op="get_attr") for key in _storages(n)}
    frontier = [n for n in constant if n.op != "get_attr" and any(user not in constant for user in n.users)]
    values: dict[Node, Any] = {}
    for node in frontier:
        shape = node.meta.get("val")
        if not isinstance(shape, Tensor) or _storages(node) & (written | stored):
            continue
        with torch.no_grad():
            result = _compute(fresh, node, values)
        sources = _sources(node)
        limit = max(_LARGEST, sum(fresh.tensors()[name].numel() for name in sources))
        if result.numel() <= limit:
            _replace(fresh, node, result.contiguous(), sources)
    return shaped(pruned(fresh))


def _constant(graph: Graph) -> dict[Node, None]:
    """Nodes that give the same at every call: parameters, buffers, and operators on nothing else."""
    found: dict[Node, None] = {}
    for node in graph.net.graph.nodes:
        computed = node.op == "call_function" and not _keep(node) and all(n in found for n in node.all_input_nodes)
        if computed or node.op == "get_attr":
            found[node] = None
    return found


def _keep(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    random = torch.Tag.nondeterministic_seeded in target.tags
    return random or target._schema.is_mutable or target.namespace == "quantized_decomposed" or "train" in node.meta


def _written(graph: Graph) -> set[int]:
    """Storages that some operator writes in place."""
    return {
        key
        for node in graph.nodes()
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for source in node.all_input_nodes[:1]
        for key in _storages(source)
    }


def _storages(node: Node) -> set[int]:
    return {t.untyped_storage()._cdata for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)}


def _sources(node: Node) -> set[str]:
    """The names of the tensors that a node depends on."""
    seen, waiting = {node}, [node]
    while waiting:
        fresh = set(waiting.pop().all_input_nodes) - seen
        seen |= fresh
        waiting += fresh
    return {str(n.target) for n in seen if n.op == "get_attr"}


def _compute(graph: Graph, node: Node, values: dict[Node, Any]) -> Any:
    if node not in values:
        if node.op == "get_attr":
            values[node] = _value(graph, node)
        else:
            args, kwargs = tree_map_only(Node, lambda n: _compute(graph, n, values), (node.args, node.kwargs))
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]


def _replace(graph: Graph, node: Node, result: Tensor, sources: set[str]) -> None:
    parameters = [p for name, p in graph.net.named_parameters() if name in sources]
    name = f"{min(sources)}_folded" if sources else node.name
    while name in graph.tensors():
        name += "_"
    trained = any(p.requires_grad for p in parameters) and result.dtype.is_floating_point
    place(graph.net, name, nn.Parameter(result, trained) if parameters and result.dtype.is_floating_point else result)
    with graph.net.graph.inserting_before(node):
        fresh = graph.net.graph.get_attr(name)
    fresh.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(fresh)


def _argument(node: Node, index: int) -> Any:
    return node.args[index] if len(node.args) > index else None


def _value(graph: Graph, node: Any) -> Tensor:
    return graph.tensors()[str(node.target)].detach()


def _free(graph: Graph, owner: str) -> str:
    name = f"{owner}.bias" if owner else "bias"
    while name in graph.tensors():
        name += "_folded"
    return name


def _set(graph: Graph, name: str, value: Tensor, like: Tensor) -> None:
    existing = dict(graph.net.named_parameters())
    trained = existing[name].requires_grad if name in existing else True
    place(graph.net, name, nn.Parameter(value.contiguous(), trained))
