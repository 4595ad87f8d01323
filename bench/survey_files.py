"""How a row of bench/survey_table.py is made and measured: its file, its score, its size and its time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import compression_networks as networks
from bench.survey_peers import PEERS
from bench.survey_rows import MINUTES, Part, Row
from trimtab.compress.order import check_order
from trimtab.compress.plan import recipe, resolved, step_of, technique_of, techniques
from trimtab.compress.quantise.technique import Quantise
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.compress.technique import Technique
from trimtab.core.context import Progress
from trimtab.core.goal import Goal
from trimtab.core.store import Store, digest
from trimtab.core.target import Target
from trimtab.core.task import Batch
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.hardware.machine import machine
from trimtab.pipeline.prepare import Prepared, prepare
from trimtab.run.export import export_onnx
from trimtab.run.score import file_outputs
from trimtab.run.trim_file import write_trim
from trimtab.run.turns import depends_on_input
from trimtab.train.data import join, pick, size, take, tensors
from trimtab.train.evaluate import paired_drop
from trimtab.train.loop import steps_for

TARGET = Target(runtime="onnxruntime")
MODEL = "model.onnx"
PLAIN = ("Distil", "Quantise", "Share", "Sparsify", "Tie")
"""What trains the network itself, by `Distil`; others train parts beside it, and their pace is their own."""
TURNS = 256
"""Inputs that take turns where a network does less for some than for others."""


class Missing(Exception):
    """A technique that is not public here."""


def prepared_of(row: Row, runs: Path, progress: Progress) -> Prepared:
    """The row's network with its data; a student is prepared as the network that the original teaches."""
    store = Store(runs / row.name / "store")
    task = networks.trained(row.network, networks.RUNS, progress)
    whole = prepare(task, TARGET, Goal(max_drop=None), 0, store, progress)
    if row.student is None:
        return whole
    task = row.student()
    student = set_mode(capture(task.model, task.example), False)
    return replace(whole, graph=student)


def make(row: Row, prepared: Prepared, folder: Path, minutes: float) -> dict[str, Any]:
    """The row's file, and how it was made.

    Raises:
        Missing: a technique is not public.
    """
    store = prepared.context.store
    assert store is not None
    chain = [_technique(part.text.replace("STEPS", "1")) for part in row.parts]
    check_order(chain)
    start, steps = time.monotonic(), list[Mapping[str, Any]]()
    graph: Graph | None = prepared.graph
    if row.peer is not None:
        graph = PEERS[row.peer](prepared, folder / MODEL)
    for i, part in enumerate(row.parts):
        assert graph is not None
        graph, done = _part(i, part, graph, prepared, 60 * minutes * MINUTES[row.network])
        steps += done
    if graph is not None:
        export_onnx(graph, folder / MODEL)
    seconds = store.once("seconds", lambda: time.monotonic() - start)
    notes = list(graph.notes) if graph is not None else []
    return {"plan": [dict(step) for step in steps], "notes": notes, "seconds": seconds}


def _part(
    i: int, part: Part, graph: Graph, prepared: Prepared, seconds: float
) -> tuple[Graph, list[Mapping[str, Any]]]:
    """A part done to a network, and the steps of a plan that it came to."""
    context, text = prepared.context, part.text
    assert context.store is not None
    if "STEPS" in text:
        steps = context.store.once(f"steps-{i}", lambda: _steps(text, part.share * seconds, graph, prepared))
        text = text.replace("STEPS", str(steps))
    technique = _technique(text)
    done = context.store.once(f"settled-{i}", lambda: [step_of(t) for t in resolved(technique, graph, context)])
    for step in done:
        graph = technique_of(step).apply(graph, context)
    return graph, done


def _steps(text: str, seconds: float, graph: Graph, prepared: Prepared) -> int:
    """How many steps of a recipe's training fit into a time, on the network as it trains."""
    technique: Any = _technique(text.replace("STEPS", "1"))
    if type(technique).__name__ not in PLAIN:
        return max(int(seconds / _pace(text, graph, prepared)), 1)
    training = technique if isinstance(technique, Distil) else made(Distil, dict(technique.train))
    if type(technique).__name__ in ("Quantise", "Share"):  # few levels are trained in full precision
        training = replace(training, precision="fp32")
    if isinstance(technique, Quantise):
        graph = technique.prepare(graph, prepared.context)
    return steps_for(seconds, graph, prepared.context, training.recipe())


