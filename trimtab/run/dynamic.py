"""Dynamic: products with inputs that are quantised as they come, in integers whatever the runtime makes of the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trimtab.run.work import Work


def integer_products(work: Work) -> None:
    """`DQ(q) @ DQ(w)`, where DynamicQuantizeLinear gave q, as `cast(q @ w) * (scale of q * scale of w)`; in place.

    ONNX Runtime merges that into one kernel whether or not it knows the shapes. From products of dequantised values
    it makes, where it knows them, a Gemm of floats.
    """
    producers = work.producers()
    for node in [n for n in work.nodes if n.op_type == "MatMul"]:
        ranges, weight = _ranges(producers, node), producers.get(node.input[1])
        if ranges is not None and weight is not None and _by_channel(work, weight):
            _write(work, node, ranges, weight)


def _ranges(producers: dict[str, Any], node: Any) -> Any | None:
    """The DynamicQuantizeLinear whose levels a product reads, or None."""
    source = producers.get(node.input[0])
    if source is None or source.op_type != "DequantizeLinear":
        return None
    found = producers.get(source.input[0])
    same = found is not None and found.op_type == "DynamicQuantizeLinear" and list(source.input) == list(found.output)
    return found if same else None


def _by_channel(work: Work, weight: Any) -> bool:
    """Whether a node dequantises a constant [in, out] with one scale, or one for each output, and no zero point."""
    if weight.op_type != "DequantizeLinear" or any(a.name == "block_size" and a.i for a in weight.attribute):
        return False
    levels, scale, *zeros = (work.array(name) for name in weight.input)
    if levels is None or scale is None or levels.dtype != np.int8 or levels.ndim != 2:
        return False
    axis = next((int(a.i) for a in weight.attribute if a.name == "axis"), 1) % 2
    return (scale.size == 1 or axis == 1) and all(zero is not None and not zero.any() for zero in zeros)


def _write(work: Work, node: Any, ranges: Any, weight: Any) -> None:
    from onnx import TensorProto, helper

    levels, scale, zero = ranges.output
    out = node.output[0]
    product, wide, factor = f"{out}/integers", f"{out}/wide", f"{out}/scale"
    at = work.nodes.index(node)
    work.nodes[at : at + 1] = [
        helper.make_node("MatMulInteger", [levels, weight.input[0], zero], [product]),
        helper.make_node("Cast", [product], [wide], to=TensorProto.FLOAT),
        helper.make_node("Mul", [scale, weight.input[1]], [factor]),
        helper.make_node("Mul", [wide, factor], [out]),
    ]
