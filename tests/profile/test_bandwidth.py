import math

import numpy as np
import pytest

from trimtab.profile import bandwidth
from trimtab.profile.bandwidth import levels


@pytest.mark.parametrize("working_set", [16 << 10, 64 << 10, 512 << 10])
def test_windows_stay_inside_their_range_and_write_all_of_it(working_set):
    target, source = bandwidth._buffers(working_set)
    half = working_set // 2
    passes, window = target.shape
    last = (passes - 1) * target.strides[0] + window * target.strides[1]
    assert last <= half
    assert last > half - bandwidth._LINE  # nothing but a part of a line is left out
    assert not np.shares_memory(target, source)
    source[:] = 3.0
    np.copyto(target, source)
    assert (target == 3.0).all()


def test_a_range_that_leaves_its_cache_is_passed_once():
    assert bandwidth._buffers(16 << 10)[0].shape[0] == 32
    assert bandwidth._buffers(1 << 20)[0].shape[0] == 1


def test_levels_are_named_ordered_and_measured(monkeypatch):
    monkeypatch.setattr(bandwidth, "_BYTES", 1 << 20)
    monkeypatch.setattr(bandwidth, "_SMALLEST", 1 << 20)
    found = levels({"L1": 32 << 10, "L2": 256 << 10}, threads=2)
    assert [x.name for x in found] == ["L1", "L2", "memory"]
    assert [x.capacity for x in found] == [32 << 10, 256 << 10, math.inf]
    for level in found:
        assert level.bandwidth.value > 0
        assert (level.bandwidth.unit, level.bandwidth.source, level.bandwidth.n) == ("byte/s", "measured", 7)


def test_a_shared_cache_is_shared_out(monkeypatch):
    asked = []
    monkeypatch.setattr(bandwidth, "_copies", lambda size, threads: asked.append((size, threads)))
    monkeypatch.setattr(bandwidth, "Level", lambda *_: None)
    levels({"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}, threads=2)
    assert asked == [(16 << 10, 2), (512 << 10, 2), (8 << 20, 2), (64 << 20, 2)]


def test_without_caches_memory_is_the_only_level(monkeypatch):
    monkeypatch.setattr(bandwidth, "_BYTES", 1 << 20)
    monkeypatch.setattr(bandwidth, "_SMALLEST", 1 << 20)
    assert [x.name for x in levels({})] == ["memory"]
