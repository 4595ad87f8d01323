"""Files of one network, ours and others': made, opened, scored on the same images and timed against each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.compress.plan import step_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.store import Store, digest
from trimtab.core.task import accuracy, unpack
from trimtab.hardware.machine import machine
from trimtab.pipeline.prepare import Prepared
from trimtab.run import runtime as runtime_of
from trimtab.run.export import export_onnx
from trimtab.run.integer import integer_report
from trimtab.run.measure import latency, measure, ratio
from trimtab.run.openvino import OvSession, compiled
from trimtab.run.runtime import Session, read_onnx
from trimtab.train.evaluate import paired_drop

ORIGINAL = ("original", "onnxruntime")
"""What all others are compared with."""
OURS = "trimtab"


@dataclass(frozen=True)
class Made:
    """One file.

    Args:
        name: of what made it.
        path: the file.
        runtimes: to run it in.
        seconds: that making it took, writing included.
        settings: as in a plan; empty for other tools.
        notes: what was left as it was, and why.
    """

    name: str
    path: Path
    runtimes: tuple[str, ...]
    seconds: float = 0.0
    settings: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def exported(
    prepared: Prepared, technique: Quantise | None, path: Path, runtimes: tuple[str, ...], name: str = OURS
) -> Made:
    """What trimtab makes of the network: calibrated, converted, and written with all checks; None: as it is."""
    settings = None if technique is None else step_of(technique)

    def make() -> tuple[str, ...]:
        graph = prepared.graph if technique is None else technique.apply(prepared.graph, prepared.context)
        export_onnx(graph, path)
        return graph.notes

    return made(prepared, name, path, runtimes, settings, make)


def made(
    prepared: Prepared,
    name: str,
    path: Path,
    runtimes: tuple[str, ...],
    settings: Mapping[str, Any] | None,
    make: Callable[[], Iterable[str]],
) -> Made:
    """A file, made unless it is there and was made with these settings."""
    store, key = store_of(prepared), digest("made", name, path.name, settings)
    found = store.get(key)
    if found is None or not path.exists():
        start = time.monotonic()
        notes = list(make())
        found = store.put(key, {"seconds": time.monotonic() - start, "notes": notes})
    return Made(name, path, runtimes, found["seconds"], settings, tuple(found["notes"]))


def store_of(prepared: Prepared) -> Store:
    """Where a row keeps what is finished."""
    assert prepared.context.store is not None
    return prepared.context.store


def calibration_images(prepared: Prepared) -> list[np.ndarray]:
    """The batches that trimtab calibrates on, for the other tools."""
    return [unpack(batch, names(prepared), "calibrate")[0][0].numpy() for batch in prepared.context.calibrate]


def names(prepared: Prepared) -> list[str]:
    """Of the network's inputs."""
    return [spec.name for spec in prepared.graph.inputs]


def opened(path: Path, runtime: str, batch: int | None = None) -> Session:
    """A session of an ONNX file, or of OpenVINO's own form."""
    if path.suffix == ".xml":
        return OvSession(compiled(path, batch, 1, "f32"))
    return runtime_of(runtime).load(path, batch, 1)


def facts_of(prepared: Prepared, files: Sequence[Made], seconds: float) -> dict[str, Any]:
    """Everything measured of the files of a row, the original first among them."""
    runs = {(each.name, runtime): each for each in files for runtime in each.runtimes}
    halves = {"proving": prepared.test, "choosing": prepared.context.validate}
    found = {key: {half: answers(prepared, each.path, key[1], data, half) for half, data in halves.items()}
             for key, each in runs.items()}  # fmt: skip
    for both in found.values():
        both["all"] = tuple(torch.cat(pair) for pair in zip(both["proving"], both["choosing"], strict=True))
    times = timed(prepared, runs, seconds)
    rows = []
    for key, each in runs.items():
        row = {"name": key[0], "runtime": key[1], "bytes": size(each.path), "weights": weight_bytes(each.path)}
        row |= {"seconds": each.seconds, "settings": each.settings, "notes": list(each.notes)}
        row |= {half: compared(found[ORIGINAL][half], found[key][half], half) for half in found[key]}
        rows.append(row | {"integer": integers(each.path, key[1])} | times[key])
    return {"machine": machine().json(), "runs": rows}


