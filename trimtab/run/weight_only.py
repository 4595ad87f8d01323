"""Weight-only: integer weights whose layer computes in floating point, in the form that each runtime takes best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trimtab.run.work import Work

_CONVOLUTIONS = ("Conv", "ConvTranspose")


def arrange_weights(work: Work) -> None:
    """Write weights for layers without integer inputs, and for inputs quantised as they come; in place.

    - A matrix product takes its levels as [in, out]: ONNX Runtime fuses that into its product of floats with 8- or
      4-bit weights. It leaves out a weight that is to be transposed.
      A product without a bias right before a relu it leaves as it is (release 1.31).
    - A convolution or a look-up has no such kernel, and would dequantise the weight at every inference. Written as a
      cast and a multiplication, that is done once, when the file is loaded.
    - A linear layer whose input is quantised as it comes is a product and an addition: only so is it fused.
    """
    _found_ranges(work)
    for node in list(work.nodes):
        if node.op_type == "Gemm":
            _arrange_gemm(work, node)
    producers = work.producers()
    for node in list(work.nodes):
        if node.op_type == "DequantizeLinear" and _folds_at_load(work, producers, node):
            _cast_and_scale(work, node)


def _found_ranges(work: Work) -> None:
    """What DynamicQuantizeLinear finds the scale for, it quantises too."""
    producers = work.producers()
    mapping: dict[str, str] = {}
    for node in work.nodes:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3:
            continue
        found = producers.get(node.input[1])
        if found is None or found.op_type != "DynamicQuantizeLinear" or node.output[0] in work.outputs:
            continue
        if found.input[0] == node.input[0] and list(node.input[1:3]) == list(found.output[1:3]):
            mapping[node.output[0]] = found.output[0]
    work.replace(mapping)
    work.nodes[:] = [n for n in work.nodes if not set(n.output) & mapping.keys()]


def _arrange_gemm(work: Work, node: Any) -> None:
    producers = work.producers()
    weight = producers.get(node.input[1])
    if weight is None or weight.op_type != "DequantizeLinear" or weight.input[0] not in work.constants:
        return
    source = producers.get(node.input[0])
    integer = source is not None and source.op_type == "DequantizeLinear"
    found = producers.get(source.input[0]) if source is not None and integer else None
    dynamic = found is not None and found.op_type == "DynamicQuantizeLinear"
    settings = {a.name: a for a in node.attribute}
    if (integer and not dynamic) or any(settings[k].f != 1 for k in ("alpha", "beta") if k in settings):
        return
    if "transB" in settings and settings["transB"].i:
        if not transpose_levels(work, weight):
            return
        node.attribute.remove(settings["transB"])
    if dynamic and not ("transA" in settings and settings["transA"].i):
        _split_gemm(work, node)


def _split_gemm(work: Work, node: Any) -> None:
    from onnx import helper

    product = f"{node.output[0]}/product"
    bias = node.input[2] if len(node.input) > 2 else ""
    at = work.nodes.index(node)
    whole = helper.make_node("MatMul", list(node.input[:2]), [product if bias else node.output[0]])
    sums = [helper.make_node("Add", [product, bias], [node.output[0]])] if bias else []
    work.nodes[at : at + 1] = [whole, *sums]


def transpose_levels(work: Work, node: Any) -> bool:
    """Store the constant matrix of a dequantise node transposed, with its scales; False where others read it too."""
    from onnx import helper, numpy_helper

    held = [name for name in node.input if name]
    value = work.array(node.input[0])
    shared = len(work.readers(node.input[0])) != 1 or len(work.readers(node.output[0])) != 1
    if value is None or value.ndim != 2 or shared or {node.input[0], node.output[0]} & {*work.outputs, *work.pinned}:
        return False
    arrays = [work.array(name) for name in held]
    if any(array is None for array in arrays):
        return False
    for i, array in enumerate(arrays):
        if array is not None and array.ndim == 2:
            if i:  # others may have the same scales
                node.input[i] = f"{node.input[0]}/{i}"
            work.constants[node.input[i]] = numpy_helper.from_array(np.ascontiguousarray(array.T))
    axis = next((a for a in node.attribute if a.name == "axis"), None)
    before = 1 if axis is None else axis.i
    if axis is not None:
        node.attribute.remove(axis)
    node.attribute.append(helper.make_attribute("axis", 1 - before % 2))
    return True


def _folds_at_load(work: Work, producers: dict[str, Any], node: Any) -> bool:
    """Whether a weight's dequantising would be done at every inference."""
    value = work.array(node.input[0])
    readers = work.readers(node.output[0])
    if value is None or value.dtype != np.int8 or value.ndim < 2 or not readers or _blocks(node):
        return False
    if any(work.array(name) is None for name in node.input[1:]) or node.output[0] in {*work.outputs, *work.pinned}:
        return False
    zeros = [work.array(name) for name in node.input[2:]]
    if any(zero is not None and zero.any() for zero in zeros):
        return False
    return all(any(_float_use(producers, reader, node.output[0])) for reader in readers)


def _float_use(producers: dict[str, Any], reader: Any, value: str) -> Iterator[bool]:
    yield reader.op_type == "Gather" and reader.input[0] == value
    if reader.op_type in _CONVOLUTIONS and reader.input[1] == value:
        before = producers.get(reader.input[0])
        yield before is None or before.op_type != "DequantizeLinear"


def _blocks(node: Any) -> bool:
    return any(a.name == "block_size" and a.i for a in node.attribute)


def _cast_and_scale(work: Work, node: Any) -> None:
    """`DQ(q)` as `cast(q) * scale`: the same product of the same numbers."""
    from onnx import TensorProto, helper, numpy_helper

    levels, scale = work.array(node.input[0]), work.array(node.input[1])
    assert levels is not None  # _folds_at_load has seen to it
    assert scale is not None
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1) % levels.ndim
    wide, factor = f"{node.output[0]}/wide", f"{node.output[0]}/scale"
    shape = [-1 if d == axis else 1 for d in range(levels.ndim)] if scale.size > 1 else [1] * levels.ndim
    work.constants[factor] = numpy_helper.from_array(np.ascontiguousarray(scale.reshape(shape)))
    at = work.nodes.index(node)
    cast = helper.make_node("Cast", [node.input[0]], [wide], to=TensorProto.FLOAT)
    work.nodes[at : at + 1] = [cast, helper.make_node("Mul", [wide, factor], [node.output[0]])]
