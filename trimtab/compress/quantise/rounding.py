"""Rounding: which of its two neighbouring levels each weight becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.compress.quantise.adaround import Descent, reconstructed
from trimtab.compress.quantise.brecq import block_units
from trimtab.compress.quantise.gptq import gptq
from trimtab.compress.quantise.staged import Inputs, chunks, room
from trimtab.compress.quantise.units import layer_units, layers
from trimtab.compress.settings import made
from trimtab.core.context import Progress
from trimtab.core.errors import InputError
from trimtab.graph.model import Graph


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded.

    Args:
        method: `nearest`; `adaround`, learnt layer by layer; `brecq`, learnt block by block; `gptq`, column by
            column, each making up for the ones before.
        iterations: steps for each layer or block, of the two that learn.
        samples: calibration samples that are used, at most.
    """

    method: Literal["nearest", "adaround", "brecq", "gptq"] = "nearest"
    iterations: int = Descent.iterations
    samples: int = 1024


def rounding_of(value: str | Mapping[str, Any]) -> Rounding:
    """Settings from a name, or from an object such as `{"method": "brecq", "iterations": 2000}`.

    Raises:
        InputError: a setting is unknown, of a wrong type or out of range.
    """
    settings: Rounding = made(Rounding, {"method": value} if isinstance(value, str) else value)
    for name in ("iterations", "samples"):
        if getattr(settings, name) < 1:
            raise InputError(f"Quantise: rounding: {name}", got=getattr(settings, name), expected="1 or more")
    return settings


def rounded(
    method: str | Mapping[str, Any],
    prepared: Graph,
    folded: Graph,
    inputs: Sequence[Inputs],
    progress: Progress,
    seed: int = 0,
) -> Graph:
    """The prepared graph with its weights moved onto the grid of their scales, which stay.

    Rounding to the nearest level then changes them no more, so that conversion takes the levels chosen.

    Args:
        method: a name, or an object of `Rounding`'s settings.
        prepared: fake-quantised; left as it is.
        folded: the same network in floating point, before fake quantisation.
        inputs: the calibration inputs.
        progress: shows a bar.
        seed: of which samples are taken, and in which order.

    Raises:
        InputError: a setting is wrong.
    """
    settings = rounding_of(method)
    if settings.method == "nearest":
        return prepared
    found = layers(prepared)
    parts = chunks(prepared, inputs, settings.samples, seed)
    if settings.method == "gptq":
        result = gptq(prepared, found, parts, progress)
    else:
        units = layer_units(prepared, found) if settings.method == "adaround" else block_units(prepared, found)
        descent = Descent(iterations=settings.iterations, seed=seed)
        result = reconstructed(prepared, folded, units, parts, descent, progress)
    most = room(prepared)
    if most >= settings.samples:
        return result
    return result.note(f"Rounding saw at most {most} calibration samples: memory holds the values of no more.")
