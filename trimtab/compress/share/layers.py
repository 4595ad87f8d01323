"""Layers: whose weights are shared, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trimtab.compress.quantise.annotate import fits
from trimtab.compress.quantise.layer import layer_of
from trimtab.compress.quantise.scheme import some
from trimtab.core.errors import InputError
from trimtab.graph.model import Graph

_LEAST = 32
"""Values under which a tensor stays as it is."""
_KINDS: Mapping[str, type] = {"bits": int, "clusters": int, "per": str, "group": int, "block": int}


def shared_layers(graph: Graph, skip: Sequence[str]) -> dict[str, str]:
    """The weights that can be shared, in graph order, each with its layer's name: of convolutions, linear layers and
    embeddings."""
    tensors, found = graph.tensors(), {}
    for node in graph.nodes():
        layer = layer_of(node, tensors)
        name = None if layer is None else layer.weight
        if node.target is torch.ops.aten.embedding.default:
            name = str(getattr(node.args[0], "target", ""))
        if name is None or not isinstance(tensors.get(name), nn.Parameter) or tensors[name].numel() < _LEAST:
            continue
        plain = name.rpartition(".")[0] or name
        if tensors[name].is_floating_point() and not any(fits(plain, each) for each in skip):
            found[name] = plain
    return found


def chosen(
    graph: Graph,
    settings: Mapping[str, Any],
    layers: Mapping[str, Mapping[str, Any]],
    skip: Sequence[str],
    biases: int | None,
) -> dict[str, dict[str, Any]]:
    """For each tensor to share its settings: `settings`, with those of `layers` that fit its layer's name over them.

    Args:
        graph: its batch norms folded.
        settings: of all layers.
        layers: of single ones.
        skip: names of layers to leave.
        biases: bits for vectors, or None.

    Raises:
        InputError: a setting is unknown, an entry of `layers` fits no layer, or no layer is left.
    """
    found = shared_layers(graph, skip)
    if not found:
        raise InputError("Share: nothing to share", got="no convolution, linear layer or embedding that is not skipped")
    said = {name: dict(settings) for name in found}
    for key, above in layers.items():
        _check(key, above)
        hit = [name for name, plain in found.items() if fits(plain, key)]
        if not hit:
            raise InputError("Share: layers", got=repr(key), expected=f"one of {some(found.values())}")
        for name in hit:
            said[name] |= {k: None for k in ("bits", "clusters") if {"bits", "clusters"} & set(above)} | dict(above)
    plain = set(found.values())
    for name, value in graph.tensors().items() if biases is not None else ():
        mine = isinstance(value, nn.Parameter) and value.ndim == 1 and value.numel() >= _LEAST
        if mine and name.rpartition(".")[0] in plain:
            said[name] = {"bits": biases, "clusters": None, "per": "tensor", "group": None, "block": None}
    return said


def _check(key: str, above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        kind = _KINDS.get(name)
        if kind is None:
            raise InputError(f"Share: layers: {key}", got=repr(name), expected=f"only {', '.join(_KINDS)}")
        if type(value) is not kind or (name == "per" and value not in ("tensor", "channel", "group")):
            expected = "tensor, channel or group" if name == "per" else "a whole number"
            raise InputError(f"Share: layers: {key}: {name}", got=repr(value), expected=expected)
