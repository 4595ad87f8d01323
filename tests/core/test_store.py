"""What is stored is whole or not there, and a hash stands for what made it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trimtab.core.errors import FileError, InputError, TrimtabError
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.store import Store, digest, read_json, write_atomic, write_json


def test_round_trip_and_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.get("a") is None
    store.put("a", {"n": 1}, {"w": torch.arange(3.0)})
    assert store.get("a") == {"n": 1}
    assert torch.equal(store.tensors("a")["w"], torch.arange(3.0))
    calls: list[int] = []
    assert store.once("b", lambda: calls.append(1) or 5) == 5
    assert store.once("b", lambda: calls.append(1) or 6) == 5
    assert calls == [1]
    store.drop("a")
    assert store.get("a") is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match=r"No space left on device.*Free space"):
        write_atomic(path, fail)
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_hostile_json_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FileError, match="not JSON"):
        read_json(tmp_path / "x.json")


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))


def test_a_digest_tells_values_types_and_shapes_apart() -> None:
    values = [1, "1", 1.5, None, [1], Goal(), Goal(hours=1), torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).long()]
    assert len({digest(v) for v in values}) == len(values)
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    assert digest("a", "b") != digest("ab")


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"schema": 2, "steps": []},
        {"schema": 1},
        {"schema": 1, "steps": [1]},
        {"schema": 1, "steps": [], "x": 1},
    ],
)
def test_plans_from_strangers(data: object) -> None:
    with pytest.raises(FileError, match="plan"):
        Plan.of_json(data)


def test_plan_round_trip() -> None:
    plan = Plan(({"technique": "Quantise", "skip": ["linear"]},), "abc")
    assert Plan.of_json(plan.json()) == plan


def test_an_error_is_one_line_of_its_parts() -> None:
    error = InputError("Prune", where="layer3.2.conv1", got="keep=80", expected="at most 64", do="Give\nkeep <= 64.")
    assert str(error) == "Prune: layer3.2.conv1: got keep=80, expected at most 64. Give keep <= 64."
    assert isinstance(error, TrimtabError)
    assert error.exit_status == 2
