"""Order: which technique can follow which, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.compress.technique import Technique
from trimtab.core.errors import InputError


@dataclass(frozen=True)
class Refusal:
    """Techniques that can't follow another, whether next or later.

    Args:
        before: names of the techniques that come first.
        after: names of those that can't follow.
        why: what the first one left that the second one would break or could not work on.
        do: what to do instead.
        only: a setting of the first one and what must stand in it, such as `("pattern", ":")`.
        unless: a setting of the second one and its value with which it can follow after all, such as `("per",
            "tensor")`; it is looked for in the technique's settings and one level below, and no setting of a single
            layer may say otherwise.
        given: a setting of the second one without which it can follow, such as `train`.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    why: str
    do: str
    only: tuple[str, str] | None = None
    unless: tuple[str, str] | None = None
    given: str | None = None


STRUCTURE = ("Prune", "RemoveBlocks", "Factorise", "Swap", "Experts")
"""What changes the network's form."""
VALUES = ("Sparsify", "Share", "Tie", "Distil", "Recalibrate", "Equalise", "Smooth")
"""What changes its numbers and leaves its form."""
DYNAMIC = ("Exits", "Gates")
"""What makes the work depend on the input."""

REFUSED: tuple[Refusal, ...] = (
    Refusal(
        ("Quantise",),
        ("Quantise", *STRUCTURE, *DYNAMIC, *(name for name in VALUES if name != "Distil")),
        "its weights are integers by then, whose scales and ranges hold for the network as it was calibrated",
        "Put quantise last.",
    ),
    Refusal(
        ("Quantise",),
        ("Distil",),
        "integers have no gradient",
        "Train before, or inside: quantise(train={'steps': 300}).",
    ),
    Refusal(
        ("Sparsify",),
        ("Factorise", "Swap"),
        "what takes the layers' place is dense, and the zeros are lost",
        "Put sparsify after it.",
    ),
    Refusal(
        ("Sparsify",),
        ("Prune",),
        "an N:M pattern counts the weights of each M inputs, and inputs that go shift the others",
        "Put sparsify after it.",
        only=("pattern", ":"),
    ),
    Refusal(
        ("Sparsify",),
        ("Tie",),
        "the mean of two weights whose zeros lie in other places has fewer of them",
        "Put sparsify after it.",
    ),
    Refusal(
        ("Tie",),
        ("Factorise", "Swap", "Equalise", "Smooth"),
        "each layer gets weights of its own by it, and what was tied comes apart",
        "Put tie after it, or leave one of the two out.",
    ),
    Refusal(
        ("Share",),
        ("Distil",),
        "each weight would move by itself, and the shared values come apart",
        "Train before, or inside: share(train={'steps': 300}), which moves the shared values.",
    ),
    Refusal(
        ("Share",),
        ("Sparsify", "Tie", "Factorise", "Swap", "Equalise", "Smooth"),
        "it gives weights values that are not among the shared ones",
        "Put share after it.",
    ),
    Refusal(
        ("Share",),
        ("Quantise",),
        "a scale for each channel makes other values of the shared ones in each",
        "Leave one of the two out, or give one scale: quantise(weight={'bits': 8, 'per': 'tensor'}).",
        unless=("per", "tensor"),
    ),
    Refusal(
        ("Share",),
        ("Quantise",),
        "where it trains, each weight moves by itself, and the shared values come apart",
        "Leave out its train, and train before, or inside: share(train={'steps': 300}).",
        given="train",
    ),
    Refusal(
        DYNAMIC,
        (*STRUCTURE, "Sparsify", "Tie", "Distil", "Recalibrate", *DYNAMIC),
        "its thresholds were chosen for the answers of the network as it was",
        "Put it after all that changes them; equalise, smooth, share and quantise may follow.",
    ),
    Refusal(
        DYNAMIC,
        ("Share", "Quantise"),
        "where they train, the answers are no longer those that its thresholds were chosen for",
        "Leave out their train, or put it after them.",
        given="train",
    ),
    Refusal(
        ("Equalise", "Smooth", "Share"),
        ("Recalibrate",),
        "they fold batch norm, and no statistics are left to measure",
        "Put recalibrate before them.",
    ),
)
"""Every pair that is refused; all others may follow each other."""


def refusal(before: Technique, after: Technique) -> Refusal | None:
    """Why one technique can't follow another; None where it can."""
    first, second = type(before).__name__, type(after).__name__
    named = (r for r in REFUSED if first in r.before and second in r.after and _gives(r, after))
    return next((r for r in named if _concerned(r, before) and not _excused(r, after)), None)


def check_order(steps: Sequence[Technique]) -> None:
    """Hold every step of a plan against all that come before it.

    Raises:
        InputError: one can't follow another; the message names both, why, and what to do.
    """
    for i, after in enumerate(steps):
        for k, before in enumerate(steps[:i]):
            found = refusal(before, after)
            if found is not None:
                names = type(after).__name__, type(before).__name__
                raise InputError(
                    f"plan: step {i + 1}: {names[0]} can't follow {names[1]} (step {k + 1}): {found.why}", do=found.do
                )


def _concerned(found: Refusal, technique: Technique) -> bool:
    return found.only is None or found.only[1] in str(vars(technique).get(found.only[0]))


def _gives(found: Refusal, technique: Technique) -> bool:
    return found.given is None or bool(vars(technique).get(found.given))


def _excused(found: Refusal, technique: Technique) -> bool:
    if found.unless is None:
        return False
    name, value = found.unless
    settings = vars(technique)
    inner = [s[name] for s in settings.values() if isinstance(s, Mapping) and name in s]
    single = [s[name] for s in settings.get("layers", {}).values() if name in s]
    return value in [settings.get(name), *inner] and all(each == value for each in single)
