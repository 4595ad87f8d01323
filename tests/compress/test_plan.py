"""Plans and recipes: read, written, refused."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.compress import Distil, Prune, Quantise, Recalibrate, RemoveBlocks
from trimtab.compress.plan import recipe, step_of, technique_of
from trimtab.core.errors import InputError


def test_steps_as_the_design_writes_them() -> None:
    steps: list[dict[str, Any]] = [
        {"technique": "RemoveBlocks", "blocks": ["layer2.4"]},
        {"technique": "Prune", "keep": {"layer1.0.conv1.weight:0": [0, 2, 5]}},
        {"technique": "Distil", "steps": 1200, "seed": 0, "temperature": 4.0, "alpha": 0.7},
        {
            "technique": "Quantise",
            "weight": {"bits": 8, "per": "channel"},
            "activation": {"bits": 8},
            "skip": ["linear"],
        },
    ]
    made = [technique_of(step) for step in steps]
    assert made == [
        RemoveBlocks(blocks=("layer2.4",)),
        Prune(keep={"layer1.0.conv1.weight:0": (0, 2, 5)}),
        Distil(steps=1200, alpha=0.7),
        Quantise(skip=("linear",)),
    ]
    assert step_of(made[1]) == steps[1]
    assert step_of(made[3]) == {"technique": "Quantise", "skip": ["linear"]}


@pytest.mark.parametrize(
    ("text", "technique"),
    [
        ("prune(ratio=0.5)", Prune(ratio=0.5)),
        ("prune(0.5)", Prune(ratio=0.5)),
        (" Prune ( 0.5 , score = l1 ) ", Prune(ratio=0.5, score="l1")),
        ("prune(ratio=0.5, score='taylor', multiple=16)", Prune(ratio=0.5, score="taylor", multiple=16)),
        ("prune(keep={'a.weight:0': [0, 1]})", Prune(keep={"a.weight:0": (0, 1)})),
        ("quantise", Quantise()),
        ("quantise()", Quantise()),
        ("quantise(bits=8)", Quantise()),
        ("quantise(8)", Quantise()),
        ("quantise(int8)", Quantise()),
        ("quantize('int8', calibration=mse)", Quantise(calibration="mse")),
        ("quantise(weight={'bits': 8, 'per': 'tensor'})", Quantise(weight={"bits": 8, "per": "tensor"})),
        ("quantise(skip=['linear'])", Quantise(skip=("linear",))),
        ("removeblocks(count=2)", RemoveBlocks(count=2)),
        ("remove_blocks(['layer1.0'])", RemoveBlocks(blocks=("layer1.0",))),
        ("distil(100, temperature=2)", Distil(steps=100, temperature=2.0)),
        ("recalibrate(16)", Recalibrate(batches=16)),
    ],
)
def test_recipes(text: str, technique: object) -> None:
    assert recipe(text) == technique


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one call"),
        ("prune(", "expected one call"),
        ("a.prune(0.5)", "expected one call"),
        ("prune(0.5); import os", "expected one call"),
        ("prune(0.5) + 1", "expected one call"),
        ("shrink(0.5)", "'shrink' is no technique: expected one of distil, equalise, .*prune, quantise"),
        ("prune(ratio=__import__('os').getcwd())", "expected a literal"),
        ("prune(ratio=1 + 1)", "expected a literal"),
        ("prune(**{'ratio': 1})", "settings by name"),
        ("prune(rate=0.5)", "unknown setting 'rate'.*Did you mean ratio"),
        ("prune(0.5, ratio=0.5)", "ratio twice"),
        ("prune(ratio='half')", "Prune: ratio: got 'half', expected a number"),
        ("prune(ratio=True)", "expected a number"),
        ("prune(ratio=1e999)", "expected a number"),
        ("prune(0.5, score=l9)", "Prune: score: got 'l9', expected l1 or l2"),
        ("prune(multiple=8.5)", "expected a whole number"),
        ("distil()", "steps is missing"),
        ("quantise(" + ", ".join("1" * 99) + ")", "98 values"),
        ("quantise(int9)", "got 'int9', expected 2 to 8, int2"),
        ("quantise(bits=8, weight={'bits': 8})", "bits and weight"),
        ("quantise(skip=linear)", "expected a list of text"),
        ("prune(keep={1: [0]})", "expected an object"),
        ("prune(" + "(" * 5000 + ")" * 5000 + ")", "expected"),
        ("x" * 20_000, "characters"),
    ],
)
def test_wrong_recipes_are_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recipe(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"technique": "os.system"}, "got 'os.system', expected one of Distil, Equalise, .*Prune"),
        ({"technique": "step_of"}, "expected one of"),
        ({}, "got None"),
        (
            {"technique": "Quantise", "calibration": ["mse"]},
            "expected minmax or average or percentile or ",
        ),
        ({"technique": "Prune", "keep": [1]}, "expected an object of a list of a whole number by name"),
        ({"technique": "Prune", "keep": {"a": [True]}}, "Prune: keep: a: got True, expected a whole number"),
        ({"technique": "Distil", "steps": 10.5}, "expected a whole number"),
        ({"technique": "Distil", "steps": None}, "expected a whole number"),
        ({"technique": "Distil", "steps": 1, "lr": float("nan")}, "expected a number"),
    ],
)
def test_wrong_steps(step: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        technique_of(step)


def test_only_public_techniques_become_steps() -> None:
    with pytest.raises(InputError, match="not a public technique"):
        step_of(object())  # type: ignore[arg-type]
