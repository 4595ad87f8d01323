"""Arguments of nodes as typed JSON and back. Nothing is evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from trimtab.core.errors import FileError

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
_FORMATS = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}
_LAYOUTS = {"strided": torch.strided}
_DEVICES = ("cpu", "cuda", "xpu", "mps", "meta")
_LARGEST = 2**63
_DEEPEST = 8


def encode(value: Any) -> Any:
    """A node's argument as JSON: plain where JSON has the type, else an object with the type as its one key."""
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (list, tuple)):
        items = [encode(item) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
    if isinstance(value, slice):
        return {"slice": [encode(part) for part in (value.start, value.stop, value.step)]}
    for kind, name in (
        ("node", value.name if isinstance(value, Node) else None),
        ("device", str(value) if isinstance(value, torch.device) else None),
        ("dtype", _key(DTYPES, value)),
        ("memory_format", _key(_FORMATS, value)),
        ("layout", _key(_LAYOUTS, value)),
    ):
        if name is not None:
            return {kind: name}
    raise FileError("save: a graph file does not hold this kind of argument", got=f"{type(value).__name__} {value!r}")


def _key(table: Mapping[str, Any], value: Any) -> str | None:
    return next((name for name, member in table.items() if type(member) is type(value) and member == value), None)


def decode(value: Any, nodes: Mapping[str, Node], depth: int = 0) -> Any:
    """The argument that `encode` wrote; FileError for anything that it does not write."""
    if depth > _DEEPEST:
        raise FileError("load: arguments are nested too deeply", expected=f"at most {_DEEPEST} levels")
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        if abs(value) >= _LARGEST:
            raise FileError("load: an integer is too large", expected="64 bits")
        return value
    if isinstance(value, list):
        return [decode(item, nodes, depth + 1) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise FileError("load: not an argument", got=repr(value)[:80])
    ((kind, content),) = value.items()
    if kind in ("tuple", "slice", "complex") and isinstance(content, list):
        return _sequence(kind, [decode(item, nodes, depth + 1) for item in content])
    return _named(kind, content, nodes)


def _sequence(kind: str, items: list[Any]) -> Any:
    if kind == "tuple":
        return tuple(items)
    if kind == "slice" and len(items) == 3:
        return slice(*items)
    if kind == "complex" and len(items) == 2 and all(isinstance(item, (int, float)) for item in items):
        return complex(*items)
    raise FileError("load: not an argument", got=f"{kind} of {len(items)}")


def _named(kind: str, name: Any, nodes: Mapping[str, Node]) -> Any:
    if kind == "device" and isinstance(name, str):
        family, _, index = name.partition(":")
        if family in _DEVICES and (not index or (index.isdecimal() and len(index) < 4)):
            return torch.device(name)
    elif kind == "float" and name in ("inf", "-inf", "nan"):
        return float(name)
    else:
        tables = {"node": nodes, "dtype": DTYPES, "memory_format": _FORMATS, "layout": _LAYOUTS}
        table = tables.get(kind, {})
        if isinstance(name, str) and name in table:
            return table[name]
    raise FileError("load: not an argument", got=f"{str(kind)[:40]} {str(name)[:40]!r}")
