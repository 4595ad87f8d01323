"""The loop: equal to a plain one, resumable bit for bit, honest about what is wrong."""

import copy
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from trimtab.core.errors import DivergedError, InputError
from trimtab.core.store import Store
from trimtab.core.task import Arrays
from trimtab.graph.capture import capture
from trimtab.train import loop
from trimtab.train.data import stream
from trimtab.train.evaluate import evaluate, loss_of
from trimtab.train.loop import fit_network, steps_for
from trimtab.train.recipe import Distillation, Recipe, rate

from .small import Net, images, noisy, same, setting

PLAIN = Recipe(steps=12, lr=0.05, precision="fp32", channels_last=False)


def eager(net, context, recipe, soft=0.0, temperature=1.0):
    """The loop written plainly, in eager torch."""
    net, teacher = copy.deepcopy(net).train(), copy.deepcopy(net).eval()
    decayed = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = (
        torch.optim.SGD(groups, lr=1, momentum=0.9, nesterov=True)
        if recipe.optimiser == "sgd"
        else torch.optim.AdamW(groups, lr=1)
    )
    batches = stream(context.train, recipe.seed)
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(recipe, step)
        x, y = next(batches)[2]
        out = net(x)
        loss = functional.cross_entropy(out, y)
        if soft:
            with torch.no_grad():
                p = (teacher(x) / temperature).softmax(1)
            q = (out / temperature).log_softmax(1)
            kl = (p * (p.log() - q)).sum(1).mean()
            loss = (1 - soft) * loss + soft * temperature**2 * kl
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_equals_a_plain_eager_loop(optimiser, schedule):
    graph, context = setting()
    recipe = replace(PLAIN, optimiser=optimiser, schedule=schedule, lr=0.05 if optimiser == "sgd" else 0.005)
    trained = fit_network(graph, context, recipe)
    expected = eager(context.task.model, context, recipe).state_dict()
    for name, tensor in trained.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    assert not same(trained, graph)


def test_distils_as_hinton_et_al_do():
    graph, context = setting()
    recipe = replace(PLAIN, distil=Distillation(temperature=3.0, alpha=0.25))
    trained = fit_network(graph, context, recipe)
    expected = eager(context.task.model, context, recipe, soft=0.75, temperature=3.0).state_dict()
    for name, tensor in trained.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_learns_and_leaves_the_argument_as_it_was(precision, channels_last):
    graph, context = setting(dropout=0.1)
    before, module = graph.copy(), copy.deepcopy(context.task.model.state_dict())
    recipe = Recipe(steps=60, lr=0.1, precision=precision, channels_last=channels_last)
    trained = fit_network(graph, context, recipe)
    assert same(graph, before)
    assert graph.net.code == before.net.code
    assert all(torch.equal(v, context.task.model.state_dict()[k]) for k, v in module.items())
    assert not context.task.model.training
    assert trained.net.code == before.net.code  # evaluating
    assert evaluate(trained, context.task.validate, context.task.scored(), "validate").value > 0.8
    assert all(t.dtype != torch.bfloat16 and t.is_contiguous() for t in trained.tensors().values())


def test_no_steps_is_the_network_itself():
    graph, context = setting()
    assert same(fit_network(graph, context, Recipe(steps=0)), graph)


def test_the_seed_decides_the_result_and_the_callers_random_numbers_do_not():
    graph, context = setting(dropout=0.3)
    torch.manual_seed(1)
    first = fit_network(graph, context, PLAIN)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(2)
    assert same(first, fit_network(graph, context, PLAIN))
    assert not same(first, fit_network(graph, context, replace(PLAIN, seed=1)))


class KilledError(Exception):
    """Stands for a kill: nothing is saved on the way out."""


def killer(at, error=KilledError):
    def progress(what, done, total):
        if done == at:
            raise error

    return progress


@pytest.mark.parametrize(
    "recipe",
    [
        PLAIN,
        replace(PLAIN, optimiser="adamw", lr=0.01, clip=0.5, ema=0.9),
        replace(PLAIN, channels_last=True, precision="bf16", distil=Distillation(), ema=0.5),
    ],
    ids=["sgd", "adamw, clipped, averaged", "bf16, distilled"],
)
@pytest.mark.parametrize("at", [1, 5, 7, 11, 12])  # 5 batches are an epoch
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, monkeypatch, recipe, at):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    graph, context = setting(dropout=0.3)
    undisturbed = fit_network(graph, context, recipe)
    _, killed = setting(dropout=0.3, store=Store(tmp_path), progress=killer(at))
    with pytest.raises(KilledError):
        fit_network(graph, killed, recipe)
    seen = []
    _, again = setting(dropout=0.3, store=Store(tmp_path), progress=lambda what, done, total: seen.append(done))
    torch.manual_seed(99)
    assert same(fit_network(graph, again, recipe), undisturbed)
    assert seen == list(range(at + 1, 13))


