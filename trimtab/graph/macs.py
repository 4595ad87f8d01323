"""Multiply-accumulates of one node, from the shapes of what it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

Rule = Callable[[tuple[Any, ...], Tensor], int]
"""From a node's arguments (nodes replaced by their fake tensors) and its first output to a count."""


def _written(node: Node) -> Any:
    return node.meta["val"]


def macs(node: Node, value: Callable[[Node], Any] = _written) -> int:
    """Multiply-accumulates of a node; zero for everything but products of matrices and convolutions.

    A convolution takes k k C_in C_out H_out W_out / groups (EQUATIONS eq. 1), a linear layer
    rows x n_in x n_out, attention 2 n^2 d for its two products (the n^2 d of eq. 2, which counts
    them as one; its n d^2 is the linear layers around). Additions of biases are not counted.

    Args:
        node: of a graph.
        value: the tensor, of any device, whose shape counts for a node; what is written on it by default.
    """
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    rule = _RULES.get(name)
    if rule is None:
        return 0
    args = tuple(_value(argument, value) for argument in node.args)
    output = value(node)
    return rule(args, output if isinstance(output, Tensor) else output[0])


def _value(argument: Any, value: Callable[[Node], Any]) -> Any:
    if isinstance(argument, Node):
        return value(argument)
    return [_value(item, value) for item in argument] if isinstance(argument, (list, tuple)) else argument


def _convolution(args: tuple[Any, ...], output: Tensor) -> int:
    weight = args[1]  # [C_out, C_in / groups, *kernel]
    return output.numel() * int(math.prod(weight.shape[1:]))


def _transposed(args: tuple[Any, ...], output: Tensor) -> int:
    image, weight = args[:2]  # [C_in, C_out / groups, *kernel]
    return int(image.numel()) * int(math.prod(weight.shape[1:]))


def _either_convolution(args: tuple[Any, ...], output: Tensor) -> int:
    return (_transposed if args[6] else _convolution)(args, output)  # convolution(..., dilation, transposed, ...)


def _product(first: int) -> Rule:
    return lambda args, output: output.numel() * int(args[first].shape[-1])


def _summed_product(args: tuple[Any, ...], output: Tensor) -> int:
    return int(args[1].numel()) * int(args[2].shape[-1])  # addbmm adds up the batch's products


def _attention(args: tuple[Any, ...], output: Tensor) -> int:
    query, key, value = args[:3]  # [..., heads, n, d]
    return int(query.numel()) * int(key.shape[-2]) + output.numel() * int(value.shape[-2])


def _bilinear(args: tuple[Any, ...], output: Tensor) -> int:
    return output.numel() * int(math.prod(args[2].shape[1:]))


def _contraction(args: tuple[Any, ...], output: Tensor) -> int:
    # |a| = mk, |b| = kn, |output| = mn, so mkn is the root of their product
    return math.isqrt(int(args[0].numel()) * int(args[1].numel()) * output.numel())


def _einsum(args: tuple[Any, ...], output: Tensor) -> int:
    terms = str(args[0]).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, args[1], strict=True):
        for letter, size in zip(_letters(term, operand.ndim), operand.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values()) if len(terms) > 1 else 0


def _letters(term: str, rank: int) -> list[str]:
    """One letter for each dimension; those under an ellipsis are numbered from the right."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(str(hidden - index) for index in range(hidden)), *after]


def _recurrent(args: tuple[Any, ...], output: Tensor) -> int:
    steps = int(math.prod(args[0].shape[:-1]))  # time x batch, or the packed rows of both
    return steps * _matrices(args)


def _matrices(parts: Sequence[Any]) -> int:
    lists = [part for part in parts if isinstance(part, list) and part and isinstance(part[0], Tensor)]
    return sum(int(w.numel()) for w in lists[-1] if w.ndim == 2)


def _cell(args: tuple[Any, ...], output: Tensor) -> int:
    weights = [a for a in args[2:4] if isinstance(a, Tensor)]
    return int(args[0].shape[0]) * sum(int(w.numel()) for w in weights)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_depthwise3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("convolution", "_convolution"), _either_convolution),
    **dict.fromkeys(("linear", "mm", "bmm", "matmul", "linalg_matmul", "mv", "dot", "vdot", "inner"), _product(0)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _product(1)),
    "addbmm": _summed_product,
    "bilinear": _bilinear,
    "tensordot": _contraction,
    "einsum": _einsum,
    **dict.fromkeys(("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"), _attention),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
}