def _pace(text: str, graph: Graph, prepared: Prepared) -> float:
    """Seconds of a step of a technique that trains more than the network: 12 steps of it less 4."""
    context, taken = replace(prepared.context, store=None), []
    for steps in (4, 12):
        start = time.monotonic()
        _technique(text.replace("STEPS", str(steps))).apply(graph, context)
        taken.append(time.monotonic() - start)
    return max((taken[1] - taken[0]) / 8, 1e-4)


def _technique(text: str) -> Technique:
    name = text.partition("(")[0].replace("_", "").strip().lower()
    if name not in {each.lower() for each in techniques()}:
        raise Missing(name)
    return recipe(text)


def measure(prepared: Prepared, original: Path, file: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Bytes, time and score of a file, against the original's.

    Args:
        original: the original's file.
        file: the row's.
        folder: where its coded form and its answers go.
        seconds: to time for.
    """
    inputs = [x.numpy() for x in prepared.graph.example(batch=1, seed=1)]
    turns = [[x.numpy() for x in tensors(batch[0])] for batch in _singles(prepared.test, TURNS)]
    clock = prepared.device.clock(original, {file.stem: file}, TARGET, inputs, seconds, turns=turns)[file.stem]
    coded = write_trim(file, folder / "model.trim")
    answers(prepared, file, folder)
    return {
        "machine": machine().json(),
        "bytes": file.stat().st_size,
        "coded": coded.stat().st_size,
        **{name: clock.metrics[name].json() for name in ("latency", "latency_ratio")},
        "depends_on_input": depends_on_input(file),
    }


def answers(prepared: Prepared, file: Path, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Outputs and labels of all choosing and proving data, kept for the same file.

    A network whose work depends on its input is asked one input at a time, as it is timed.
    """
    store, found = Store(folder / "answers"), {}
    for half, batches in (("choosing", prepared.context.validate), ("proving", prepared.test)):
        key = digest("answers", file.read_bytes(), half)
        if store.get(key) is None:
            asked = _singles(batches) if depends_on_input(file) else batches
            outputs, labels = file_outputs(file, "onnxruntime", asked, half)
            store.put(key, {"half": half}, {"outputs": outputs, "labels": labels})
        kept = store.tensors(key)
        found[half] = (kept["outputs"], kept["labels"])
    return found


def compared(
    prepared: Prepared, originals: Sequence[tuple[Path, Path]], file: Path, folder: Path
) -> dict[str, dict[str, Any]]:
    """The score of a file on both halves, and its drop against the better of the originals there, paired.

    Args:
        originals: file and folder of the original and, where there is one, of its control.
    """
    score = prepared.context.score
    assert score is not None
    mine, found = answers(prepared, file, folder), {}
    known = [answers(prepared, *each) for each in originals]
    for half, (outputs, labels) in mine.items():
        best = max(known, key=lambda each: score.function(*each[half]))[half][0]
        drop = paired_drop(best, outputs, labels, score, half)
        right, still = best.argmax(1) == labels, outputs.argmax(1) == labels
        broken, mended = int((right & ~still).sum()), int((~right & still).sum())
        found[half] = {
            "score": score.function(outputs, labels),
            "drop": drop.json(),
            "broken": broken,
            "mended": mended,
            "n": len(labels),
        }
    return found


def _singles(batches: Sequence[Batch], most: int | None = None) -> list[Batch]:
    """Batches of one sample, spread evenly over all of them where there are more than `most`."""
    n = sum(map(size, batches))
    whole = join(list(batches)) if most is None else pick(join(list(batches)), torch.arange(0, n, max(n // most, 1)))
    some = take([whole], n if most is None else most)[0]
    return [pick(some, [k]) for k in range(size(some))]
