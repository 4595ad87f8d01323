import json
import math
import sys

import pytest
import torch
from torch import nn

from tests.profile.small_onnx import quantised, residual
from trimtab.core.errors import FileError, InputError
from trimtab.core.metric import Metric
from trimtab.core.target import Target
from trimtab.graph.capture import capture
from trimtab.graph.count import count
from trimtab.hardware.roofline import Ceilings, Level
from trimtab.profile import profile
from trimtab.profile.table import ceilings_table, rows, summary, table

RUNTIMES = ("onnxruntime", "openvino")


def ceilings(overhead=1e-9):
    """An endless bandwidth, so that compute binds whatever multiplies, and memory nothing."""
    return Ceilings(
        "onnxruntime",
        1,
        {name: Metric(rate, "1/s", "measured", "up") for name, rate in (("fp32", 1e9), ("int8", 4e9))},
        (Level("memory", math.inf, Metric(1e15, "byte/s", "measured", "up")),),
        Metric(overhead, "s", "measured", "down"),
    )


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.inner(x) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return capture(Block().eval(), torch.randn(2, 3, 8, 8))


@pytest.fixture(scope="module", autouse=True)
def _short():
    """Speed is not tested here, so short measurements do."""
    module = sys.modules["trimtab.profile.profile"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WHOLE", 0.01)
        patch.setattr(module, "_SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def found(graph, _short):
    return profile(graph, Target(runtime="onnxruntime"), ceilings())


@pytest.fixture
def saved(tmp_path):
    def save(made):
        path = tmp_path / "net.onnx"
        path.write_bytes(made.SerializeToString())
        return path

    return save


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_network_by_layer(graph, runtime):
    pytest.importorskip(runtime)
    found = profile(graph, Target(runtime=runtime, batch=2), ceilings())
    layers = {row.layer: row for row in found.rows if row.macs}
    assert {name: row.macs for name, row in layers.items()} == {
        "stem": 2 * 64 * 8 * 27,
        "inner": 2 * 64 * 8 * 72,
        "head": 2 * 8 * 5,
    }
    assert found.totals["macs"].value == sum(cost.macs for cost in count(graph, 2))
    assert found.totals["params"].value == 8 * 27 + 2 * 8 + 8 * 72 + 8 + 8 * 5 + 5
    assert [row.seconds for row in found.rows] == sorted((row.seconds for row in found.rows), reverse=True)
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert sum(row.seconds for row in found.rows) == pytest.approx(found.totals["kernels"].value)
    assert found.outside == found.totals["latency"].value - found.totals["kernels"].value
    assert sorted(row.position for row in found.rows) == list(range(len(found.rows)))
    assert found.runtime == runtime
    assert found.batch == 2


def test_rows_are_held_against_the_ceilings(graph, found):
    row = next(row for row in found.rows if row.layer == "inner")
    assert row.bound == "compute"
    assert row.least == pytest.approx(64 * 8 * 72 / 1e9)
    assert row.achieved == pytest.approx(row.least / row.seconds)
    assert row.intensity == pytest.approx(row.macs / row.bytes)
    slow = profile(graph, Target(runtime="onnxruntime"), ceilings(overhead=1.0))
    assert {row.bound for row in slow.rows} <= {"overhead", None}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_integers_are_told_from_floats(saved, runtime):
    pytest.importorskip(runtime)
    found = profile(saved(quantised()), Target(runtime=runtime), ceilings())
    (row,) = [row for row in found.rows if row.macs]
    assert (row.layer, row.precision) == ("conv", "int8")
    assert row.least == pytest.approx(36 * 8 * 36 / 4e9)
    (plain,) = [r for r in profile(saved(residual()), Target(runtime=runtime), ceilings()).rows if r.layer == "conv2"]
    assert plain.precision == "fp32"


def test_without_a_runtime_the_fastest_is_taken(graph):
    assert profile(graph, Target(), ceilings()).runtime in RUNTIMES


def test_json_is_plain_and_every_figure_has_unit_and_source(found):
    data = found.json()
    assert json.loads(json.dumps(data, allow_nan=False)) == json.loads(json.dumps(data))
    assert set(data["totals"]) == {"params", "macs", "bytes", "peak_memory", "kernels", "latency"}
    assert all(m["unit"] and m["source"] for m in data["totals"].values())
    assert data["totals"]["latency"]["source"] == data["totals"]["kernels"]["source"] == "measured"
    assert {"layer", "seconds", "bound", "achieved", "intensity"} <= set(data["rows"][0])


def test_tables_show_every_row_once(found):
    assert table(found).row_count == len(found.rows) == len(rows(found))
    short = rows(found, limit=1)
    assert [cells[0] for cells in short] == [found.rows[0].layer, f"{len(found.rows) - 1} more"]
    assert any("outside kernels" in line for line in summary(found))
    assert ceilings_table([ceilings()]).row_count == 2 + 1 + 2


def test_a_fixed_batch_is_said(saved):
    made = residual()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    found = profile(saved(made), Target(runtime="onnxruntime"), ceilings())
    assert found.batch == 3
    assert any("fixed batch of 3" in note for note in found.notes)


def test_a_file_that_no_runtime_loads_is_one_line_with_its_own_name(saved):
    made = residual()
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    path = saved(made)
    with pytest.raises(FileError, match=r"net\.onnx") as caught:
        profile(path, Target(runtime="onnxruntime"), ceilings())
    assert "marked.onnx" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_operator_is_one_line(saved):
    made = residual()
    made.graph.node[1].op_type = "Reluu"
    with pytest.raises(FileError, match=r"net\.onnx"):
        profile(saved(made), Target(runtime="onnxruntime"), ceilings())


def test_too_many_threads_are_refused(graph):
    with pytest.raises(InputError, match="threads"):
        profile(graph, Target(runtime="onnxruntime", threads=100_000))
