import importlib
import math

import pytest

from trimtab.core.errors import InputError
from trimtab.core.metric import Metric
from trimtab.hardware.machine import machine
from trimtab.hardware.roofline import Ceilings, Level
from trimtab.profile.probe import kept_at, probe
from trimtab.profile.workloads import convolution

module = importlib.import_module("trimtab.profile.probe")


def fixed(rate=1e9):
    value = Metric(rate, "1/s", "measured", "up", n=1)
    memory = Level("memory", math.inf, Metric(1e9, "byte/s", "measured", "up", n=1))
    overhead = Metric(1e-6, "s", "measured", "down", n=1)
    return Ceilings("onnxruntime", 1, {"fp32": value, "int8": value}, (memory,), overhead)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))


@pytest.fixture
def made(monkeypatch):
    """Counts measurements, each with another result."""
    calls = []

    def measure(*arguments):
        calls.append(arguments)
        return fixed(len(calls) * 1e9)

    monkeypatch.setattr(module, "measure", measure)
    return calls


def test_a_measurement_is_made_once_and_kept(made):
    first = probe()
    assert probe() == first
    assert len(made) == 1


def test_fresh_measures_again_and_keeps_that(made):
    first, second = probe(), probe(fresh=True)
    assert second != first
    assert probe() == second
    assert len(made) == 2


def test_each_runtime_and_machine_has_its_own():
    from dataclasses import replace

    here = machine()
    other = replace(here, libraries={**here.libraries, "onnxruntime": "0.0"})
    paths = {kept_at(here, "onnxruntime", 1), kept_at(here, "onnxruntime", 2), kept_at(here, "openvino", 1)}
    assert len(paths | {kept_at(other, "onnxruntime", 1)}) == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"runtime": "onnxruntime"}'])
def test_a_damaged_measurement_is_made_again(made, damage):
    first = probe()
    kept_at(machine(), "onnxruntime", 1).write_text(damage)
    assert probe() != first
    assert len(made) == 2


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_threads_that_are_not_there_are_refused(made, threads):
    with pytest.raises(InputError, match="probe: threads"):
        probe(threads=threads)
    assert made == []


def test_an_unknown_runtime_is_refused():
    with pytest.raises(InputError, match="nowhere"):
        probe("nowhere")


def test_what_is_measured_here_is_whole(monkeypatch, tmp_path):
    for name, value in (("product", lambda _, p: convolution(8, 4, p)), ("_LONG", 20), ("_SHORT", 10), ("_RUNS", 3)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "convolution", lambda _, __, p: convolution(16, 8, p))
    monkeypatch.setattr(module, "levels", lambda caches, threads: fixed().levels)
    found = probe()
    assert set(found.peak) == {"fp32", "int8"}
    for metric, unit in ((found.peak["fp32"], "1/s"), (found.peak["int8"], "1/s"), (found.overhead, "s")):
        assert (metric.unit, metric.source) == (unit, "measured")
        assert 0 < metric.value < math.inf
        assert metric.how
