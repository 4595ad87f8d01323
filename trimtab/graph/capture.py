"""Capture: any module that torch.export can take becomes a Graph."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Graph as Nodes
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from trimtab.core.errors import CaptureError
from trimtab.graph.clean import clean, user_line
from trimtab.graph.explain import brief, explained, first_line, quiet, user_frame
from trimtab.graph.model import Graph, TensorSpec, place, shaped
from trimtab.graph.modes import set_mode
from trimtab.graph.structure import Arguments, Results, arguments, results

TOLERANCE = 1e-4
"""Largest relative difference allowed between the graph and the module, both evaluating."""

_ROWS = 4  # enough to tell a batch from a constant; a large example would only take longer


def capture(model: nn.Module, example: Any) -> Graph:
    """Capture a module as a Graph that evaluates; `set_mode` switches it to training.

    Args:
        model: the module; it is not changed.
        example: one example input with a batch of at least two in dimension 0: a tensor, a tuple
            of positional arguments, or a dict of keyword arguments. Numbers, strings and None
            become constants of the graph.

    Raises:
        CaptureError: torch.export cannot take the module, its batch is fixed, or the graph
            computes something else than the module (both evaluating, on the example).
    """
    if not isinstance(model, nn.Module):
        raise CaptureError("capture: the model", got=type(model).__name__, expected="a torch.nn.Module")
    call = arguments(model, example).trimmed(_ROWS)
    own = _copy(model)
    with torch.random.fork_rng(), quiet():
        expected = _evaluate(own, call, call.tensors)
        try:
            graph = _checked(own, call, expected, training=True)
        except CaptureError as reason:
            graph = _checked(own, call, expected, training=False).note(
                "Captured for evaluation only, so it trains with dropout off and batch-norm statistics fixed, "
                f"because in training mode {brief(reason)}."
            )
        return _noted(graph, own, expected)


def _checked(own: nn.Module, call: Arguments, expected: Results, training: bool) -> Graph:
    graph = _export(own, call, training)
    _compare(graph, call.tensors, expected)
    larger = call.resized(call.batch + 1)
    _compare(graph, larger, _evaluate(own, call, larger))
    try:  # most networks are deployed at a batch of one, which torch.export does not promise
        one = call.resized(1)
        _compare(graph, one, _evaluate(own, call, one))
    except CaptureError as reason:
        return graph.note(f"Does not run with a batch of one, because {brief(reason)}.")
    return graph


@dataclass
class _Recorder:
    """What the forward pass returned while it was being traced."""

    found: list[Results] = field(default_factory=list)


class _Flat(nn.Module):
    """The user's module as a function of flat tensors to a flat tuple of tensors."""

    def __init__(self, user: nn.Module, call: Arguments, recorder: _Recorder) -> None:
        super().__init__()
        self.user, self.call, self.recorder = user, call, recorder

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = self.call.rebuild(tensors)
        found = results(self.user(*args, **kwargs))
        self.recorder.found.append(found)
        return tuple(found.tensors.values())


def _export(own: nn.Module, call: Arguments, training: bool) -> Graph:
    recorder = _Recorder()
    flat = _Flat(own, call, recorder)
    flat.train(training)
    auto = tuple({0: torch.export.Dim.AUTO} if is_batch else None for is_batch in call.batched)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a failed export prints its half-made graph there
            program = torch.export.export(flat, call.tensors, dynamic_shapes=(auto,), strict=False)
    except Exception as error:  # a user's forward may raise anything; all of it is told as one line
        raise explained(error) from error
    net = program.module(check_guards=False)
    clean(net)
    _check_batch(program, call)
    specs = tuple(map(_spec, call.names, call.tensors, call.batched))
    found = recorder.found[-1]
    graph = Graph(_owned(net, own, call), specs, tuple(found.tensors), found.bare)
    return _with_shapes(set_mode(graph, False))


def _spec(name: str, tensor: torch.Tensor, batched: bool) -> TensorSpec:
    sizes = tuple(None if i == 0 and batched else int(n) for i, n in enumerate(tensor.shape))
    random = tensor.is_floating_point() or tensor.is_complex() or not tensor.numel()
    return TensorSpec(name, sizes, tensor.dtype, 0 if random else int(tensor.min()))


def _owned(net: GraphModule, own: nn.Module, call: Arguments) -> GraphModule:
    """A fresh module with the user's parameter names, each tensor under its first name."""
    first: dict[int, str] = {}
    for name, tensor in (*own.named_parameters(remove_duplicate=False), *own.named_buffers(remove_duplicate=False)):
        first.setdefault(id(tensor), name)
    found: dict[str, Node] = {}
    root = nn.Module()
    _refuse_reserved(first.values())
    for node in net.graph.find_nodes(op="get_attr"):
        value = _attribute(net, str(node.target))
        node.target = first.get(id(value), str(node.target).removeprefix("user."))
        if node.target in found:
            node.replace_all_uses_with(found[node.target])
            net.graph.erase_node(node)
            continue
        found[node.target] = node
        node._rename(node.target.replace(".", "_"))
        place(root, node.target, value)
    users_order = {name: index for index, name in enumerate(own.state_dict())}
    for name in sorted(found, key=lambda name: users_order.get(name, len(users_order)), reverse=True):
        next(iter(net.graph.nodes)).prepend(found[name])
    for node, name in zip(net.graph.find_nodes(op="placeholder"), call.names, strict=True):
        node.target = name
        node._rename(name)
    net.graph.set_codegen(CodeGen())
    return GraphModule(root, net.graph)  # torch.export's input checks stay behind


