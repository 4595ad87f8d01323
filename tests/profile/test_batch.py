import sys

import numpy as np
import pytest
from onnx import helper

from tests.profile.small_onnx import model, residual
from trimtab.core.errors import InputError
from trimtab.core.metric import metric
from trimtab.core.target import Target
from trimtab.hardware.machine import machine
from trimtab.profile.batch import BatchPoint, cheapest, knee, pareto, sweep
from trimtab.profile.table import batches_table
from trimtab.report.batches import batches


def point(batch, latency, threads=1):
    figures = {"latency": latency, "throughput": batch / latency, "cost": threads * latency / batch}
    return BatchPoint(
        batch, threads, "onnxruntime", {name: metric(name, value, "measured") for name, value in figures.items()}
    )


def curve(fixed, each, most=256, threads=1):
    """latency = fixed + each x batch: throughput rises to 1 / each."""
    return [point(b, fixed + each * b, threads) for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if b <= most]


def test_the_knee_of_a_network_with_a_cost_for_each_call():
    # T = B / (8 + B): 1/9 .. 256/264. x = ln(L / 9) / ln(264 / 9), L = 8 + B; by hand: batch 8 gives
    # y - x = (0.5 - 0.1111) / 0.8586 - ln(16 / 9) / 3.379 = 0.4530 - 0.1703 = 0.2827, 16: 0.6470 - 0.2903 = 0.3567 and
    # 32: 0.8023 - 0.4410 = 0.3613, 64: 0.9059 - 0.6155 = 0.2904
    assert knee(curve(8.0, 1.0)).batch == 32


def test_without_gain_the_smallest_batch_is_enough():
    assert knee(curve(0.0, 1e-3)).batch == 1
    assert knee([point(1, 1e-3), point(2, 3e-3), point(4, 8e-3)]).batch == 1


def test_points_after_the_best_throughput_do_not_move_the_knee():
    rising = curve(8.0, 1.0, most=64)
    assert knee(rising) == knee([*rising, point(128, 400.0), point(256, 900.0)])


def test_the_front_and_the_cheapest():
    points = [point(1, 1.0), point(2, 1.5), point(4, 5.0), point(1, 0.8, threads=2), point(8, 5.0, threads=2)]
    assert [(p.batch, p.threads) for p in pareto(points)] == [(2, 1), (1, 2), (8, 2)]
    assert cheapest(points) == points[1]  # 0.75 s of a core a sample; with two threads 1.25
    assert cheapest(points, most=1.2) == points[0]
    assert cheapest(points, most=0.5) is None
    assert points[4]["cost"] == 2 * 5.0 / 8


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "net.onnx"
    file.write_bytes(residual().SerializeToString())
    return file


def test_a_sweep_measures_powers_of_two_in_the_target_s_runtime(path):
    found = sweep(path, Target(runtime="onnxruntime"), largest=4, seconds=0.01)
    assert [(p.batch, p.threads, p.runtime) for p in found] == [(n, 1, "onnxruntime") for n in (1, 2, 4)]
    for p in found:
        assert {m.source for m in p.metrics.values()} == {"measured"}
        assert p["throughput"] * p["latency"] == pytest.approx(p.batch)
        assert p["cost"] * p.batch == pytest.approx(p["latency"])
        low, high = p.metrics["cost"].interval
        assert low <= p["cost"] <= high
    assert batches_table(found).row_count == 3


def test_a_sweep_ends_beyond_the_bound_and_before_it_takes_too_long(path, monkeypatch):
    assert [p.batch for p in sweep(path, Target(runtime="onnxruntime"), seconds=0.01, most=1e-9)] == [1]
    monkeypatch.setattr(sys.modules["trimtab.profile.batch"], "_LONGEST", 0.0)
    assert [p.batch for p in sweep(path, Target(runtime="onnxruntime"), seconds=0.01)] == [1]


def test_what_cannot_be_swept_is_one_line(path, tmp_path):
    for wrong in (0, machine().usable + 1):
        with pytest.raises(InputError, match="threads"):
            sweep(path, threads=(wrong,))
    with pytest.raises(InputError, match="largest"):
        sweep(path, largest=0)
    fixed = tmp_path / "fixed.onnx"
    node = helper.make_node("Relu", ["x"], ["y"])
    fixed.write_bytes(model([node], {}, {"x": [3, 4]}, {"y": [3, 4]}).SerializeToString())
    with pytest.raises(InputError, match=r"input x of \[3, 4\], expected a free batch"):
        sweep(fixed, Target(runtime="onnxruntime"))


def test_a_network_of_integers_takes_zeros(tmp_path):
    from onnx import TensorProto, numpy_helper

    table = numpy_helper.from_array(np.ones((5, 4), np.float32), "table")
    ends = (
        helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 3]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 4]),
    )
    graph = helper.make_graph([helper.make_node("Gather", ["table", "x"], ["y"])], "g", [ends[0]], [ends[1]], [table])
    path = tmp_path / "tokens.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path.write_bytes(made.SerializeToString())
    assert [p.batch for p in sweep(path, Target(runtime="onnxruntime"), largest=2, seconds=0.01)] == [1, 2]


def test_a_picture_has_a_mark_for_each_batch_and_a_ring_for_each_knee():
    points = [*curve(8.0, 1.0), *curve(8.0, 0.6, threads=2)]
    text = str(batches(points, "net", bound=100.0))
    assert text.count('class="mark one"') == len(points) // 2 + 1  # the legend has one too
    assert text.count('class="knee"') == 2
    assert "32 (knee)" in text
    assert "the bound on latency: 100 s" in text
