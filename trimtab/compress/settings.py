"""Settings: dataclasses from JSON values, checked against their declared types."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trimtab.core.errors import InputError


def made(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    """A dataclass from settings by name, each checked against the type it is declared with.

    Lists become tuples, and whole numbers floats where a float is declared.

    Raises:
        InputError: a setting is unknown, missing or of a wrong type; the message says which, got and expected.
    """
    hints = get_type_hints(kind)
    declared = {f.name: f for f in fields(kind)}
    for key in settings:
        if key not in declared:
            near = difflib.get_close_matches(key, declared, 1)
            do = f"Did you mean {near[0]}?" if near else None
            raise InputError(f"{kind.__name__}: unknown setting {key!r}", expected=signature(kind), do=do)
    for key, field in declared.items():
        if key not in settings and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{kind.__name__}: {key} is missing", expected=signature(kind))
    typed = {key: _typed(value, hints[key], f"{kind.__name__}: {key}") for key, value in settings.items()}
    return kind(**typed)


def signature(kind: type[Any]) -> str:
    """The name of a dataclass and of its settings, for a message."""
    return f"{kind.__name__}({', '.join(f.name for f in fields(kind))})"


def _typed(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as the type that a setting is declared with: lists become tuples, whole numbers floats."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, inner, where)
    if origin is Literal:
        if value in inner and type(value) in {type(i) for i in inner}:
            return value
        raise InputError(where, got=repr(value), expected=" or ".join(map(str, inner)))
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        if all(isinstance(k, str) for k in value):
            return {k: _typed(v, inner[1], f"{where}: {k}") for k, v in value.items()}
    elif origin is not None and issubclass(origin, Sequence) and isinstance(value, (list, tuple)):
        return tuple(_typed(v, inner[0], where) for v in value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint and hint is not float:
        return value
    raise InputError(where, got=repr(value), expected=_words(hint))


def _one_of(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in hints:
        return None
    rest = [h for h in hints if h is not type(None)]
    if len(rest) == 1:
        return _typed(value, rest[0], where)
    for hint in rest:
        origin = get_origin(hint)
        if isinstance(hint, type) and type(value) is hint:
            return value
        if hint is float and type(value) is int and int not in rest:
            return float(value)
        if origin is not None and isinstance(value, Mapping) and issubclass(origin, Mapping):
            return _typed(value, hint, where)
        if origin is not None and isinstance(value, (list, tuple)) and issubclass(origin, Sequence):
            return _typed(value, hint, where)
    raise InputError(where, got=repr(value), expected=" or ".join(_words(h) for h in hints))


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _words(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is not None and issubclass(origin, Mapping):
        return f"an object of {_words(inner[1])} by name"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list of {_words(inner[0])}"
    return "any value" if hint is Any else str(hint)