def _refuse_reserved(names: Iterable[str]) -> None:
    reserved = {*dir(GraphModule(nn.Module(), Nodes()))}
    for name in names:
        if name.split(".")[0] in reserved:
            raise CaptureError(
                "capture: a part of the network has a name that torch.fx keeps for itself",
                where=name.split(".")[0],
                do="Give that attribute of the network another name.",
            )


def _attribute(net: nn.Module, path: str) -> Any:
    prefix, _, leaf = path.rpartition(".")
    return getattr(net.get_submodule(prefix), leaf)


def _check_batch(program: torch.export.ExportedProgram, call: Arguments) -> None:
    inputs = [n for n in program.graph.find_nodes(op="placeholder") if n.name in program.graph_signature.user_inputs]
    for node, is_batch in zip(inputs, call.batched, strict=True):
        size = node.meta["val"].shape[0] if is_batch else None
        if isinstance(size, int) or (size is not None and size.node.maybe_as_int() is not None):
            literal = [
                n for n in program.graph.nodes if any(isinstance(a, (list, tuple)) and call.batch in a for a in n.args)
            ]
            raise CaptureError(
                "capture: the network's code fixes the batch size",
                where=user_line(literal[0]) if literal else None,
                got=f"always {call.batch}",
                expected="any batch size",
                do="Use x.shape[0] or -1 instead of a number or len(x).",
            )


def _with_shapes(graph: Graph) -> Graph:
    try:
        return shaped(graph)
    except Exception as error:  # shape rules of any operator may raise anything
        named = re.search(r"While executing %(\w+)", str(error))
        culprit = [n for n in graph.net.graph.nodes if named and n.name == named[1]]
        raise CaptureError(
            "capture: the shapes inside the network cannot be worked out for another batch size",
            where=user_line(culprit[0]) if culprit else None,
            got=first_line(error),
            do="Let shapes depend on the input's shape only, not on values or a fixed batch size.",
        ) from error


def _evaluate(own: nn.Module, call: Arguments, tensors: Any) -> Results:
    own.eval()
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            args, kwargs = call.rebuild([t.clone() for t in tensors])
            return results(own(*args, **kwargs))
    except Exception as error:  # as above: the user's own code
        where = user_frame(error)
        size = next(len(t) for t, is_batch in zip(tensors, call.batched, strict=True) if is_batch)
        raise CaptureError(
            f"capture: the network itself fails on a batch of {size} (before anything is captured)",
            where=where,
            got=first_line(error),
            do="Give an example that the network takes, and make it take any batch size.",
        ) from error


def _compare(graph: Graph, tensors: Any, expected: Results) -> None:
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            values = graph.net(*(t.clone() for t in tensors))
    except Exception as error:  # any operator may refuse another batch size
        raise CaptureError(
            f"capture: the graph does not run on a batch of {len(tensors[0])}",
            got=first_line(error),
            do="Use x.shape[0] or -1 instead of a fixed size.",
        ) from error
    found = dict(zip(graph.outputs, values, strict=True))
    if found.keys() != expected.tensors.keys():
        raise CaptureError(
            "capture: training and evaluation return different things", got=list(found), expected=list(expected.tensors)
        )
    for name, value in found.items():
        wrong = _difference(value, expected.tensors[name])
        if wrong is not None:
            raise CaptureError(
                "capture: the graph computes something else than the network",
                where=f"output {name}",
                got=wrong,
                expected=f"a relative difference below {TOLERANCE}",
                do="Look for Python random numbers, or values of tensors read in Python (item, tolist, numpy).",
            )


def _difference(value: torch.Tensor, expected: torch.Tensor) -> str | None:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        return f"{value.dtype} {tuple(value.shape)} for {expected.dtype} {tuple(expected.shape)}"
    if not value.dtype.is_floating_point and not value.dtype.is_complex:
        return None if torch.equal(value, expected) else "other integers"
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    # bfloat16 and float16 round more coarsely than the tolerance
    bound = max(TOLERANCE, 4 * torch.finfo(expected.dtype).eps)
    if torch.allclose(value, expected, rtol=bound, atol=bound * scale, equal_nan=True):
        return None
    return f"a difference of {float((value - expected).abs().nan_to_num().max()):.3g} where values reach {scale:.3g}"


def _noted(graph: Graph, own: nn.Module, expected: Results) -> Graph:
    notes = []
    used = {id(t) for t in (*graph.net.parameters(), *graph.net.buffers())}
    idle = [name for name, tensor in own.state_dict(keep_vars=True).items() if id(tensor) not in used]
    if idle:
        more = f" and {len(idle) - 3} more" if len(idle) > 3 else ""
        notes.append(f"Left out, because the forward pass does not use them: {', '.join(idle[:3])}{more}.")
    if expected.dropped:
        notes.append(f"Not an output of the graph, because it is no tensor: {', '.join(expected.dropped)}.")
    tied = [
        (name, first)
        for name, p in own.named_parameters(remove_duplicate=False)
        for first, q in graph.net.named_parameters()
        if q is p and name != first
    ]
    kept = own.state_dict()
    unsaved = tuple(name for name, _ in graph.net.named_buffers() if name not in kept)
    return replace(graph, tied=tuple(tied), unsaved=unsaved).note(*notes)


def _copy(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:  # a cached result, such as old weight norm's
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a module may hold anything: locks, files, generators
        raise CaptureError(
            "capture: the network cannot be copied, and the original is never changed",
            got=first_line(error),
            do="Take open files, locks and other processes' handles out of the module.",
        ) from error
