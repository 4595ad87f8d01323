"""Score: what a file computes on whole data sets, and how far it agrees with another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.core.metric import Metric, metric
from trimtab.core.task import Batch, Score, unpack
from trimtab.graph.model import Outputs
from trimtab.run.runtime import Array, Session, read_onnx

NAMED = "named"
"""Value of the metadata entry `outputs` of a file whose network returns a container, not one bare tensor."""


def run_all(session: Session, batches: Iterable[Sequence[Array]], where: str) -> list[Array]:
    """The outputs over all batches, each output as one array; what has no batch dimension is taken once.

    Raises:
        InputError: there is no batch, or one does not fit.
    """
    found = [session.run(inputs) for inputs in batches]
    if not found:
        raise InputError(f"data: {where}", got="no batch", expected="at least one")
    return [np.concatenate(values) if values[0].ndim else values[0] for values in zip(*found, strict=True)]


def arrays_of(batches: Iterable[Batch], names: Sequence[str], where: str) -> Iterator[tuple[list[Array], Any]]:
    """Each batch as arrays in the order of `names`, with its target (None without labels)."""
    for batch in batches:
        inputs, target = unpack(batch, names, where)
        yield [t.detach().cpu().numpy() for t in inputs], target


def file_outputs(path: Path, runtime: str, batches: Iterable[Batch], where: str, threads: int = 1) -> tuple[Any, Any]:
    """Outputs and targets of all samples: a tensor, or `Outputs` where the network returns a container.

    Args:
        path: the ONNX file.
        runtime: `onnxruntime` or `openvino`.
        batches: of the task.
        where: the name of the data, for errors.
        threads: that the runtime may use.
    """
    from trimtab.run.overflow import faithful  # what the package's own runtimes import comes before it is whole

    session = faithful(path, runtime, None, threads)
    targets: list[Any] = []

    def inputs() -> Iterator[list[Array]]:
        for arrays, target in arrays_of(batches, [port.name for port in session.inputs], where):
            targets.append(target)
            yield arrays

    try:
        found = run_all(session, inputs(), where)
        names = session.outputs
    finally:
        session.close()
    return as_returned(path, dict(zip(names, found, strict=True))), _joined(targets)


def as_returned(path: Path, found: dict[str, Array]) -> Any:
    """Arrays by output name in the form that the network returns them: a bare tensor, or `Outputs`."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}
    facts = {entry.key: entry.value for entry in read_onnx(path).metadata_props}
    if len(tensors) == 1 and facts.get("outputs") != NAMED:
        return next(iter(tensors.values()))
    return Outputs(tensors)


def score_of(
    path: Path, runtime: str, batches: Iterable[Batch], score: Score, split: str, *, threads: int = 1
) -> Metric:
    """The score of a file over all samples, without an interval.

    Raises:
        InputError: there is no batch or no label, or the score is not a finite number.
    """
    found, targets = file_outputs(path, runtime, batches, split, threads)
    if targets is None:
        raise InputError(f"data: {split}: no labels to score against", do="Yield (inputs, target).")
    value = score.function(found, targets)
    if isinstance(value, Tensor) or not math.isfinite(float(value)):
        raise InputError(f"score {score.name}", got=value, expected="a finite plain number", do="Return float(...).")
    how = f"{score.name} of the file in {runtime}"
    return Metric(float(value), score.unit, "measured", score.direction, len(_first(found)), None, split, how)


def agreement(reference: Any, found: Any) -> Metric:
    """How far two sets of outputs of the same samples agree.

    For outputs [N, classes] the share of samples with the same largest class, with Wilson's 95 % interval; for
    others 1 - rms(found - reference) / rms(reference), at least 0. Of several outputs, the first one counts.

    Source of the interval: Wilson (1927).
    """
    a, b = _first(reference).detach(), _first(found).detach()
    if a.shape != b.shape:
        raise InputError("agreement: outputs", got=list(b.shape), expected=list(a.shape))
    if a.ndim == 2 and a.shape[1] > 1:
        same = float((a.argmax(1) == b.argmax(1)).double().mean())
        interval = wilson(same, len(a))
        how = "share of samples with the same largest output"
        return metric("agreement", same, "measured", n=len(a), interval=interval, how=how)
    size = float(a.double().square().mean().sqrt())
    gap = float((b.double() - a.double()).square().mean().sqrt())
    close = 1.0 if gap == 0.0 else max(0.0, 1.0 - gap / size) if size else 0.0
    n = len(a) if a.ndim else 1
    return metric("agreement", close, "measured", n=n, how="1 - relative root mean square difference of the outputs")


def max_difference(reference: Any, found: Any) -> float:
    """Largest absolute difference over all outputs."""
    pairs = zip(_all(reference), _all(found), strict=True)
    return max((float((b.double() - a.double()).abs().max()) for a, b in pairs if a.numel()), default=0.0)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    z = 1.959963984540054
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _joined(targets: list[Any]) -> Any:
    if any(target is None for target in targets):
        return None
    if all(isinstance(target, Tensor) for target in targets):
        return torch.cat(targets)
    if isinstance(targets[0], dict):
        return {key: _joined([target[key] for target in targets]) for key in targets[0]}
    return [item for target in targets for item in target]


def _all(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs.values())


def _first(outputs: Any) -> Tensor:
    return _all(outputs)[0]