def test_a_finished_training_is_not_done_again_and_its_checkpoint_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    graph, context = setting(store=Store(tmp_path))
    first = fit_network(graph, context, PLAIN)
    assert [p for p in tmp_path.iterdir() if "unfinished" in p.name] == []
    _, fails = setting(store=Store(tmp_path), progress=killer(1))
    assert same(fit_network(graph, fails, PLAIN), first)
    for other in (replace(PLAIN, seed=5), replace(PLAIN, steps=13), replace(PLAIN, lr=0.04)):
        with pytest.raises(KilledError):
            fit_network(graph, fails, other)


def test_other_weights_are_another_training(tmp_path):
    graph, context = setting(store=Store(tmp_path))
    first = fit_network(graph, context, PLAIN)
    assert not same(fit_network(first, context, PLAIN), first)


def ctrl_c():
    """Call the handler that the training put in place: a real signal would reach the test runner's workers too."""
    signal.getsignal(signal.SIGINT)(signal.SIGINT, sys._getframe())


@pytest.mark.parametrize("how", ["signal", "callback"])
def test_ctrl_c_saves_first(tmp_path, how):
    def interrupt(what, done, total):
        if done == 7:
            if how == "callback":
                raise KeyboardInterrupt
            ctrl_c()

    graph, context = setting(dropout=0.3)
    undisturbed = fit_network(graph, context, PLAIN)
    # A process started in the background ignores SIGINT, and a test runner may have a handler of its own.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit_network(graph, setting(dropout=0.3, store=Store(tmp_path), progress=interrupt)[1], PLAIN)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)
    seen = []
    again = setting(dropout=0.3, store=Store(tmp_path), progress=lambda what, done, total: seen.append(done))[1]
    assert same(fit_network(graph, again, PLAIN), undisturbed)
    assert seen[0] in (8, 9)


def test_a_handler_that_only_takes_note_is_called_and_training_ends_well():
    noted = []

    def interrupt(what, done, total):
        if done == 3:
            ctrl_c()

    graph, context = setting(progress=interrupt)
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        trained = fit_network(graph, context, PLAIN)
    finally:
        signal.signal(signal.SIGINT, before)
    assert noted == [signal.SIGINT]
    assert same(trained, fit_network(graph, setting()[1], PLAIN))


def test_the_moving_average_after_one_step():
    graph, context = setting()
    last = fit_network(graph, context, replace(PLAIN, steps=1))
    average = fit_network(graph, context, replace(PLAIN, steps=1, ema=0.99)).tensors()
    for name, before in graph.tensors().items():
        after = last.tensors()[name]
        expected = (2 / 11) * before + (9 / 11) * after if before.dtype.is_floating_point else after
        torch.testing.assert_close(average[name], expected)


def test_norms_and_biases_are_not_decayed():
    graph, context = setting(loss=lambda outputs, target: outputs.sum() * 0.0)
    trained = fit_network(graph, context, replace(PLAIN, steps=1, weight_decay=0.1, schedule="cosine")).tensors()
    for name, parameter in graph.net.named_parameters():
        factor = 1 - 0.05 * 0.1 * 1.9 if parameter.ndim > 1 else 1.0  # Nesterov's first step is (1 + momentum) g
        torch.testing.assert_close(trained[name], parameter.detach() * factor)


def test_without_labels_it_learns_from_the_teacher_alone():
    _, context = setting(loss=None, train=Arrays(images()[0], None, batch=8, shuffle=True))
    torch.manual_seed(7)
    student = capture(Net(), context.task.example)
    unlabelled = [(images(seed=3)[0],)]
    before = loss_of(student, unlabelled, context)
    assert loss_of(fit_network(student, context, replace(PLAIN, steps=60)), unlabelled, context) < 0.3 * before


