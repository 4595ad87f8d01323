"""Names: the user's own for parameters, the shortest for everything else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from trimtab.run.work import Work

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def name_transposed(work: Work, parameters: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """A constant that is a parameter transposed gets that parameter's name."""
    free = {name: value for name, value in parameters.items() if name not in work.constants and value.ndim == 2}
    mapping: dict[str, str] = {}
    for name, tensor in work.constants.items():
        if len(tensor.dims) != 2 or name in parameters or name in work.pinned or name in work.outputs:
            continue
        alike = [n for n, v in free.items() if v.shape == tuple(tensor.dims)[::-1] and n not in mapping.values()]
        value = work.array(name) if alike else None
        for candidate in alike:
            if value is not None and value.dtype == free[candidate].dtype and np.array_equal(value.T, free[candidate]):
                mapping[name] = candidate
                break
    work.replace(mapping)
    for old, new in mapping.items():
        work.constants[new] = work.constants.pop(old)


def short_names(work: Work, keep: Collection[str]) -> Callable[[str], str]:
    """A function that gives each value a short name, always the same one; inputs, outputs and `keep` have their own."""
    fixed = {"", *work.inputs, *work.outputs, *work.pinned, *(n for n in work.constants if n in keep)}
    ids = (name for name in _ids() if name not in fixed)
    given: dict[str, str] = {name: name for name in fixed}

    def short(name: str) -> str:
        if name not in given:
            given[name] = next(ids)
        return given[name]

    return short


def _ids() -> Iterator[str]:
    length = 1
    while True:
        for number in range(len(_DIGITS) ** length):
            digits = []
            for _ in range(length):
                number, digit = divmod(number, len(_DIGITS))
                digits.append(_DIGITS[digit])
            yield "".join(digits)
        length += 1
