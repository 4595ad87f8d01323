"""Compared: what of a network and its teacher is compared beside their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.core.errors import InputError
from trimtab.core.store import digest
from trimtab.graph.model import Graph
from trimtab.train.features import alike, attention_loss, feature_loss, mapped, new_map, tapped
from trimtab.train.places import Pair, channels, embedding, given, moved_by_folding, pairs, places, shape
from trimtab.train.recipe import Distillation, Features, Relations
from trimtab.train.relations import WIDTH, angle_loss, contrastive_loss, distance_loss, similarity_loss

ANGLES = 2.0
"""The weight of angles to that of distances in `rkd`, as in the paper."""


@dataclass(frozen=True)
class Place:
    """Two nodes whose values are compared.

    Args:
        student: the node's name.
        teacher: the other's.
        axes: the dimension of the channels in each.
    """

    student: str
    teacher: str
    axes: tuple[int, int]


@dataclass(frozen=True)
class Compared:
    """What is compared in a training, and where the values of the last call lie.

    Args:
        features: places of the features.
        relations: places of the relations.
        mine: the student's values by node.
        theirs: the teacher's.
        maps: learned maps, trained along and no part of the result: `features.0.weight`, ...
    """

    features: tuple[Place, ...]
    relations: tuple[Place, ...]
    mine: Mapping[str, Tensor]
    theirs: Mapping[str, Tensor]
    maps: Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class Chosen:
    """The nodes that are compared."""

    features: tuple[Pair, ...] = ()
    relations: tuple[Pair, ...] = ()


def choose(student: Graph, teacher: Graph, distil: Distillation) -> Chosen:
    """The nodes that the settings name, or that are found by themselves.

    Raises:
        InputError: there is no such place, or the two values there cannot be compared.
    """
    features = _feature_pairs(student, teacher, distil.features)
    return Chosen(features, _relation_pairs(student, teacher, distil.relations))


def foldable(chosen: Chosen, folded: Graph) -> bool:
    """Whether the teacher's compared values are still there once its batch norms are folded."""
    return not any(moved_by_folding(b, folded) for _, b in (*chosen.features, *chosen.relations))


def compare(student: Graph, teacher: Graph, chosen: Chosen, distil: Distillation, seed: int) -> Compared | None:
    """Make two networks keep what is compared, in place; None where nothing is.

    Args:
        student: under training.
        teacher: as it runs.
        chosen: nodes, by the names that they have in both.
        distil: what to compare there.
        seed: of the learned maps.
    """
    both = (*chosen.features, *chosen.relations)
    if not both:
        return None
    maps: dict[str, Tensor] = {}
    for i, (mine, theirs) in enumerate(chosen.features):
        maps |= _feature_maps(f"features.{i}", mine, theirs, distil.features, seed)
    for i, pair in enumerate(chosen.relations):
        if distil.relations is not None and distil.relations.method == "contrastive":
            maps |= _map(f"relations.{i}.student", WIDTH, _width(pair[0]), seed)
            maps |= _map(f"relations.{i}.teacher", WIDTH, _width(pair[1]), seed)
    return Compared(
        features=tuple(_place(pair) for pair in chosen.features),
        relations=tuple(_place(pair) for pair in chosen.relations),
        mine=tapped(student.net, list(dict.fromkeys(a.name for a, _ in both))),
        theirs=tapped(teacher.net, list(dict.fromkeys(b.name for _, b in both))),
        maps={name: nn.Parameter(value.to(student.device)) for name, value in maps.items()},
    )


def compared_loss(compared: Compared, distil: Distillation) -> Tensor:
    """features.weight L_features + relations.weight L_relations of the values of the last call."""
    terms: list[Tensor] = []
    if compared.features:
        weight = distil.features.scale if isinstance(distil.features, Features) else distil.features
        terms.append(weight * _features(compared, distil.features))
    if compared.relations and distil.relations is not None:
        terms.append(distil.relations.scale * _relations(compared, distil.relations))
    return torch.stack(terms).sum()


