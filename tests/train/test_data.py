"""Data: order, splits and slices of batches."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from trimtab.core.errors import InputError
from trimtab.core.task import Arrays
from trimtab.graph.model import Outputs
from trimtab.train.data import fingerprint, in_memory, join, pick, size, split, stream, take

from .small import noisy, setting, task

X, Y = torch.arange(20.0).reshape(20, 1), torch.arange(20) % 4


def rows(batches):
    return [batch[0].flatten().tolist() for batch in batches]


@pytest.mark.parametrize(
    "data",
    [Arrays(X, Y, batch=5, shuffle=True, transform=noisy), DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)],
    ids=["Arrays", "DataLoader"],
)
def test_a_stream_goes_on_from_anywhere_as_if_it_had_not_stopped(data):
    whole = list(islice(stream(data, seed=3), 12))
    assert [(epoch, index) for epoch, index, _ in whole] == [(e, i) for e in range(3) for i in range(4)]
    for start in (1, 4, 6, 11):
        torch.manual_seed(start)
        rest = islice(stream(data, 3, whole[start][:2]), 12 - start)
        assert rows(b for *_, b in rest) == rows(b for *_, b in whole[start:])
    assert rows(b for *_, b in whole[:4]) != rows(b for *_, b in whole[4:8])
    assert rows(b for *_, b in islice(stream(data, 4), 4)) != rows(b for *_, b in whole[:4])


def test_a_stream_leaves_every_global_generator_as_it_was():
    def drawing(x):
        return x + torch.rand(1) + np.random.rand() + random.random()

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    first = rows(b for *_, b in islice(stream(Arrays(X, Y, 5, True, drawing), 0), 6))
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert rows(b for *_, b in islice(stream(Arrays(X, Y, 5, True, drawing), 0), 6)) == first


def test_a_last_batch_of_one_is_left_out_but_not_where_all_are_of_one():
    assert [i for _, i, _ in islice(stream([X[:4], X[4:5]], 0), 3)] == [0, 0, 0]
    assert [i for _, i, _ in islice(stream([X[:1], X[1:2]], 0), 3)] == [0, 1, 0]


def test_halves_hold_each_label_equally_and_everything_once():
    batches = [(X[i : i + 6], Y[i : i + 6]) for i in range(0, 20, 6)]
    choosing, proving = split(batches, seed=0)
    found = torch.cat([b[0] for half in (choosing, proving) for b in half]).flatten()
    assert sorted(found.tolist()) == X.flatten().tolist()
    for half in (choosing, proving):
        labels = torch.cat([b[1] for b in half])
        assert labels.bincount().tolist() in ([3, 2, 3, 2], [2, 3, 2, 3])
        assert [size(b) for b in half] == [6, 4]
    assert rows(split(batches, 0)[0]) == rows(choosing)
    assert rows(split(batches, 1)[0]) != rows(choosing)


@pytest.mark.parametrize(
    "batches", [[X], [(X,)], [{"x": X, "y": Y}], [(X, X * 2)]], ids=["x", "(x,)", "dict", "floats"]
)
def test_batches_of_any_form_are_halved(batches):
    choosing, proving = split(batches, seed=0)
    assert size(choosing[0]) == size(proving[0]) == 10
    assert type(choosing[0]) is type(batches[0])


def test_too_little_to_halve():
    with pytest.raises(InputError, match="got 1 samples, expected at least 2"):
        split([X[:1]], 0)
    with pytest.raises(InputError, match="got 0 samples"):
        split([], 0)


def test_take_and_in_memory_stop_at_the_samples_asked_for():
    graph, context = setting(train=Arrays(torch.randn(20, 3, 8, 8), Y, batch=8))
    assert [size(b) for b in in_memory(context.train, graph, "train")] == [8, 8, 4]
    assert [size(b) for b in in_memory(context.train, graph, "train", samples=10)] == [8, 2]
    assert [size(b) for b in take(in_memory(context.train, graph, "train"), 16)] == [8, 8]
    assert take([X], 0) == ()


def test_in_memory_names_the_data():
    graph, _ = setting()
    with pytest.raises(InputError, match="data: calibrate: got no batch"):
        in_memory([], graph, "calibrate")
    with pytest.raises(InputError, match=r"data: test: input image: got shape \[2, 3, 9, 9\]"):
        in_memory([torch.zeros(2, 3, 9, 9)], graph, "test")


def test_join_undoes_pick():
    value = {"a": X, "b": (Y, ["s"] * 20)}
    parts = [pick(value, range(7)), pick(value, range(7, 20))]
    whole = join(parts)
    assert torch.equal(whole["a"], X)
    assert torch.equal(whole["b"][0], Y)
    assert whole["b"][1] == ["s"] * 20
    assert isinstance(join([Outputs(a=X)]), Outputs)
    assert isinstance(pick(Outputs(a=X), [0]), Outputs)


def test_a_batch_without_a_tensor():
    with pytest.raises(InputError, match="holds no tensor"):
        size(["a"])


def test_a_fingerprint_changes_with_what_training_sees():
    made = task()
    seen = {
        fingerprint(made),
        fingerprint(task(train=Arrays(*[t.flip(0) for t in (made.train.inputs, made.train.targets)], 8, True, noisy))),
        fingerprint(task(transform=None)),
        fingerprint(task(fingerprint="2")),
        fingerprint(task(loss=lambda outputs, target: outputs.sum())),
    }
    assert len(seen) == 5
    assert fingerprint(task()) == fingerprint(made)
