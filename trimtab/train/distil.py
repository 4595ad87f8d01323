"""Response distillation: learn from what the teacher answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from trimtab.core.errors import InputError
from trimtab.train.recipe import Distillation


def distillation_loss(student: Any, teacher: Any, target: Any, settings: Distillation) -> Tensor:
    """How far the student's outputs are from the teacher's, mean over the batch.

    For classes: T^2 KL(softmax(teacher / T) || softmax(student / T)), summed over classes; for
    values: the mean squared difference. Several outputs are summed, those without floating values
    left out.

    Args:
        student: a tensor, or outputs by name.
        teacher: the same.
        target: the labels, which decide between classes and values where `match` is `auto`; or None.
        settings: the temperature T and `match`.

    Raises:
        InputError: the two have different outputs.

    Source: Hinton, Vinyals & Dean 2015, section 2, whose soft loss is a cross entropy: it differs
    from this by the teacher's entropy, a constant. EQUATIONS 15-16 lack the factor T^2, which
    keeps the gradient's size when T changes.
    """
    mine, theirs = _named(student), _named(teacher)
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in theirs.items()}:
        raise InputError(
            "distil: teacher and student have different outputs",
            got=", ".join(f"{k} {list(v.shape)}" for k, v in mine.items()),
            expected=", ".join(f"{k} {list(v.shape)}" for k, v in theirs.items()),
        )
    terms = [_term(value, theirs[name], target, settings) for name, value in mine.items()]
    if not terms:
        raise InputError("distil: the network has no floating-point output to learn from")
    return sum(terms[1:], start=terms[0])


def _term(student: Tensor, teacher: Tensor, target: Any, settings: Distillation) -> Tensor:
    dim = _class_dim(student, target, settings.match)
    if dim is None:
        return functional.mse_loss(student, teacher)
    t = settings.temperature
    soft = functional.kl_div(
        functional.log_softmax(student / t, dim),
        functional.log_softmax(teacher / t, dim),
        reduction="none",
        log_target=True,
    )
    return soft.sum(dim).mean() * t * t


def _class_dim(output: Tensor, target: Any, match: str) -> int | None:
    """The dimension of classes in an output, or None where it holds values."""
    if match == "values" or output.ndim < 2:
        return None
    if isinstance(target, Tensor) and match == "auto":
        if target.dtype.is_floating_point or target.ndim != output.ndim - 1:
            return None
        if (output.shape[0], *output.shape[2:]) == tuple(target.shape):
            return 1
        return -1 if output.shape[:-1] == target.shape else None
    if match == "auto":
        return 1 if output.ndim == 2 and output.shape[1] > 1 else None
    return -1 if output.ndim == 3 else 1


def _named(outputs: Any) -> dict[str, Tensor]:
    named = outputs if isinstance(outputs, Mapping) else {"output": outputs}
    return {str(k): v for k, v in named.items() if v.dtype.is_floating_point}
