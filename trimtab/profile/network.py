"""Network: an ONNX file as operators with shapes, costs and the user's layer names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.core.errors import FileError, InputError
from trimtab.profile.macs import RULES, Shape, UnknownShape, macs
from trimtab.run.plain import plain
from trimtab.run.runtime import read_onnx

_LIMIT = 1 << 30
"""Bytes that all inputs may have together: a hostile file could ask for any amount."""
_SEPARATE = int(1.8e9)
"""Bytes above which constants go into a file of their own (protobuf ends at 2 GiB)."""
_PARAMETER = re.compile(r"(\.(weight|bias|[A-Za-z]+_l\d+(_reverse)?))?(_quantized|_q)?$")
_NO_PARAMETERS = (6, 7, 9)
"""Types of constants that are shapes, axes and masks: int32, int64, bool in onnx.TensorProto.DataType."""
QUANTISING = ("QuantizeLinear", "DequantizeLinear")
MARK = re.compile(r"@(\d+)@")
"""How a prepared model's names tell which operator they are of."""


@dataclass(frozen=True)
class Tensor:
    """Shape and bytes of one value."""

    shape: Shape
    bytes: int


@dataclass(frozen=True)
class Op:
    """One operator of the file.

    Args:
        kind: in ONNX's words.
        layer: the user's layer, from the name of its first parameter; else the node's own name; else ''.
        reads: names of the values that it reads.
        makes: names of the values that it makes.
        weights: names of the constants among them that hold parameters, looked up behind dequantising operators.
        macs: multiply-adds.
    """

    kind: str
    layer: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    weights: tuple[str, ...]
    macs: int


@dataclass(frozen=True)
class Network:
    """What an ONNX file says, at one batch size.

    Args:
        ops: in the order of the file.
        values: shape and bytes of values by name, constants among them; those of unknown shape are missing.
        constants: names of the constants.
        inputs: names.
        outputs: names.
        model: an onnx.ModelProto of the same network with shapes fixed and every name marked (`MARK`).
        batch: that the shapes are for.
        notes: what is not counted, one sentence each.
    """

    ops: tuple[Op, ...]
    values: Mapping[str, Tensor]
    constants: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    model: Any
    batch: int
    notes: tuple[str, ...]

    def bytes_of(self, name: str) -> int:
        """Bytes of a value; 0 where its shape is not known."""
        return self.values[name].bytes if name in self.values else 0

    def parameters(self, ops: Iterable[Op]) -> int:
        """Elements of the constants that hold the parameters of some operators, each counted once."""
        return sum(math.prod(self.values[name].shape) for name in {n for op in ops for n in op.weights})


def read(path: Path, batch: int = 1) -> Network:
    """Read an ONNX file that may come from a stranger, and work out all shapes at a batch size.

    Args:
        path: the file.
        batch: put in the place of a free first dimension; a file with a fixed batch keeps its own.

    Raises:
        FileError: missing, damaged, inconsistent, or asking for inputs of more than 1 GiB.
        InputError: a dimension other than the batch is free.
    """
    import onnx.inliner

    model = read_onnx(path)
    try:
        onnx.load_external_data_for_model(model, str(path.resolve().parent))
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        model = plain(model)
        fixed = _fixed(model, path, batch)
        shaped = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, TypeError, OSError) as error:
        raise FileError("read ONNX", where=path, got=_first_line(error), do="Export the network again.") from error
    values = dict(_values(shaped.graph, path))
    constants = frozenset(t.name for t in model.graph.initializer)
    ops, notes = _ops(model.graph, values, constants)
    return Network(
        ops=ops,
        values=values,
        constants=constants,
        inputs=tuple(v.name for v in model.graph.input if v.name not in constants),
        outputs=tuple(v.name for v in model.graph.output),
        model=marked(shaped),
        batch=fixed,
        notes=notes,
    )


