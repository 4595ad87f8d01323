"""Multiply-adds of one ONNX node, from the shapes of what it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Shape = tuple[int, ...]
Rule = Callable[[Sequence[Shape | None], Shape, Mapping[str, Any]], int]
"""From the shapes of the inputs (None: left out or unknown), of the first output, and the attributes, to a count."""


def _convolution(inputs: Sequence[Shape | None], output: Shape, _: Mapping[str, Any], weight: int = 1) -> int:
    """Each output element is a sum over [C_in / groups, kernel]: equation 1."""
    return math.prod(output) * math.prod(_known(inputs, weight)[1:])


def _transposed(inputs: Sequence[Shape | None], _: Shape, __: Mapping[str, Any]) -> int:
    """Each input element is spread over [C_out / groups, kernel]."""
    return math.prod(_known(inputs, 0)) * math.prod(_known(inputs, 1)[1:])


def _product(inputs: Sequence[Shape | None], output: Shape, _: Mapping[str, Any]) -> int:
    """[..., m, k] x [..., k, n]."""
    return math.prod(output) * _known(inputs, 0)[-1]


def _gemm(inputs: Sequence[Shape | None], output: Shape, settings: Mapping[str, Any]) -> int:
    """[m, k] x [k, n], the first one transposed if `transA`."""
    return math.prod(output) * _known(inputs, 0)[0 if settings.get("transA") else 1]


def _attention(inputs: Sequence[Shape | None], output: Shape, _: Mapping[str, Any]) -> int:
    """q k^T and the weighted sum of v: every element of q and of the output meets every key."""
    return (math.prod(_known(inputs, 0)) + math.prod(output)) * _known(inputs, 1)[-2]


def _recurrent(inputs: Sequence[Shape | None], _: Shape, __: Mapping[str, Any]) -> int:
    """Every step and sample meets the input weights and the recurrent ones; x is [steps, batch, features]."""
    x = _known(inputs, 0)
    return x[0] * x[1] * (math.prod(_known(inputs, 1)) + math.prod(_known(inputs, 2)))


def _quantised_convolution(inputs: Sequence[Shape | None], output: Shape, settings: Mapping[str, Any]) -> int:
    return _convolution(inputs, output, settings, weight=3)


RULES: Mapping[str, Rule] = {
    "Conv": _convolution, "FusedConv": _convolution, "ConvInteger": _convolution, "QLinearConv": _quantised_convolution,
    "ConvTranspose": _transposed, "MatMul": _product, "FusedMatMul": _product, "MatMulInteger": _product,
    "QLinearMatMul": _product, "Gemm": _gemm, "FusedGemm": _gemm, "QGemm": _gemm, "Attention": _attention,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip
"""By operator. Every other operator multiplies nothing that this count is about."""


class UnknownShape(Exception):
    """A shape that a count needs is not known; the caller says so beside the count."""


def macs(kind: str, inputs: Sequence[Shape | None], output: Shape | None, settings: Mapping[str, Any]) -> int:
    """Multiply-adds of a node.

    Args:
        kind: its operator.
        inputs: shapes, None where an input is left out or its shape unknown.
        output: shape of the first output.
        settings: the attributes by name.

    Raises:
        UnknownShape: the operator multiplies, and a shape that its count needs is not known.
    """
    rule = RULES.get(kind)
    if rule is None:
        return 0
    if output is None:
        raise UnknownShape
    try:
        return rule(inputs, output, settings)
    except IndexError as error:  # fewer dimensions than the operator takes
        raise UnknownShape from error


def _known(inputs: Sequence[Shape | None], index: int) -> Shape:
    shape = inputs[index] if index < len(inputs) else None
    if shape is None:
        raise UnknownShape
    return shape
