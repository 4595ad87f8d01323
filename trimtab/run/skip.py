"""Skip: a choice between two values of an ONNX model as control flow: what is not taken is not computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.graph.choices import choices
from trimtab.graph.model import Graph

_HEAVY = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul",
    "MatMulNBits", "LSTM", "GRU", "RNN", "Einsum", "If",
})  # fmt: skip
"""Operators that are worth the cost of a branch."""
_SMALL = 4096
"""Bytes of a constant up to which each branch has its own: runtimes fuse less with those of an outer graph."""


@dataclass
class _Model:
    """A model under change: types and shapes of its values; its constants by name, each in the graph that holds it."""

    types: Mapping[str, int]
    shapes: dict[str, tuple[int | str, ...]]
    constants: dict[str, Any]
    taken: set[str] = field(default_factory=set)

    def fresh(self, name: str) -> str:
        """A name like this one that no value has yet."""
        for i in range(1 << 20):
            if f"{name}_{i}" not in self.taken:
                self.taken.add(f"{name}_{i}")
                return f"{name}_{i}"
        raise AssertionError(name)


def skip_unneeded(graph: Graph, model: Any) -> Any:
    """A ModelProto in which work that no sample of a batch needs is not done; the same outputs for any batch.

        where(c, a, b)   becomes   if all(c) then a else where(c, a, b)      b and what only it needs inside, or
                                   if any(c) then where(c, a, b) else b      a and what only it needs inside

    One sample leaves at the first exit that is sure; a batch when all of its samples do. A network without choices
    (`trimtab.graph.choices`) comes back as it is, and so does a choice of little work.

    Args:
        graph: that the model was made from.
        model: an onnx.ModelProto; it is not changed.

    Source: Teerapittayanon et al. (2016), section III; ONNX operator If.
    """
    if not choices(graph):
        return model
    from onnx import ModelProto, shape_inference

    made = ModelProto()
    made.CopyFrom(model)
    inferred = shape_inference.infer_shapes(made)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    tests = {v.name for v in values if _each_sample(v)}
    shapes = {v.name: _shape(v) for v in values} | {t.name: tuple(t.dims) for t in made.graph.initializer}
    own = _Model(types, shapes, {t.name: _copied(t) for t in made.graph.initializer})
    own.taken = {*own.constants, *types, *(n for node in made.graph.node for n in (*node.input, *node.output))}
    nodes = [_copied(node) for node in made.graph.node]
    nodes, constants = _branched(own, nodes, [v.name for v in made.graph.output], tests, set(own.constants))
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(constants)
    return made


def _copied(message: Any) -> Any:
    fresh = type(message)()
    fresh.CopyFrom(message)
    return fresh


def _each_sample(value: Any) -> bool:
    """Whether a value holds one answer for each sample: all its dimensions but the first are 1."""
    from onnx import TensorProto

    kind = value.type.tensor_type
    dims = list(kind.shape.dim)
    return kind.elem_type == TensorProto.BOOL and bool(dims) and all(d.dim_value == 1 for d in dims[1:])


def _shape(value: Any) -> tuple[int | str, ...]:
    """Sizes and names of a value's dimensions; one that is not known is called ``""``."""
    return tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim)


def _branched(
    model: _Model, nodes: list[Any], outputs: Sequence[str], tests: Collection[str], owned: set[str], *made: str
) -> tuple[list[Any], list[Any]]:
    """The nodes of a graph with its choices but those `made` as branches, and the constants that are left to it."""
    done = set(made)
    while (found := _heaviest(model, nodes, outputs, tests, done)) is not None:
        node, side, only = found
        done.add(node.output[0])
        inside, outside = [n for n in nodes if id(n) in only], [n for n in nodes if id(n) not in only]
        branch = _if(model, node, side, inside, outside, tests, owned)
        at = next(i for i, n in enumerate(outside) if n is node)
        nodes = [*outside[:at], *branch, *outside[at + 1 :]]
    nodes = _alive(nodes, outputs)
    read = {*outputs, *(name for n in nodes for name in _read(n))}
    return nodes, [model.constants[name] for name in model.constants if name in owned and name in read]


def _heaviest(
    model: _Model, nodes: Sequence[Any], outputs: Sequence[str], tests: Collection[str], done: Collection[str]
) -> tuple[Any, int, set[int]] | None:
    """The last choice of much work that is none of `done`, which of its inputs needs it, and the ids of its nodes."""
    for node in reversed(nodes):
        if node.op_type != "Where" or node.input[0] not in tests or node.output[0] in done:
            continue
        if not _alike(model, (*node.input[1:], node.output[0])):
            continue
        for side in (2, 1):
            only = _only_for(node, side, nodes, outputs)
            if any(n.op_type in _HEAVY for n in nodes if id(n) in only):
                return node, side, only
    return None