def marked(model: Any) -> Any:
    """A copy whose nodes are named `@i@kind` and whose values `@i@name`, by the position i of their node."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    new = {name: f"@{i}@v{k}" for i, node in enumerate(copy.graph.node) for k, name in enumerate(node.output) if name}
    for i, node in enumerate(copy.graph.node):
        node.name = f"@{i}@{node.op_type}"
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, new)
    for value in copy.graph.output:
        value.name = new.get(value.name, value.name)
    return copy


def write(network: Network, path: Path) -> None:
    """Write the marked model, large constants beside it."""
    import onnx

    size = sum(network.bytes_of(name) for name in network.constants)
    if size <= _SEPARATE:
        path.write_bytes(network.model.SerializeToString())
        return
    onnx.save_model(network.model, str(path), save_as_external_data=True, location=f"{path.name}.data")


def _rename(graph: Any, new: Mapping[str, str]) -> None:
    """Let an inner graph read the outer values by their new names."""
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, new)
    for value in graph.output:
        value.name = new.get(value.name, value.name)


def _fixed(model: Any, path: Path, batch: int) -> int:
    """Put the batch into the inputs' free first dimensions, in place, and return the batch that the file has now."""
    constants = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in constants]
    found = batch
    for value in inputs:
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise FileError("read ONNX", where=path, got=f"input {value.name} is no tensor of known rank")
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                found = dim.dim_value if i == 0 and value is inputs[0] else found
                continue
            if i > 0:
                free = f"input {value.name} has a free size {dim.dim_param or '?'} in dimension {i}"
                raise InputError("profile", where=path, got=free, do="Export it with only the batch free.")
            dim.dim_value = batch
    for value in (*model.graph.output, *model.graph.value_info):
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return found


def _values(graph: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    total = 0
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim if tensor.HasField("shape") else None
        if dims is None or not all(d.HasField("dim_value") for d in dims) or not tensor.elem_type:
            continue
        made = _tensor(tuple(d.dim_value for d in dims), tensor.elem_type, value.name, path)
        yield value.name, made
        total += made.bytes if value in graph.input else 0
    if total > _LIMIT:
        raise FileError("read ONNX", where=path, got=f"inputs of {total} bytes", expected=f"at most {_LIMIT}")
    for constant in graph.initializer:
        yield constant.name, _tensor(tuple(constant.dims), constant.data_type, constant.name, path)


def _tensor(shape: Shape, kind: int, name: str, path: Path) -> Tensor:
    from onnx import helper

    if any(n < 0 for n in shape):
        raise FileError("read ONNX", where=path, got=f"{name} of shape {list(shape)}")
    try:
        size = helper.tensor_dtype_to_np_dtype(kind).itemsize
    except KeyError as error:
        raise FileError("read ONNX", where=path, got=f"{name} of unknown type {kind}") from error
    return Tensor(shape, math.prod(shape) * size)


def _ops(graph: Any, values: Mapping[str, Tensor], constants: frozenset[str]) -> tuple[tuple[Op, ...], tuple[str, ...]]:
    from onnx import helper

    weights: dict[str, str] = {name: name for name in constants}
    plain = {t.name for t in graph.initializer if t.data_type in _NO_PARAMETERS or not t.dims}
    times = Counter(name for node in graph.node for name in node.input)
    shared = {name for name in constants if times[name] > 1}
    ops, unknown, inner = [], [], 0
    for index, node in enumerate(graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weights[node.output[0]] = node.input[0]
        inner += any(a.HasField("g") or a.graphs for a in node.attribute)
        shapes = [values[name].shape if name in values else None for name in node.input]
        made = values.get(node.output[0])
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name == "transA"}
        try:
            count = macs(node.op_type, shapes, made.shape if made else None, settings)
        except UnknownShape:
            count = 0
            unknown.append(node.name or f"{node.op_type} {index}")
        reads, makes = (tuple(name for name in names if name) for names in (node.input, node.output))
        held = tuple(weights[n] for n in reads if n in weights and n not in plain)
        ops.append(
            Op(
                node.op_type,
                _layer(node, weights, shared),
                reads,
                makes,
                () if node.op_type in QUANTISING else held,
                count,
            )
        )
    notes = [f"Multiply-adds not counted, as shapes are not known: {', '.join(unknown)}."] if unknown else []
    notes += [f"Operators inside the branches and loops of {inner} nodes are not counted."] if inner else []
    return tuple(ops), tuple(notes)


def _layer(node: Any, weights: Mapping[str, str], shared: set[str]) -> str:
    """The module's name, without that of the parameter: `layer1.0.conv1`.

    A constant that several nodes read (a tied weight, biases that are equal and stored once) names the first layer
    only, so it is asked last, and only where there is something to multiply or to look up.
    """
    names = [weights[n] for n in node.input if "." in weights.get(n, "") and "::" not in weights[n]]
    if node.op_type == "DequantizeLinear":
        return str(node.name)
    own = [name for name in names if name not in shared]
    tied = names if node.op_type in RULES or node.op_type == "Gather" else []
    return next((_PARAMETER.sub("", name) for name in (*own, *tied)), str(node.name))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
