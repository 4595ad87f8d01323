"""Pack: an ONNX model that computes the same from a smaller file. Passes over its protobuf."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from trimtab.run.names import name_transposed, short_names
from trimtab.run.work import Work

_FOLD_LIMIT = 1024
"""A folded constant may be this many bytes larger than the constants that it is made of."""
_IR_VERSION = 10
"""Of ONNX: the first with 4-bit integers."""
_NEVER_FOLDED = {
    "DequantizeLinear",  # would turn int8 weights back into float
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout",
    "If", "Loop", "Scan",
}  # fmt: skip
_LEAVES = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
"""Attributes of convolutions and pools, each with the value that leaves it out."""
_DEFAULTS: dict[str, Any] = {"auto_pad": b"NOTSET", "group": 1, "ceil_mode": 0, "storage_order": 0, "saturate": 1}


def pack(model: Any, parameters: Mapping[str, np.ndarray[Any, Any]] | None = None) -> Any:
    """A ModelProto that computes the same: no metadata, short names, constants folded, stored once and in few bits.

    Inputs and outputs keep their names, and constants that are parameters carry the user's names for them
    (a weight that the exporter transposed too); nodes lose theirs. The batch dimension is named `batch`.

    Args:
        model: an onnx.ModelProto of the default operator set; it is not changed.
        parameters: by the user's name.
    """
    from onnx import ModelProto, inliner

    from trimtab.run.bits import OPERATOR_SET, store_bits
    from trimtab.run.dynamic import integer_products
    from trimtab.run.narrow import store_narrow
    from trimtab.run.pack_shared import store_shared
    from trimtab.run.pack_sparse import store_sparse
    from trimtab.run.pads import keep_pads
    from trimtab.run.simplify import simplify
    from trimtab.run.weight_only import arrange_weights

    whole = inliner.inline_local_functions(model) if model.functions else model
    graph = whole.graph
    work = Work(
        nodes=[_copied(node) for node in graph.node],
        constants={t.name: t for t in graph.initializer},
        inputs=tuple(v.name for v in graph.input if v.name not in {t.name for t in graph.initializer}),
        outputs=tuple(v.name for v in graph.output),
        pinned={name for node in graph.node for inner in _inner(node) for name in _read(inner)},
    )
    arrange = (arrange_weights, integer_products, _share, _split_by_use)
    for step in (_constants, simplify, _fold, simplify, *arrange, _defaults, keep_pads, _dead):
        step(work)
    name_transposed(work, parameters or {})
    sparse = store_sparse(work)
    store_shared(work)
    later = store_bits(work) or sparse
    store_narrow(work)
    _dead(work)
    names = short_names(work, parameters or {})
    packed = ModelProto(ir_version=max(whole.ir_version, _IR_VERSION) if later else whole.ir_version)
    packed.opset_import.extend(o for o in whole.opset_import if o.domain in {n.domain for n in work.nodes} | {""})
    for entry in packed.opset_import:
        entry.version = max(entry.version, OPERATOR_SET) if later and not entry.domain else entry.version
    packed.graph.name = "trimtab"
    _write(packed.graph, graph, work, names)
    return packed


def _copied(node: Any) -> Any:
    from onnx import NodeProto

    fresh = NodeProto()
    fresh.CopyFrom(node)
    fresh.ClearField("name")
    _strip(fresh)
    return fresh


def _strip(message: Any) -> None:
    for name in ("doc_string", "metadata_props"):
        message.ClearField(name)
    for attribute in getattr(message, "attribute", ()):
        attribute.ClearField("doc_string")


def _inner(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _read(graph: Any) -> Iterator[str]:
    """Every name that an inner graph mentions; some are its own, and pinning these too does no harm."""
    for node in graph.node:
        yield from node.input
        for inner in _inner(node):
            yield from _read(inner)
    yield from (v.name for v in graph.output)


def _constants(work: Work) -> None:
    """Constant nodes become constants."""
    from onnx import TensorProto, numpy_helper

    for node in [n for n in work.nodes if n.op_type == "Constant"]:
        value = node.attribute[0]
        made = TensorProto()
        if value.name == "value":
            made.CopyFrom(value.t)
        elif value.name in ("value_int", "value_ints"):
            made = numpy_helper.from_array(np.array(value.i if value.name == "value_int" else value.ints, np.int64))
        elif value.name in ("value_float", "value_floats"):
            made = numpy_helper.from_array(np.array(value.f if value.name == "value_float" else value.floats, "f4"))
        else:
            continue
        work.constants[node.output[0]] = made
        work.nodes.remove(node)


def _fold(work: Work) -> None:
    """Nodes of constants become constants, where the file does not grow by it."""
    from onnx import numpy_helper

    left = []
    for node in work.nodes:
        value = _value(work, node)
        if value is None:
            left.append(node)
        else:
            work.constants[node.output[0]] = numpy_helper.from_array(np.ascontiguousarray(value))
    work.nodes[:] = left


def _value(work: Work, node: Any) -> np.ndarray[Any, Any] | None:
    names = [name for name in node.input if name]
    if node.op_type in _NEVER_FOLDED or node.domain or len(node.output) != 1 or node.output[0] in work.outputs:
        return None
    if not names or any(name not in work.constants for name in names):
        return None
    given = {name: work.array(name) for name in names}
    made = _evaluated(node, given)
    before = sum(a.nbytes for a in given.values() if a is not None)
    return made if made is not None and made.nbytes <= before + _FOLD_LIMIT else None


def _evaluated(node: Any, given: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """What a node gives for constant inputs by name; None for an operator that the reference does not know."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    graph = helper.make_graph(
        [node],
        "fold",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()],
        [helper.make_empty_tensor_value_info(node.output[0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    try:
        made = ReferenceEvaluator(model).run(None, given)[0]
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # an operator that the reference does not know stays a node
    return made if isinstance(made, np.ndarray) and made.dtype != object else None


def _share(work: Work) -> None:
    """Equal constants are stored once, and equal nodes computed once."""
    first: dict[Any, str] = {}
    mapping: dict[str, str] = {}
    for name, tensor in work.constants.items():
        if name in work.outputs or name in work.pinned:
            continue
        key = (tensor.data_type, tuple(tensor.dims), _bytes(work, name))
        if first.setdefault(key, name) != name:
            mapping[name] = first[key]
    work.replace(mapping)
    for name in mapping:
        del work.constants[name]
    _share_nodes(work)


def _split_by_use(work: Work) -> None:
    """Weights of unlike rank or operator do not share a zero point or scale.

    OpenVINO would run all the layers that share one in floating point.
    """
    from onnx import TensorProto

    readers: dict[str, set[str]] = {}
    for node in work.nodes:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    owner: dict[str, str] = {}
    for node in work.nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] not in work.constants:
            continue
        use = "/".join([str(len(work.constants[node.input[0]].dims)), *sorted(readers.get(node.output[0], ()))])
        for i, name in enumerate(node.input[1:], 1):
            if name in work.constants and owner.setdefault(name, use) != use:
                node.input[i] = f"{name}/{use}"
                copy = TensorProto()
                copy.CopyFrom(work.constants[name])
                copy.name = node.input[i]
                work.constants[node.input[i]] = copy


def _bytes(work: Work, name: str) -> bytes:
    tensor = work.constants[name]
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    value = work.array(name)
    return b"" if value is None else value.tobytes()


def _share_nodes(work: Work) -> None:
    seen: dict[Any, Any] = {}
    mapping: dict[str, str] = {}
    left = []
    for node in work.nodes:
        for i, name in enumerate(node.input):
            node.input[i] = mapping.get(name, name)
        attributes = b"|".join(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
        key = (node.domain, node.op_type, tuple(node.input), attributes)
        twin = seen.get(key)
        kept = set(node.output) & ({*work.outputs} | work.pinned)
        if twin is None or kept or node.op_type in _NEVER_FOLDED - {"DequantizeLinear"} or len(node.output) != 1:
            seen.setdefault(key, node)
            left.append(node)
        else:
            mapping[node.output[0]] = twin.output[0]
    work.nodes[:] = left


def _defaults(work: Work) -> None:
    """Attributes that say what is true without them are left out."""
    for node in work.nodes:
        redundant = [a.name for a in node.attribute if _is_default(node, a)]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = work.constants.get(node.input[1])
            if scale is not None and not scale.dims:  # the axis of a single scale means nothing
                redundant.append("axis")
        for attribute in [a for a in node.attribute if a.name in redundant]:
            node.attribute.remove(attribute)


def _is_default(node: Any, attribute: Any) -> bool:
    value = attribute.s or attribute.i
    if attribute.name in _LEAVES and node.op_type != "Pad":
        return all(i == _LEAVES[attribute.name] for i in attribute.ints)
    if attribute.name == "kernel_shape":  # a convolution's weight says it
        return str(node.op_type).startswith("Conv")
    return attribute.name in _DEFAULTS and value == _DEFAULTS[attribute.name]


def _dead(work: Work) -> None:
    """Nodes and constants that nothing reads go."""
    alive = {*work.outputs, *work.pinned}
    left = []
    for node in reversed(work.nodes):
        if alive & set(node.output):
            left.append(node)
            alive.update(node.input)
    work.nodes[:] = reversed(left)
    for name in [n for n in work.constants if n not in alive]:
        del work.constants[name]


def _write(into: Any, graph: Any, work: Work, short: Callable[[str], str]) -> None:
    from onnx import numpy_helper

    for node in work.nodes:
        fresh = into.node.add()
        fresh.CopyFrom(node)
        del fresh.input[:], fresh.output[:]
        fresh.input.extend(short(n) for n in node.input)
        fresh.output.extend(short(n) for n in node.output)
    for name, tensor in work.constants.items():
        fresh = into.initializer.add()
        if tensor.HasField("raw_data") or tensor.data_location:
            fresh.CopyFrom(tensor)
        else:  # typed fields store int8 as varints of up to ten bytes
            fresh.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)))
        _strip(fresh)
        fresh.name = short(name)
    symbols = [d.dim_param for v in graph.input for d in v.type.tensor_type.shape.dim[:1] if d.dim_param]
    for name, kept, target in (
        *((n, graph.input, into.input) for n in work.inputs),
        *((n, graph.output, into.output) for n in work.outputs),
    ):
        value = target.add()
        value.CopyFrom(next(v for v in kept if v.name == name))
        _strip(value)
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.ClearField("denotation")
            if dim.dim_param in symbols and symbols[0] == dim.dim_param:
                dim.dim_param = "batch"
            elif dim.dim_param:
                dim.dim_param = f"d{i}"
