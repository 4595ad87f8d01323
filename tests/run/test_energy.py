"""Energy: counters of a made-up kernel folder, added up by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.core.errors import FileError
from trimtab.run.energy import Counter, counters, measure_energy, unavailable

RANGE = 262_143_328_850  # of a real Xeon, in microjoules


def zone(folder: Path, name: str, kind: str, energy: int, highest: int = RANGE) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text(f"{kind}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{highest}\n")
    return path


def test_packages_and_memory_count_once(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    zone(tmp_path, "intel-rapl:0:0", "core", 3)
    zone(tmp_path, "intel-rapl:0:1", "dram", 2)
    zone(tmp_path, "intel-rapl:1", "package-1", 5)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5)
    (tmp_path / "intel-rapl").mkdir()
    assert [c.name for c in counters(tmp_path)] == ["package-0", "dram", "package-1"]
    assert unavailable(tmp_path) is None


def test_a_counter_that_starts_again() -> None:
    counter = Counter(Path(), "package-0", 1_000_000)
    assert counter.since(200_000, 700_000) == pytest.approx(0.5)
    assert counter.since(900_000, 100_000) == pytest.approx(0.2)


def test_joules_of_one_call(tmp_path: Path) -> None:
    """Each call adds 3 J to the package and 1 J to the memory, across the end of the package's range."""
    package = zone(tmp_path, "intel-rapl:0", "package-0", 90_000_000, 100_000_000)
    memory = zone(tmp_path, "intel-rapl:0:0", "dram", 0)

    def call() -> None:
        for path, joules, highest in ((package, 3, 100_000_000), (memory, 1, RANGE)):
            energy = int((path / "energy_uj").read_text()) + joules * 1_000_000
            (path / "energy_uj").write_text(str(energy % highest))

    found = measure_energy(call, seconds=0.0, folder=tmp_path)
    assert found.value == pytest.approx(4.0)
    assert found.interval == pytest.approx((4.0, 4.0))
    assert (found.unit, found.source, found.direction, found.n) == ("J", "measured", "down", 10)
    assert "package-0, dram" in str(found.how)


def test_why_there_is_none(tmp_path: Path) -> None:
    assert unavailable(tmp_path / "nothing") == "energy: the kernel shows no RAPL counter here"
    path = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    (path / "energy_uj").write_text("many")
    assert "cannot be read" in str(unavailable(tmp_path))
    assert "\n" not in str(unavailable(tmp_path))
    with pytest.raises(FileError, match="energy_uj"):
        measure_energy(lambda: None, 0.0, tmp_path)