def _alike(model: _Model, names: Sequence[str]) -> bool:
    """Whether values are of one shape, as far as it is known: one spread over another can't stand for the result."""
    shapes = [model.shapes[name] for name in names if name in model.shapes]
    if len({len(shape) for shape in shapes}) > 1:
        return False
    sizes = [set(each) for each in zip(*shapes, strict=True)]
    return all(each == {1} or (1 not in each and sum(isinstance(n, int) for n in each) < 2) for each in sizes)


def _only_for(choice: Any, side: int, nodes: Sequence[Any], outputs: Sequence[str]) -> set[int]:
    """Ids of the nodes that nothing but one input of a choice needs."""
    if choice.input[side] in (choice.input[0], choice.input[3 - side]):
        return set()
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in _read(node):
            readers.setdefault(name, []).append(node)
    only: set[int] = set()
    for node in reversed(nodes):
        if node is choice or any(name in outputs for name in node.output):
            continue
        users = [user for name in node.output for user in readers.get(name, ())]
        ends = choice.input[side] in node.output
        inner = all(id(user) in only or (ends and user is choice) for user in users)
        if users and inner and not set(node.output) & {choice.input[0], choice.input[3 - side]}:
            only.add(id(node))
    return only


def _if(
    model: _Model,
    node: Any,
    side: int,
    inside: list[Any],
    outside: Sequence[Any],
    tests: Collection[str],
    owned: set[str],
) -> list[Any]:
    """A choice as an If whose one branch holds the nodes that only it needs, behind the test of a whole batch."""
    from onnx import TensorProto, helper

    result = node.output[0]
    number, least, test, then, other = (model.fresh(f"{result}_{part}") for part in ("n", "m", "t", "y", "o"))
    before = [
        helper.make_node("Cast", [node.input[0]], [number], to=TensorProto.INT32),
        helper.make_node("ReduceMin" if side == 2 else "ReduceMax", [number], [least], keepdims=0),
        helper.make_node("Cast", [least], [test], to=TensorProto.BOOL),
    ]
    busy, idle = (other, then) if side == 2 else (then, other)
    chosen = helper.make_node("Where", list(node.input), [busy])
    mine = _taken_inside(model, inside, [*outside, chosen], owned)
    nodes, constants = _branched(model, [*inside, chosen], [busy], tests, mine, busy)
    kind = model.types.get(result) or TensorProto.FLOAT
    long = helper.make_graph(nodes, "busy", [], [helper.make_tensor_value_info(busy, kind, None)], constants)
    passed = helper.make_node("Identity", [node.input[3 - side]], [idle])
    short = helper.make_graph([passed], "idle", [], [helper.make_tensor_value_info(idle, kind, None)])
    branches = {"then_branch": short, "else_branch": long} if side == 2 else {"then_branch": long, "else_branch": short}
    return [*before, helper.make_node("If", [test], [result], **branches)]


def _taken_inside(model: _Model, inside: list[Any], outside: Sequence[Any], owned: set[str]) -> set[str]:
    """The constants that a branch gets as its own, its nodes changed to read these, in place.

    Those that nothing else reads move there, small ones are copied, and so is what dequantises a value from outside:
    a runtime makes an integer kernel of neighbours in one graph only.
    """
    made = {name for n in inside for name in n.output}
    border = {n.output[0]: n for n in outside if n.op_type == "DequantizeLinear"}
    mapping: dict[str, str] = {}
    for name in dict.fromkeys(name for n in inside for name in _read(n) if name not in made and name in border):
        copy = _copied(border[name])
        mapping[name] = copy.output[0] = model.fresh(name)
        model.shapes[mapping[name]] = model.shapes.get(name, ("",))
        inside.insert(0, copy)
    elsewhere = {name for n in outside for name in _read(n)}
    mine: set[str] = set()
    for name in dict.fromkeys(name for n in inside for name in _read(n) if name in model.constants):
        if name in owned and name not in elsewhere:
            owned.discard(name)
            mine.add(name)
        elif model.constants[name].ByteSize() <= _SMALL:
            twin = _copied(model.constants[name])
            mapping[name] = twin.name = model.fresh(name)
            model.constants[twin.name] = twin
            mine.add(twin.name)
    for n in inside:
        _rename(n, mapping)
    return mine


def _rename(node: Any, mapping: Mapping[str, str]) -> None:
    """Read other values, in branches too, in place."""
    for i, name in enumerate(node.input):
        node.input[i] = mapping.get(name, name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _rename(inner, mapping)


def _read(node: Any) -> Iterator[str]:
    """Every value that a node reads, those that its branches read from outside too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            made = {t.name for t in attribute.g.initializer}
            for inner in attribute.g.node:
                yield from (name for name in _read(inner) if name not in made)
                made |= set(inner.output)


def _alive(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """Nodes that something reads, in order."""
    alive = set(outputs)
    left = []
    for node in reversed(nodes):
        if alive & set(node.output):
            left.append(node)
            alive.update(_read(node))
    return left[::-1]
