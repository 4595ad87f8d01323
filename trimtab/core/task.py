"""Task: what the user brings. A model, an example input, data, a loss and a score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.metric import Direction

Batch = Any
"""`(inputs, target)`, `(inputs,)`, a tensor, or a dict of named tensors."""


@dataclass(frozen=True)
class Score:
    """How good outputs are, over a whole data set.

    Args:
        name: `accuracy`, `spearman`, `perplexity`, ...
        function: `(outputs, targets) -> float`, both of all samples, in order; a plain number.
        unit: `fraction` (0 to 1) or the score's own.
        direction: `up` if more is better.
    """

    name: str
    function: Callable[[Any, Any], float]
    unit: str = "fraction"
    direction: Direction = "up"


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).double().mean())


def _mean_squared_error(outputs: Tensor, targets: Tensor) -> float:
    return float(nn.functional.mse_loss(outputs.double().reshape(targets.shape), targets.double()))


def _perplexity(outputs: Tensor, targets: Tensor) -> float:
    return float(nn.functional.cross_entropy(outputs.flatten(0, -2).double(), targets.flatten()).exp())


accuracy = Score("accuracy", _accuracy)
"""Share of samples whose largest output [N, classes] is the target [N]."""
mean_squared_error = Score("mean squared error", _mean_squared_error, unit="1", direction="down")
perplexity = Score("perplexity", _perplexity, unit="1", direction="down")
"""exp of the mean cross entropy of outputs [N, length, vocabulary] against targets [N, length]."""


@dataclass(frozen=True)
class Arrays:
    """Samples in memory, as batches. Iterating it again reshuffles from torch's global generator.

    Args:
        inputs: one tensor [N, ...], or a dict of them by input name.
        targets: tensor [N, ...], or None for data without labels.
        batch: samples in a batch; the last one is smaller, or left out if `shuffle`.
        shuffle: new order at each iteration, for training.
        transform: applied to each batch of inputs (augmentation, normalisation).
    """

    inputs: Tensor | Mapping[str, Tensor]
    targets: Tensor | None = None
    batch: int = 128
    shuffle: bool = False
    transform: Callable[[Any], Any] | None = None

    @property
    def samples(self) -> int:
        """N."""
        first = self.inputs if isinstance(self.inputs, Tensor) else next(iter(self.inputs.values()))
        return int(first.shape[0])

    def take(self, index: Sequence[int] | Tensor) -> Arrays:
        """The same with only these samples, in this order."""
        i = torch.as_tensor(index)
        inputs = self.inputs[i] if isinstance(self.inputs, Tensor) else {k: v[i] for k, v in self.inputs.items()}
        targets = None if self.targets is None else self.targets[i]
        return Arrays(inputs, targets, self.batch, self.shuffle, self.transform)

    def __len__(self) -> int:
        n = self.samples
        return max(n // self.batch, 1) if self.shuffle else -(-n // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        n = self.samples
        order = torch.randperm(n) if self.shuffle else torch.arange(n)
        for k in range(len(self)):
            i = order[k * self.batch : (k + 1) * self.batch]
            inputs = self.inputs[i] if isinstance(self.inputs, Tensor) else {k: v[i] for k, v in self.inputs.items()}
            inputs = self.transform(inputs) if self.transform else inputs
            yield (inputs,) if self.targets is None else (inputs, self.targets[i])


@dataclass(frozen=True)
class Task:
    """What the user brings. Everything but the model and the example is optional.

    Args:
        model: the trained network; never changed.
        example: one example input, a batch of at least two: a tensor, a tuple of positional
            arguments, or a dict of keyword arguments.
        train: batches to train on; without it techniques stay post-training.
        calibrate: batches (labels not needed) for ranges and statistics; by default the first
            of `train`.
        validate: batches to choose on.
        test: batches to prove on; nothing chooses on them. With only one of `validate` and
            `test`, it is split into a choosing and a proving half.
        loss: `(outputs, target) -> tensor`, mean over the batch.
        score: how good outputs are; a Score, or a plain function of (outputs, targets), up and
            in [0, 1].
        step: the user's own training step, `(network, batch) -> loss`, in place of `loss`.
        keep: names (glob patterns) of layers that must stay whole.
        name: for people.
        fingerprint: declares the data; change it when the data changes.
    """

    model: nn.Module
    example: Any
    train: Iterable[Batch] | None = None
    calibrate: Iterable[Batch] | None = None
    validate: Iterable[Batch] | None = None
    test: Iterable[Batch] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    score: Score | Callable[[Any, Any], float] | None = None
    step: Callable[[nn.Module, Batch], Tensor] | None = None
    keep: tuple[str, ...] = ()
    name: str = "task"
    fingerprint: str = ""

    def scored(self) -> Score | None:
        """The score as a Score."""
        if self.score is None or isinstance(self.score, Score):
            return self.score
        return Score(getattr(self.score, "__name__", "score"), self.score)


def unpack(batch: Batch, names: Sequence[str], where: str) -> tuple[tuple[Tensor, ...], Any]:
    """Split a batch into the network's inputs, in the order of `names`, and the target (or None).

    A batch is a tensor, `(inputs,)`, `(inputs, target)` with inputs a tensor, tuple or dict, or
    one dict that holds the inputs by name; the rest of that dict is then the target (a lone
    entry as itself, several as a dict).

    Raises:
        InputError: names `where` (which data it is), and what is missing or not finite.
    """
    target: Any = None
    inputs: Any = batch
    if (
        isinstance(batch, (tuple, list))
        and len(batch) in (1, 2)
        and not (len(batch) == 2 == len(names) and where == "example")
    ):
        inputs, target = (batch[0], batch[1]) if len(batch) == 2 else (batch[0], None)
    elif isinstance(batch, Mapping):
        rest = {k: v for k, v in batch.items() if k not in names}
        target = None if not rest else next(iter(rest.values())) if len(rest) == 1 else rest
    if isinstance(inputs, Mapping):
        missing = [n for n in names if n not in inputs]
        if missing:
            raise InputError(
                f"data: {where}: a batch misses input {missing[0]!r}",
                got=f"keys {', '.join(map(str, inputs))}",
                expected=f"the model's inputs {', '.join(names)}",
            )
        flat = tuple(inputs[n] for n in names)
    else:
        flat = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if len(flat) != len(names) or not all(isinstance(t, Tensor) for t in flat):
        raise InputError(
            f"data: {where}: a batch does not fit the model's inputs",
            got=f"{len(flat)} of {', '.join(type(t).__name__ for t in flat)}",
            expected=f"tensors for {', '.join(names)}",
            do="Yield (inputs, target), or a dict with the inputs by name.",
        )
    return flat, target
