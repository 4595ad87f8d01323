"""Recipes: the learning rate by hand, and settings out of range."""

import pytest

from trimtab.core.errors import InputError
from trimtab.train.recipe import Distillation, Recipe, rate


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("one_cycle", 0, 0.004), ("one_cycle", 1, 0.052), ("one_cycle", 2, 0.1), ("one_cycle", 6, 0.05),
        ("cosine", 0, 0.1), ("cosine", 5, 0.05), ("cosine", 10, 0.0),
    ],
)  # fmt: skip
def test_rate(schedule, step, expected):
    recipe = Recipe(steps=10, lr=0.1, schedule=schedule, warmup=0.2)
    assert rate(recipe, step) == pytest.approx(expected)


def test_rate_without_and_with_nothing_but_warmup():
    assert rate(Recipe(steps=10, lr=0.1, warmup=0.0), 0) == pytest.approx(0.1)
    assert rate(Recipe(steps=10, lr=0.1, warmup=1.0), 9) == pytest.approx(0.1 * (0.04 + 0.96 * 0.9))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1}, {"steps": 1.5}, {"steps": True}, {"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -1e-4},
        {"warmup": 1.5}, {"optimiser": "adam"}, {"schedule": "step"}, {"precision": "fp16"}, {"clip": 0.0},
        {"ema": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_out_of_range_is_named(wrong):
    with pytest.raises(InputError, match=rf"^recipe: {next(iter(wrong))}: got "):
        Recipe(**({"steps": 10} | wrong)).check()


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"alpha": 1.1}, {"match": "logits"}], ids=str)
def test_what_is_out_of_range_in_distillation_is_named(wrong):
    with pytest.raises(InputError, match=rf"^recipe: {next(iter(wrong))}: got "):
        Recipe(steps=10, distil=Distillation(**wrong)).check()
