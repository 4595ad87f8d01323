"""Clean: a fresh process computes the same, and its failures come back as one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.run.networks import images, residual
from trimtab.core.errors import ExportError, FileError
from trimtab.run import clean
from trimtab.run.clean import clean_footprint, clean_run, clean_timings
from trimtab.run.export import export_onnx
from trimtab.run.score import file_outputs


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clean") / "m.onnx"
    export_onnx(residual()[1], path)
    return path


def test_a_fresh_process_computes_the_same(file: Path) -> None:
    batches = [(images(3), torch.zeros(3)), (-images(2), torch.zeros(2))]
    found = clean_run(file, "onnxruntime", batches)
    wanted, _ = file_outputs(file, "onnxruntime", batches, "test")
    assert torch.equal(found.outputs, wanted)
    assert found.load_s > 0
    assert found.peak_bytes > 1 << 20


def test_files_are_timed_there(file: Path) -> None:
    found = clean_timings({"a": (file, "onnxruntime")}, [images(1).numpy()], seconds=0.0)
    assert found["a"].n == len(found["a"].rounds) == 30
    assert found["a"].batch == 1
    assert found["a"].interval[0] <= found["a"].median_s <= found["a"].interval[1]


def test_what_it_takes_to_load_a_file_and_run_it(file: Path) -> None:
    found = clean_footprint(file, "onnxruntime", [images(1).numpy()])
    large = clean_footprint(file, "onnxruntime", [images(2000).numpy()])
    assert found["load_time"].value > 0
    assert (found["load_time"].unit, found["peak_resident"].unit) == ("s", "byte")
    assert {m.source for m in found.values()} == {"measured"}
    # the stem's 8 maps of 12 x 12 floats for 1999 samples more
    assert large["peak_resident"].value - found["peak_resident"].value > 1999 * 8 * 12 * 12 * 4


def test_an_error_there_is_the_same_error_here(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "m.onnx"
    other.write_bytes(b"no model")
    with pytest.raises(FileError, match="not an ONNX model") as caught:
        clean_timings({"a": (other, "onnxruntime")}, [images(1).numpy()], seconds=0.0)
    assert "\n" not in str(caught.value)


def test_only_listed_functions_are_called() -> None:
    with pytest.raises(ExportError, match="KeyError"):
        clean._call("os.system", 60.0)


def test_a_process_that_takes_too_long_is_ended(file: Path) -> None:
    with pytest.raises(ExportError, match="no answer"):
        clean_run(file, "onnxruntime", [(images(2),)], limit=0.01)