def _features(compared: Compared, settings: float | Features) -> Tensor:
    mine, theirs = {}, {}
    for i, place in enumerate(compared.features):
        a, b = alike(*_values(compared, place))
        weight = compared.maps.get(f"features.{i}.weight")
        mine[str(i)] = a if weight is None else mapped(a, weight, compared.maps[f"features.{i}.bias"])
        theirs[str(i)] = b
    attention = isinstance(settings, Features) and settings.method == "attention"
    return attention_loss(mine, theirs) if attention else feature_loss(mine, theirs)


def _relations(compared: Compared, settings: Relations) -> Tensor:
    terms = []
    for i, place in enumerate(compared.relations):
        mine, theirs = _values(compared, place)
        if settings.method == "similarity":
            terms.append(similarity_loss(mine, theirs))
            continue
        mine, theirs = _vectors(mine), _vectors(theirs)
        if settings.method == "contrastive":
            a = mapped(mine, *(compared.maps[f"relations.{i}.student.{part}"] for part in ("weight", "bias")))
            b = mapped(theirs, *(compared.maps[f"relations.{i}.teacher.{part}"] for part in ("weight", "bias")))
            terms.append(contrastive_loss(a, b, settings.temperature))
        if settings.method in ("distance", "rkd"):
            terms.append(distance_loss(mine, theirs))
        if settings.method in ("angle", "rkd"):
            terms.append((ANGLES if settings.method == "rkd" else 1.0) * angle_loss(mine, theirs))
    return torch.stack(terms).sum() / len(compared.relations)


def _values(compared: Compared, place: Place) -> tuple[Tensor, Tensor]:
    """Both values as [N, channels, ...]."""
    mine, theirs = compared.mine[place.student], compared.theirs[place.teacher]
    return mine.movedim(place.axes[0], 1), theirs.movedim(place.axes[1], 1)


def _vectors(values: Tensor) -> Tensor:
    """[N, channels]: the mean over everything else."""
    return values.float().flatten(2).mean(2) if values.ndim > 2 else values


def _feature_pairs(student: Graph, teacher: Graph, settings: float | Features) -> tuple[Pair, ...]:
    if not isinstance(settings, Features):
        names = places(student, teacher) if settings > 0 else ()
        mine, theirs = ({n.name: n for n in graph.nodes()} for graph in (student, teacher))
        return tuple((mine[name], theirs[name]) for name in names)
    if settings.scale == 0:
        return ()
    found = pairs(student, teacher) if settings.places is None else given(student, teacher, settings.places)
    for a, b in found:
        spatial = len(shape(a)) > 2
        if len(shape(a)) != len(shape(b)) or (settings.method == "attention" and not spatial):
            raise InputError(
                f"distil: features: {settings.method} cannot compare these places",
                got=f"the student's {a.name} {_shown(a)} and the teacher's {b.name} {_shown(b)}",
                expected="values of as many dimensions" + (", three at least" if not spatial else ""),
                do="Name other places, or compare relations, which need no like shapes.",
            )
    return found


def _relation_pairs(student: Graph, teacher: Graph, settings: Relations | None) -> tuple[Pair, ...]:
    if settings is None or settings.scale == 0:
        return ()
    if settings.places is not None:
        return given(student, teacher, settings.places)
    if settings.method == "similarity":
        return pairs(student, teacher)[-1:]
    return ((embedding(student), embedding(teacher)),)


def _place(pair: Pair) -> Place:
    return Place(pair[0].name, pair[1].name, (channels(pair[0]), channels(pair[1])))


def _feature_maps(name: str, mine: Node, theirs: Node, settings: float | Features, seed: int) -> dict[str, Tensor]:
    if not isinstance(settings, Features) or settings.method != "fitnets":
        return {}
    if _width(mine) == _width(theirs) and settings.project == "differing":
        return {}
    return _map(name, _width(theirs), _width(mine), seed)


def _map(name: str, into: int, of: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(int(digest("map", name, seed)[:8], 16))
    weight, bias = new_map(into, of, generator)
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _width(node: Node) -> int:
    return shape(node)[channels(node)]


def _shown(node: Node) -> str:
    return str(["N", *shape(node)[1:]]).replace("'", "")
