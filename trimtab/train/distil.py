"""Response distillation: learn from what the teacher answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.core.errors import InputError
from trimtab.train.recipe import Distillation


def taught_loss(student: Any, teachers: Sequence[Any], target: Any, settings: Distillation) -> Tensor:
    """How far the student's outputs are from those of one or several teachers.

    With `mean="losses"`: sum over teachers k of w_k L(student, teacher k). With `"probabilities"`: L against the mean
    sum_k w_k softmax(teacher k / T) for classes, and sum_k w_k teacher k for values. The weights sum to 1.

    Args:
        student: a tensor, or outputs by name.
        teachers: the same of each.
        target: the labels or None, as in `distillation_loss`.
        settings: the weights, how the mean is taken, the temperature and `match`.

    Raises:
        InputError: a teacher's outputs do not match, or there are not as many weights as teachers.

    Source: Hinton, Vinyals & Dean 2015, section 2, for the mean of probabilities; You et al. 2017 (multiple teachers).
    """
    weights = settings.weights or (1.0,) * len(teachers)
    if len(weights) != len(teachers):
        got = f"{len(weights)} of {len(teachers)} teachers"
        raise InputError("distil: weights", got=got, expected="one for each teacher, or none")
    named = [f"teacher {i + 1}" if len(teachers) > 1 else "teacher" for i in range(len(teachers))]
    for which, each in zip(named, teachers, strict=True):
        _paired(student, each, which)
    pairs = [(w / sum(weights), each) for w, each in zip(weights, teachers, strict=True) if w > 0]
    if settings.mean == "losses" or len(pairs) == 1:
        return torch.stack([w * distillation_loss(student, each, target, settings) for w, each in pairs]).sum()
    both = [(w, _paired(student, each, "teacher")) for w, each in pairs]
    names = [name for name, _, _ in both[0][1]]
    mixed = {name: _mean([(w, p[i][2]) for w, p in both], target, settings) for i, name in enumerate(names)}
    return distillation_loss({name: p for name, p, _ in both[0][1]}, mixed, target, settings)


def _mean(weighted: Sequence[tuple[float, Tensor]], target: Any, settings: Distillation) -> Tensor:
    """Logits whose softmax at T is the mean of the teachers'; of values the mean."""
    dim = _class_dim(weighted[0][1], target, settings.match)
    if dim is None:
        return torch.stack([w * value for w, value in weighted]).sum(0)
    t = settings.temperature
    return t * torch.stack([(value / t).softmax(dim) * w for w, value in weighted]).sum(0).clamp(min=1e-30).log()


def distillation_loss(student: Any, teacher: Any, target: Any, settings: Distillation) -> Tensor:
    """How far the student's outputs are from the teacher's, mean over the batch.

    For classes: T^2 KL(softmax(teacher / T) || softmax(student / T)), summed over classes; for
    values: the mean squared difference. Several outputs are summed, those without floating values
    left out.

    Args:
        student: a tensor, or outputs by name.
        teacher: the same; a single output may have another name.
        target: the labels, which decide between classes and values where `match` is `auto`; or None.
        settings: the temperature T and `match`.

    Raises:
        InputError: the two have different outputs.

    Source: Hinton, Vinyals & Dean 2015, section 2, whose soft loss is a cross entropy: it differs
    from this by the teacher's entropy, a constant. EQUATIONS 15-16 lack the factor T^2, which
    keeps the gradient's size when T changes.
    """
    terms = [_term(mine, theirs, target, settings) for _, mine, theirs in _paired(student, teacher, "teacher")]
    if not terms:
        raise InputError("distil: the network has no floating-point output to learn from")
    return sum(terms[1:], start=terms[0])


def _paired(student: Any, teacher: Any, which: str) -> list[tuple[str, Tensor, Tensor]]:
    """Each floating output of the student with the teacher's."""
    mine, theirs = _named(student), _named(teacher)
    if len(mine) == len(theirs) == 1:
        theirs = dict(zip(mine, theirs.values(), strict=True))
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in theirs.items()}:
        raise InputError(
            f"distil: {which} and student have different outputs",
            got="of the student " + ", ".join(f"{k} {list(v.shape)}" for k, v in mine.items()),
            expected=f"of the {which} " + ", ".join(f"{k} {list(v.shape)}" for k, v in theirs.items()),
        )
    return [(name, value, theirs[name]) for name, value in mine.items()]


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
