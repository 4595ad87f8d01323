"""Training on features and relations: what is learnt, what is kept in checkpoints, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from trimtab.compress.recover import Distil
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.store import Store
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.modes import set_mode
from trimtab.train import loop
from trimtab.train.checkpoint import identity
from trimtab.train.compared import choose, compare, compared_loss, foldable
from trimtab.train.loop import fit_network
from trimtab.train.recipe import Distillation, Features, Recipe, Relations

from .small import images, noisy, same
from .stages import Residual
from .test_loop import KilledError, killer

PLAIN = Recipe(steps=7, lr=0.02, precision="fp32", channels_last=False)
METHODS = {
    "fitnets": Distillation(features=Features("fitnets", 3.0)),
    "attention": Distillation(features=Features("attention", 3.0)),
    "rkd": Distillation(relations=Relations("rkd", 3.0)),
    "similarity": Distillation(relations=Relations("similarity", 30.0)),
    "contrastive": Distillation(relations=Relations("contrastive", 1.0)),
    "both, named": Distillation(
        features=Features("fitnets", 3.0, {"layer2": "layer2.1"}),
        relations=Relations("distance", 1.0, {"layer3": "layer3"}),
    ),
}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    x, _ = images()
    student, teacher = Residual(1, 4).eval(), Residual(2, 6).eval()
    return student, capture(student, x[:2]), set_mode(capture(teacher, x[:2]), False)


def context_of(networks, **changes):
    student, _, teacher = networks
    x, y = images()
    task = Task(
        student, x[:2], train=Arrays(x, y, batch=8, shuffle=True, transform=noisy), loss=functional.cross_entropy
    )
    return Context(task, teacher=teacher, **changes)


def distance(distil, student, teacher):
    """What is compared, of evaluating networks on images that were not trained on; maps as they begin."""
    own, theirs = set_mode(student.copy(), False), teacher.copy()
    found = compare(own, theirs, choose(own, teacher, distil), distil, 0)
    x = images(seed=5)[0]
    with torch.no_grad():
        own(x)
        theirs(x)
        return float(compared_loss(found, distil))


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("fitnets", "contrastive", "both, named")])
def test_what_is_compared_comes_nearer(networks, name):
    _, student, teacher = networks
    distil = replace(METHODS[name], alpha=1.0)
    recipe = replace(PLAIN, steps=30, weight_decay=0.0)
    taught = fit_network(student, context_of(networks), replace(recipe, distil=distil))
    alone = fit_network(student, context_of(networks), replace(recipe, distil=Distillation(alpha=1.0)))
    assert distance(distil, taught, teacher) < 0.9 * distance(distil, alone, teacher)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_killed_training_goes_on_bit_for_bit_with_its_learned_maps(networks, tmp_path, monkeypatch, name, optimiser):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    recipe = replace(PLAIN, optimiser=optimiser, distil=METHODS[name], ema=0.9)
    _, student, _ = networks
    undisturbed = fit_network(student, context_of(networks), recipe)
    with pytest.raises(KilledError):
        fit_network(student, context_of(networks, store=Store(tmp_path), progress=killer(4)), recipe)
    kept = next(p.stem for p in tmp_path.glob("train-*-unfinished.json"))
    maps = [k for k in Store(tmp_path).tensors(kept) if k.startswith("net/map/")]
    assert len(maps) == {"fitnets": 6, "contrastive": 4, "both, named": 2}.get(name, 0)
    found = fit_network(student, context_of(networks, store=Store(tmp_path)), recipe)
    assert same(found, undisturbed)
    assert not any("map/" in k for k in found.tensors())


def test_maps_have_the_shapes_of_both_sides_and_are_trained(networks):
    _, student, teacher = networks
    distil = Distillation(alpha=1.0, features=Features("fitnets", 1.0))
    own = student.copy()
    found = compare(own, teacher.copy(), choose(own, teacher, distil), distil, 0)
    assert {k: tuple(v.shape) for k, v in found.maps.items()} == {
        f"features.{i}.{part}": shape
        for i, width in enumerate((4, 8, 16))
        for part, shape in (("weight", (width * 3 // 2, width)), ("bias", (width * 3 // 2,)))
    }
    training = loop.begin(student, context_of(networks), replace(PLAIN, distil=distil))
    before = {k: v.detach().clone() for k, v in training.compared.maps.items()}
    loop.advance(
        training, next(iter(context_of(networks).train)), context_of(networks).task, replace(PLAIN, distil=distil)
    )
    assert all(not torch.equal(before[k], v) for k, v in training.compared.maps.items() if k.endswith("weight"))


def test_equal_widths_are_compared_as_they_are_unless_asked(networks):
    teacher = networks[2]
    for project, count in (("differing", 0), ("always", 12)):
        distil = Distillation(features=Features("fitnets", project=project))
        own = teacher.copy()
        assert len(compare(own, teacher.copy(), choose(own, teacher, distil), distil, 0).maps) == count


def test_the_loss_on_top_is_weight_times_what_is_compared(networks):
    student, teacher = networks[1:]
    one = Distillation(features=Features("attention", 1.0), relations=Relations("rkd", 1.0))
    weighted = Distillation(features=Features("attention", 2.0), relations=Relations("rkd", 5.0))
    apart = [Distillation(features=one.features), Distillation(relations=one.relations)]
    parts = [distance(each, student, teacher) for each in apart]
    assert distance(one, student, teacher) == pytest.approx(sum(parts))
    assert distance(weighted, student, teacher) == pytest.approx(2 * parts[0] + 5 * parts[1])
    unsaid = distance(Distillation(relations=Relations("rkd")), student, teacher)
    assert unsaid == pytest.approx(25 * parts[1])
    kinds = [distance(Distillation(relations=Relations(k, 1.0)), student, teacher) for k in ("distance", "angle")]
    assert parts[1] == pytest.approx(kinds[0] + 2 * kinds[1])


def test_a_teacher_is_folded_only_where_nothing_before_a_norm_is_compared(networks):
    from trimtab.graph.fuse import fold_batch_norm

    _, student, teacher = networks
    folded = fold_batch_norm(teacher)
    plain = choose(student, teacher, Distillation(features=Features("attention")))
    assert foldable(plain, folded)
    conv = next(n.name for n in teacher.nodes(torch.ops.aten.conv2d.default))
    own = next(n.name for n in student.nodes(torch.ops.aten.conv2d.default))
    inside = choose(student, teacher, Distillation(features=Features("attention", places={own: conv})))
    assert not foldable(inside, folded)


def test_several_teachers_are_asked_and_kept_apart(networks, tmp_path):
    student = networks[1]
    torch.manual_seed(3)
    other = set_mode(capture(Residual(1, 5).eval(), images()[0][:2]), False)
    recipe = replace(PLAIN, distil=Distillation(weights=(1.0, 2.0)))
    context = context_of(networks, teachers=(other,))
    first = fit_network(student, context, recipe)
    assert same(first, fit_network(student, replace(context, store=Store(tmp_path)), recipe))
    assert len({p.name.split("-")[1] for p in tmp_path.glob("answers-*.json")}) == 2
    assert not same(first, fit_network(student, context, replace(recipe, distil=Distillation(weights=(1.0, 0.0)))))
    alone = fit_network(student, context_of(networks), replace(PLAIN, distil=Distillation()))
    assert same(alone, fit_network(student, context, replace(PLAIN, distil=Distillation(weights=(1.0, 0.0)))))


def test_a_plan_names_its_teachers(networks):
    _, student, teacher = networks
    settings = {"steps": 1, "precision": "fp32", "channels_last": False}
    Distil(**settings, teachers=(identity(teacher),)).apply(student, context_of(networks))
    with pytest.raises(InputError, match="Distil: other teachers than it was planned with"):
        Distil(**settings, teachers=("0123456789abcdef",)).apply(student, context_of(networks))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"features": {"method": "fitnet"}}, "Features: method: got 'fitnet', expected fitnets or attention"),
        ({"features": {"weight": 2}}, "Features: method is missing"),
        ({"features": {"method": "attention", "weights": 1.0}}, "unknown setting 'weights'.*Did you mean weight"),
        ({"features": {"method": "fitnets", "weight": -1}}, "features: weight: got -1"),
        ({"relations": {"method": "rkd", "temperature": 0}}, "relations: temperature: got 0"),
        ({"relations": {"method": "kin"}}, "Relations: method: got 'kin'"),
        ({"mean": "logits"}, "mean: got 'logits'"),
        ({"weights": (0.0, 0.0)}, r"weights: got \[0.0, 0.0\], expected one above 0"),
    ],
)
def test_wrong_settings(settings, told):
    with pytest.raises(InputError, match=told):
        Distil(10, **settings).recipe()


def test_attention_needs_a_map(networks):
    _, student, teacher = networks
    distil = Distillation(features=Features("attention", places={"linear": "linear"}))
    with pytest.raises(InputError, match=r"attention cannot compare .* \[N, 4\] and the teacher's .* three at least"):
        choose(student, teacher, distil)