def answers(prepared: Prepared, path: Path, runtime: str, batches: Sequence[Any], half: str) -> tuple[Tensor, Tensor]:
    """Outputs [N, 10] and labels [N] of all images, kept for the same bytes."""
    store = store_of(prepared)
    beside = path.with_suffix(".bin")
    key = digest("answers", path.read_bytes(), beside.read_bytes() if beside.exists() else b"", runtime, half)
    if store.get(key) is None:
        outputs, labels = asked(opened(path, runtime), batches, names(prepared))
        store.put(key, {"runtime": runtime, "half": half}, {"outputs": outputs, "labels": labels})
    kept = store.tensors(key)
    return kept["outputs"], kept["labels"]


def asked(session: Session, batches: Sequence[Any], inputs: Sequence[str]) -> tuple[Tensor, Tensor]:
    """A session's outputs and the labels; it is closed then."""
    outputs, labels = [], []
    with closing(session):
        for batch in batches:
            values, target = unpack(batch, inputs, "test")
            outputs.append(torch.from_numpy(session.run([x.numpy() for x in values])[0]))
            labels.append(target)
    return torch.cat(outputs), torch.cat(labels)


def compared(original: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], split: str) -> dict[str, Any]:
    """Accuracy, the paired drop, and on how many images only one of the two is right."""
    (a, labels), (b, again) = original, other
    assert torch.equal(labels, again)
    right, still = a.argmax(1) == labels, b.argmax(1) == labels
    return {
        "accuracy": float(still.double().mean()),
        "drop": paired_drop(a, b, labels, accuracy, split).json(),
        "broken": int((right & ~still).sum()),
        "mended": int((~right & still).sum()),
        "agreement": float((a.argmax(1) == b.argmax(1)).double().mean()),
    }


def timed(prepared: Prepared, runs: Mapping[tuple[str, str], Made], seconds: float) -> dict[Any, dict[str, Any]]:
    """Latency of every file in every runtime, interleaved; its ratio to the original's, and of ours to each other's."""
    inputs = [x.numpy() for x in prepared.graph.example(batch=1, seed=1)]
    with ExitStack() as stack:
        sessions = {key: stack.enter_context(closing(opened(each.path, key[1], 1))) for key, each in runs.items()}
        clock = measure({" ".join(key): session for key, session in sessions.items()}, inputs, seconds)
    timings = {key: clock[" ".join(key)] for key in runs}
    found = {}
    for key, timing in timings.items():
        rivals = {k[0]: t for k, t in timings.items() if key[0] == OURS and k[1] == key[1]}
        lead = {name: ratio(t, timing).json() for name, t in rivals.items() if name not in (OURS, ORIGINAL[0])}
        whole = ratio(timings[ORIGINAL], timing).json()
        found[key] = {"latency": latency(timing).json(), "latency_ratio": whole, "lead": lead}
    return found


def size(path: Path) -> int:
    """Bytes of a file, with OpenVINO's weights beside it."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if path.suffix == ".xml" else 0)


def weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of each stored tensor of an ONNX file by its name; empty for another form."""
    if path.suffix != ".onnx":
        return {}
    return {tensor.name: len(tensor.raw_data) for tensor in read_onnx(path).graph.initializer}


def integers(path: Path, runtime: str) -> str:
    """How many of the layers with quantised weights multiply integers, as the runtime's optimised model says."""
    if path.suffix != ".onnx":
        return "-"
    layers = [layer for layer in integer_report(path, runtime) if layer.quantised]
    return f"{sum(layer.precision == 'int8' for layer in layers)} of {len(layers)}" if layers else "-"