def test_the_users_own_step_is_called_with_their_batch_and_names():
    names = []

    def step(network, batch):
        names.append(sorted(name for name, _ in network.named_parameters()))
        return functional.cross_entropy(network(image=batch["image"]), batch["label"])

    x, y = images()
    batches = [{"image": noisy(x[i : i + 8]), "label": y[i : i + 8]} for i in range(0, 40, 8)]
    graph, context = setting(loss=None, step=step, train=batches)
    plain = replace(context, task=replace(context.task, step=None, loss=functional.cross_entropy))
    for recipe in (PLAIN, replace(PLAIN, distil=Distillation())):
        assert same(fit_network(graph, context, recipe), fit_network(graph, plain, recipe))
    assert names[0] == sorted(name for name, _ in context.task.model.named_parameters())


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, left, right):
            total = self.a(left) + self.b(right)
            return {"sum": total, "half": total / 2}

    x, z = torch.randn(16, 3), torch.randn(16, 5)
    data = [{"right": z, "left": x, "y": x.sum(1)}]
    graph, context = setting(train=data, loss=lambda outputs, y: (outputs.sum.sum(1) - y).square().mean())
    graph = capture(Two(), {"left": x, "right": z})
    context = replace(context, teacher=graph)
    assert loss_of(fit_network(graph, context, replace(PLAIN, steps=80)), data, context, "train") < 0.05
    assert same(fit_network(graph, context, replace(PLAIN, distil=Distillation(alpha=0.0), weight_decay=0.0)), graph)


def test_a_loss_that_is_not_finite_names_step_and_rate():
    graph, context = setting(loss=lambda outputs, target: outputs.mean() * math.nan)
    with pytest.raises(DivergedError, match=r"step 1 of 12, lr 0.002: got nan. Lower lr below 0.05"):
        fit_network(graph, context, PLAIN)


X, Y = images()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": None}, r"the task has no training data"),
        ({"train": []}, r"data: train: got no batch"),
        ({"train": iter([(X, Y)])}, r"data: train: got no batch, expected batches in epoch 1. .* iterated again"),
        ({"train": [(X[:, :, :6], Y)]}, r"train: input image: got shape \[40, 3, 6, 8\], expected \[N, 3, 8, 8\]"),
        ({"train": [(X * math.nan, Y)]}, r"train: input image: got 7680 values NaN or infinite"),
        ({"train": [(X.double(), Y)]}, r"got torch.float64, expected torch.float32"),
        ({"train": [(X.byte(), Y)]}, r"got torch.uint8, expected torch.float32"),
        ({"train": [{"picture": X, "label": Y}]}, r"misses input 'image': got keys picture, label"),
        ({"train": [(X,)]}, r"data: train: a batch has no labels, and the task's loss needs them"),
        ({"train": [X]}, r"data: train: a batch has no labels"),
        ({"train": [("cat", Y)]}, r"got 1 of str, expected tensors for image"),
        ({"loss": lambda outputs, target: outputs.sum(1)}, r"the task's loss: got shape \[40\]"),
        ({"loss": lambda outputs, target: 0.5}, r"the task's loss: got float"),
    ],
)
def test_what_is_wrong_with_the_data_is_said_in_one_line(changes, message):
    graph, context = setting(**({"train": [(X, Y)]} | changes))
    with pytest.raises(InputError, match=message) as caught:
        fit_network(graph, context, PLAIN)
    assert "\n" not in str(caught.value)


def test_neither_loss_nor_teacher():
    graph, context = setting(loss=None)
    with pytest.raises(InputError, match="no loss and there is no teacher"):
        fit_network(graph, replace(context, teacher=None), PLAIN)
    graph, context = setting()
    with pytest.raises(InputError, match="no teacher to learn from"):
        fit_network(graph, replace(context, teacher=None), replace(PLAIN, distil=Distillation()))


def test_steps_for_grows_with_the_time_and_changes_nothing():
    graph, context = setting()
    before = graph.copy()
    few, many = (steps_for(seconds, graph, context, PLAIN) for seconds in (0.001, 100.0))
    assert 1 <= few < many
    assert same(graph, before)


@pytest.mark.slow
def test_kill_9_in_the_middle_then_the_same_command_goes_on(tmp_path):
    code = f"""
import os, pathlib, signal
from trimtab.core.store import Store
from trimtab.train import loop
from tests.train.small import setting
from tests.train.test_loop import PLAIN
loop.CHECKPOINT_SECONDS = 0.0
def kill(what, done, total):
    if done == 7: os.kill(os.getpid(), signal.SIGKILL)
graph, context = setting(dropout=0.3, store=Store(pathlib.Path({str(tmp_path)!r})), progress=kill)
loop.fit_network(graph, context, PLAIN)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    seen = []
    graph, context = setting(dropout=0.3, store=Store(tmp_path), progress=lambda what, done, total: seen.append(done))
    assert same(fit_network(graph, context, PLAIN), fit_network(graph, setting(dropout=0.3)[1], PLAIN))
    assert seen[0] == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_trains_to_about_the_same_weights():
    graph, context = setting(transform=None)
    expected = fit_network(graph, context, replace(PLAIN, distil=Distillation())).tensors()
    found = fit_network(graph, replace(context, device="cuda"), replace(PLAIN, distil=Distillation())).tensors()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)
