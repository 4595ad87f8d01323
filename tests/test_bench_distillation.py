"""The bench of distillation: its paired intervals, its weights, and the page it makes of what is there."""

import pytest

from bench.distillation import CHOOSING, METHODS, choices, settings, spread, table
from trimtab.compress.recover import Distil
from trimtab.core.store import write_json


def put(runs, named, seed, proving, steps=100):
    facts = {"named": named, "seed": seed, "steps": steps, "seconds": 60.0, "machine": {"processor": "a chip"}}
    file = runs / f"{steps}-seed{seed}-{named.replace(':', '-')}.json"
    write_json(file, {**facts, "choosing": 0.5, "proving": proving})


def test_the_interval_is_students_by_hand():
    # mean 2, standard deviation 1, three seeds: 4.303 / sqrt 3 = 2.484
    assert spread([1.0, 2.0, 3.0]) == "-0.48 to +4.48"
    assert spread([1.0]) == "one seed"


@pytest.mark.parametrize("named", [*METHODS, "fitnets:3", "rkd:0.5"])
def test_every_method_is_a_training(named):
    recipe = Distil(1, **settings(named)).recipe()
    weight = named.partition(":")[2]
    inner = (recipe.distil.features, recipe.distil.relations)
    assert not weight or any(getattr(each, "scale", None) == float(weight) for each in inner)
    assert recipe.distil.asks == (named != "alone")


def test_the_page_has_paired_differences_for_each_step_count(tmp_path):
    for seed, (answers, taught) in enumerate([(0.60, 0.61), (0.62, 0.64), (0.61, 0.64)]):
        put(tmp_path, "answers", seed, answers)
        put(tmp_path, "rkd", seed, taught)
    put(tmp_path, "rkd:5", CHOOSING, 0.9)
    put(tmp_path, "answers", 0, 0.7, steps=200)
    page = table(tmp_path)
    assert "63.00 % | 61.00 to 64.00 | +2.00 | -0.48 to +4.48 | 3 | 60 |" in page
    assert "| answers | Hinton et al. 2015 | 61.00 % | 60.00 to 62.00 |  |  | 3 | 60 |" in page
    assert page.index("200 steps of 128 images, a chip") < page.index("100 steps of 128 images")
    assert "| 100 | rkd:5 | 50.00 % | 60 |" in choices(tmp_path)
    assert "90.00" not in page
