"""Wire: what goes between the machine that measures and the one that asks, and the checks that both make of it.

All is JSON but for files: models are ONNX, arrays are safetensors, both named by their SHA-256. No code is ever sent.

    GET  /v1/about                    what the machine is, its runtimes, its limits
    GET  /v1/models/DIGEST            is it there?      PUT  the same with the file; /v1/inputs/DIGEST likewise
    POST /v1/time                     {baseline, file, inputs, runtimes, threads, seconds} -> rounds by runtime
    POST /v1/layers                   {layers, precision, runtime, batch, threads} -> seconds of each
    POST /v1/check                    {file, runtime} -> or the error NotInteger
    POST /v1/run                      {file, inputs, runtime, threads} -> outputs, as safetensors

An error is {"error": {"kind", "message"}}: 400 malformed, 401 token, 404 not there, 413 too large, 422 the job failed
(`kind` is the error's name), 503 busy, 504 the job took too long.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from typing import Any, NoReturn

from trimtab.core.errors import InputError
from trimtab.hardware.layer import Layer

SCHEMA = 1
TOKEN = "TRIMTAB_TOKEN"
"""The environment variable that holds the token, on both sides."""
JSON_BYTES = 1 << 20
"""Bytes that a question may have, files apart."""
DIGEST = re.compile(r"[0-9a-f]{64}")
PRECISIONS = ("fp32", "int8")
_SIDE = 1 << 20
"""No size of a layer is greater than this."""


def loads(data: bytes) -> Any:
    """JSON without NaN and infinities.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError("not JSON", got=shown(data[:60].decode("utf-8", "replace"))) from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def object_of(data: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """An object with these fields and no others."""
    if not isinstance(data, dict) or set(data) != set(names):
        got = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise InputError(what, got=shown(got), expected=f"an object of {', '.join(names)}")
    return data


def text(value: Any, what: str, expected: Sequence[str] | re.Pattern[str] | None = None) -> str:
    """A short text, one of a list or of a pattern."""
    fits = isinstance(value, str) and len(value) <= 200 and value.isprintable()
    if isinstance(expected, re.Pattern):
        fits = fits and expected.fullmatch(value) is not None
    elif expected is not None:
        fits = fits and value in expected
    if not fits:
        some = expected.pattern if isinstance(expected, re.Pattern) else " or ".join(expected or ("a short text",))
        raise InputError(what, got=shown(value), expected=some)
    return str(value)


def whole(value: Any, what: str, high: int, low: int = 1) -> int:
    """A whole number in bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(what, got=shown(value), expected=f"a whole number from {low} to {high}")
    return value


def number(value: Any, what: str, high: float) -> float:
    """A finite number above 0."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not 0 < value <= high:
        raise InputError(what, got=shown(value), expected=f"a number above 0, at most {high:g}")
    return float(value)


def numbers(value: Any, what: str, high: float, most: int, least: int = 1) -> tuple[float, ...]:
    """A list of finite numbers above 0."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise InputError(what, got=shown(value), expected=f"a list of {least} to {most} numbers")
    return tuple(number(v, what, high) for v in value)


def shown(value: Any) -> str:
    """What was found, short and printable."""
    plain = "".join(c if c.isprintable() else " " for c in str(value))
    return repr(plain if len(plain) <= 80 else f"{plain[:77]}...")


def layer_of(data: Any) -> Layer:
    """A layer from its fields, checked.

    Raises:
        InputError: no such layer can be.
    """
    found = object_of(data, [f.name for f in fields_of(Layer)], "layer")
    sizes: dict[str, Any] = {
        name: whole(found[name], f"layer: {name}", _SIDE) for name in ("inputs", "outputs", "groups")
    }
    for name in ("kernel", "spatial", "stride", "padding", "dilation"):
        value = found[name]
        if not isinstance(value, list) or len(value) > 3:
            raise InputError(f"layer: {name}", got=shown(value), expected="a list of at most 3 whole numbers")
        sizes[name] = tuple(whole(n, f"layer: {name}", _SIDE, int(name != "padding")) for n in value)
    layer = Layer(**sizes)
    sides = len(layer.kernel) or 1
    others = (layer.stride, layer.padding, layer.dilation) if layer.kernel else ()
    fits = len(layer.spatial) == sides and all(len(v) == sides for v in others)
    if not fits or layer.inputs % layer.groups or layer.outputs % layer.groups or min(layer.result) < 1:
        raise InputError("layer", got=shown(data), expected="sides, groups and an output that fit")
    return layer


def layers_bytes(layers: Sequence[Layer], batch: int) -> int:
    """Bytes that timing them takes, as floats."""
    return sum(4 * (layer.weights + batch * layer.activations) for layer in layers)


def named(data: Any, what: str) -> Mapping[str, str]:
    """An object of short texts by short names."""
    if not isinstance(data, dict) or len(data) > 64:
        raise InputError(what, got=shown(data), expected="an object of texts")
    return {text(k, what): text(v, what) for k, v in data.items()}
