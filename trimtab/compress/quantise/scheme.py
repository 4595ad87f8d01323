"""Scheme: the settings of weights and of activations, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.compress.quantise.annotate import fits
from trimtab.core.errors import InputError

BITS = (2, 3, 4, 5, 6, 7, 8)
EIGHT = 8
GROUP = 32
INTEGERS = ("int", "ternary", "binary")
FLOATS = ("fp16", "bf16", "fp8")
_FEW = ("ternary", "binary")
_PER = ("channel", "tensor", "group")
_WEIGHT = ("kind", "bits", "per", "group")
_ACTIVATION = ("bits", "dynamic")


@dataclass(frozen=True)
class WeightScheme:
    """How one weight is stored.

    Args:
        kind: `int`, `ternary`, `binary`, or a floating-point type.
        bits: of an `int`.
        per: what has a scale of its own: `channel`, `tensor` or `group`.
        group: inputs of a linear layer that share a scale, where `per` is `group`.
    """

    kind: str = "int"
    bits: int = EIGHT
    per: str = "channel"
    group: int = GROUP

    @property
    def top(self) -> int:
        """The highest level of an `int`; the lowest is its opposite."""
        return int(2 ** (self.bits - 1) - 1)


@dataclass(frozen=True)
class ActivationScheme:
    """How activations are stored: unsigned with a zero point.

    Args:
        bits: of a value.
        dynamic: ranges are those of each batch as it comes, not of calibration data.
    """

    bits: int = EIGHT
    dynamic: bool = False


def weight_scheme(settings: Mapping[str, Any], where: str = "Quantise: weight") -> WeightScheme:
    """The scheme that `{"kind": ..., "bits": ..., "per": ..., "group": ...}` names.

    Raises:
        InputError: a setting or a value is unknown, or two do not go together.
    """
    _known(settings, _WEIGHT, where)
    kind = _choice(settings.get("kind", "int"), (*INTEGERS, *FLOATS), f"{where}: kind")
    if kind != "int" and "bits" in settings:
        raise InputError(where, got=f"bits with kind {kind}", expected="bits for kind int only")
    bits = _choice(settings.get("bits", EIGHT), BITS, f"{where}: bits")
    grouped = "group" in settings
    per = _choice(settings.get("per", "group" if grouped else "channel"), _PER, f"{where}: per")
    if grouped and per != "group":
        raise InputError(where, got=f"group with per {per}", expected='{"per": "group"}')
    if kind != "int" and per == "group":
        raise InputError(where, got=f"per group with kind {kind}", expected="kind int")
    group = settings.get("group", GROUP)
    if isinstance(group, bool) or not isinstance(group, int) or group < 2:
        raise InputError(f"{where}: group", got=repr(group), expected="2 or more, such as 32")
    return WeightScheme(kind, bits, per, group)


def activation_scheme(settings: Mapping[str, Any] | None) -> ActivationScheme | None:
    """The scheme that `{"bits": ..., "dynamic": ...}` names; None, weight-only, for None.

    Raises:
        InputError: a setting or a value is unknown, or two do not go together.
    """
    if settings is None:
        return None
    where = "Quantise: activation"
    _known(settings, _ACTIVATION, where)
    bits = _choice(settings.get("bits", EIGHT), BITS, f"{where}: bits")
    dynamic = settings.get("dynamic", False)
    if not isinstance(dynamic, bool):
        raise InputError(f"{where}: dynamic", got=repr(dynamic), expected="true or false")
    if dynamic and bits != EIGHT:
        raise InputError(f"{where}: bits", got=f"{bits} and dynamic", expected="8 for dynamic")
    return ActivationScheme(bits, dynamic)


def layer_schemes(
    weight: Mapping[str, Any], layers: Mapping[str, Mapping[str, Any]], names: Iterable[str]
) -> tuple[dict[str, WeightScheme], list[str]]:
    """For each layer the scheme of its weight: `weight`, with the settings of `layers` that fit its name over it.

    Where several fit, later ones win. A `kind` or a `per` drops what belongs to the other kinds. The first and
    the last layer of a ternary or binary network have 8 bits where `layers` does not name them, as in the
    papers; then there is a note.

    Raises:
        InputError: a scheme is wrong, or an entry of `layers` fits no layer.
    """
    weight_scheme(weight)
    chosen: dict[str, dict[str, Any]] = {name: dict(weight) for name in names}
    for key, settings in layers.items():
        if not isinstance(settings, Mapping):
            raise InputError(f"Quantise: layers: {key}", got=repr(settings), expected="settings by name, such as bits")
        weight_scheme(settings, f"Quantise: layers: {key}")
        hit = [name for name in chosen if fits(name, key)]
        if not hit:
            raise InputError("Quantise: layers", got=repr(key), expected=f"one of {some(chosen)}")
        for name in hit:
            chosen[name] = _merged(chosen[name], settings)
    schemes = {name: weight_scheme(settings, f"Quantise: {name}") for name, settings in chosen.items()}
    ends = list(dict.fromkeys([*list(schemes)[:1], *list(schemes)[-1:]]))
    kept = [n for n in ends if schemes[n].kind in _FEW and not any(fits(n, key) for key in layers)]
    notes = [f"Quantise keeps {n} at 8 bits, an end of the network; layers= can say otherwise." for n in kept]
    return schemes | {n: WeightScheme(per=schemes[n].per) for n in kept}, notes


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    other = dict(below)
    if above.get("kind", "int") != "int":
        other.pop("bits", None)
        if other.get("per") == "group":
            other = {k: v for k, v in other.items() if k not in ("per", "group")}
    if "bits" in above and "kind" not in above:
        other.pop("kind", None)
    if above.get("per", "group") != "group":
        other.pop("group", None)
    if "group" in above and "per" not in above:
        other.pop("per", None)
    return other | dict(above)


def some(names: Iterable[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    every = list(dict.fromkeys(names))
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def _known(settings: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in settings:
        if key not in keys:
            raise InputError(where, got=repr(key), expected=f"only {', '.join(keys)}")


def _choice(value: Any, allowed: tuple[Any, ...], where: str) -> Any:
    if isinstance(value, bool) or value not in allowed:
        raise InputError(where, got=repr(value), expected=f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}")
    return value
