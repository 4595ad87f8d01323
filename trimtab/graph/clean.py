"""Clean what torch.export leaves: guards, nested regions, dead nodes, strict views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.graph import Graph as Nodes

from trimtab.core.errors import CaptureError

_ATEN = torch.ops.aten
_GUARDS = {
    _ATEN._assert_tensor_metadata.default,
    _ATEN._assert_scalar.default,
    _ATEN._assert_async.default,
    _ATEN._assert_async.msg,
    _ATEN.sym_constrain_range.default,
    _ATEN.sym_constrain_range_for_size.default,
}


def clean(net: GraphModule) -> None:
    """Rewrite a freshly exported module in place so that it holds plain ATen nodes only.

    Guards go, regions under `no_grad` are inlined with their results detached, `view` becomes `reshape`
    (a view fails on channels-last tensors), and nodes that nothing reads are removed.
    """
    _inline(net)
    for node in list(net.graph.nodes):
        if node.target in _GUARDS:
            net.graph.erase_node(node)
        elif node.target is _ATEN.view.default:
            node.target = _ATEN.reshape.default
        elif node.target is _ATEN.detach_.default:
            node.target = _ATEN.detach.default
    net.graph.eliminate_dead_code()


def user_line(node: Node) -> str | None:
    """The user's `file:line` that made this node, where it is known."""
    home = str(Path(torch.__file__).parent)
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    frames = [line.split('"') for line in lines if line.startswith('File "')]
    mine = [(f[1], f[2].split(",")[1].strip().removeprefix("line ")) for f in frames if not f[1].startswith(home)]
    return f"{mine[-1][0]}:{mine[-1][1]}" if mine else None


def _inline(net: GraphModule) -> None:
    for node in list(net.graph.nodes):
        if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            enabled, region, *inputs = node.args
            _splice(net, node, region, inputs, detach=not enabled)
        elif node.target is torch.ops.higher_order.wrap_with_autocast:
            device_type, dtype, enabled, _, region, *inputs = node.args
            if enabled:
                raise CaptureError(
                    "capture: the network switches autocast on inside its forward pass",
                    where=user_line(node),
                    got=f"torch.autocast({device_type!r}, {dtype})",
                    do="Take the autocast out of forward and put it around the call of the network.",
                )
            _splice(net, node, region, inputs, detach=False)
        elif node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                "capture: control flow inside the network is not supported",
                where=user_line(node),
                got=f"torch.{node.target}",
                do="Compute every branch and choose with torch.where, or split the network at this line.",
            )


def _splice(net: GraphModule, node: Node, region: Node, inputs: list[Any], detach: bool) -> None:
    inner = net.get_submodule(str(region.target))
    if not isinstance(inner, GraphModule):
        raise CaptureError("capture: a nested region holds no graph", where=user_line(node), got=type(inner).__name__)
    _inline(inner)
    values: dict[Node, Any] = dict(zip(inner.graph.find_nodes(op="placeholder"), inputs, strict=True))
    with net.graph.inserting_before(node):
        outputs = _copy_nodes(net.graph, inner.graph, values)
        if detach:
            outputs = [_detached(net.graph, value) for value in outputs]
    for user in list(node.users):
        user.replace_all_uses_with(outputs[int(str(user.args[1]))])
        net.graph.erase_node(user)
    net.graph.erase_node(node)


def _copy_nodes(into: Nodes, inner: Nodes, values: dict[Node, Any]) -> list[Any]:
    for node in inner.nodes:
        if node.op == "output":
            return list(torch.fx.node.map_arg(node.args[0], values.__getitem__))
        if node.op != "placeholder":
            values[node] = into.node_copy(node, values.__getitem__)
    return []


def _detached(nodes: Nodes, value: Any) -> Any:
    if not isinstance(value, Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    fresh = nodes.call_function(_ATEN.detach.default, (value,))
    fresh.meta = dict(value.meta)
    return fresh
