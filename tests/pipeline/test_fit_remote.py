"""The main job on a machine that another process serves: every figure measured there, the token nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import torch

from tests.pipeline.networks import small
from tests.run.remote.serving import TOKEN, serving
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.target import parse
from trimtab.core.task import Arrays, Task, accuracy
from trimtab.hardware.machine import machine
from trimtab.pipeline.fit import fit
from trimtab.pipeline.verify import verify


@pytest.mark.slow
def test_fit_for_a_machine_that_measures_for_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_TOKEN", TOKEN)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 1, 8, 8, generator=generator)
    data = Arrays(images, (images.mean((1, 2, 3)) > 0).long(), batch=32)
    task = Task(small(), images[:2], validate=data, test=data, score=accuracy, name="there")
    with serving() as (url, _):
        result = fit(task, f"{url}:precision=int8", Goal(max_drop=1.0, hours=0.005), out=tmp_path / "run")
        checked = verify(tmp_path / "run", target=parse(url))
        with pytest.raises(InputError, match="Give that address as the target"):
            verify(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["target"]["device"] == url
    assert report["machine"]["address"] == url
    assert report["machine"]["processor"] == report["here"]["processor"] == machine().processor
    assert report["runtime"] in ("onnxruntime", "openvino")
    for point in report["points"]:
        latency = point["metrics"]["latency"]
        assert latency["source"] == "measured"
        assert f"at {url}" in latency["how"]
        assert point["metrics"]["size"]["value"] > 0
    assert result.report["chosen"] in {point["name"] for point in report["points"]}
    assert [row.name for row in checked.rows if not row.ok and row.name != "latency_ratio"] == []
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()
