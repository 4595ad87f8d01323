"""Batches of every form, and what does not fit."""

from __future__ import annotations

import pytest
import torch

from trimtab.core.errors import InputError
from trimtab.core.task import Arrays, Score, Task, accuracy, mean_squared_error, perplexity, unpack

X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6)


def test_arrays_shuffle_by_the_global_generator() -> None:
    data = Arrays(X, Y, batch=4, shuffle=True)
    torch.manual_seed(1)
    first = [y.tolist() for _, y in data]
    torch.manual_seed(1)
    assert [y.tolist() for _, y in data] == first
    assert [len(y) for y in first] == [4]
    assert [len(y) for _, y in Arrays(X, Y, batch=4)] == [4, 2]


def test_arrays_keep_inputs_and_targets_together() -> None:
    for x, y in Arrays(X, Y, batch=2, shuffle=True, transform=lambda x: x + 1):
        assert torch.equal(x[:, 0], 2.0 * y + 1)
    assert [y.tolist() for _, y in Arrays(X, Y, batch=2).take([5, 0])] == [[5, 0]]
    assert [set(b) for (b,) in Arrays({"a": X, "b": X}, batch=6)] == [{"a", "b"}]


@pytest.mark.parametrize("batch", [X, (X,), [X], {"x": X}, ({"x": X},)])
def test_batches_without_a_target(batch: object) -> None:
    inputs, target = unpack(batch, ["x"], "train")
    assert torch.equal(inputs[0], X)
    assert target is None


def test_batches_with_targets() -> None:
    assert torch.equal(unpack((X, Y), ["x"], "train")[1], Y)
    assert torch.equal(unpack({"x": X, "labels": Y}, ["x"], "train")[1], Y)
    assert set(unpack({"x": X, "a": Y, "b": Y}, ["x"], "train")[1]) == {"a", "b"}
    inputs, target = unpack(((X, X + 1), Y), ["x", "z"], "train")
    assert torch.equal(inputs[1], X + 1)
    assert torch.equal(target, Y)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match=r"validate: a batch misses input 'x'.*keys y"):
        unpack({"y": X}, ["x"], "validate")
    with pytest.raises(InputError, match="does not fit"):
        unpack("text", ["x"], "train")
    with pytest.raises(InputError, match=r"got 1 of Tensor, expected tensors for x, z"):
        unpack((X, Y), ["x", "z"], "train")


def test_scores_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 9.0]])
    assert accuracy.function(logits, torch.tensor([0, 1, 1, 1])) == 0.75
    assert mean_squared_error.function(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])) == 2.0
    assert perplexity.function(torch.zeros(2, 3, 7), torch.zeros(2, 3, dtype=torch.long)) == pytest.approx(7.0)


def test_a_plain_function_is_a_score_of_its_name() -> None:
    def top(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return 1.0

    assert Task(torch.nn.Identity(), X, score=top).scored() == Score("top", top)
    assert Task(torch.nn.Identity(), X).scored() is None
