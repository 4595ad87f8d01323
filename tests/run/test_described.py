import pytest

from tests.hardware.boards import BOARD, integer_only, limited, written
from tests.run.networks import Residual, images, quantised, residual
from trimtab.core.errors import FileError, NotInteger, NotRunnable
from trimtab.core.target import Target
from trimtab.graph.executed import executed
from trimtab.graph.save import save
from trimtab.hardware.description import catalog, read
from trimtab.hardware.layer import Layer
from trimtab.run.described import Described
from trimtab.run.device import MODEL
from trimtab.run.export import export_onnx

BOARD_TARGET = Target("board")


def device(folder, text=BOARD):
    return Described(read(written(folder, text)))


def pointed(graph, folder):
    folder.mkdir()
    save(graph, folder)
    return export_onnx(graph, folder / MODEL) or folder / MODEL


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network in fp32 and in int8, as points."""
    folder = tmp_path_factory.mktemp("points")
    model, graph = residual()
    pointed(graph, folder / "fp32")
    pointed(quantised(model, images(8)), folder / "int8")
    return {name: folder / name / MODEL for name in ("fp32", "int8")}


def test_what_is_executed_in_floating_point():
    _, graph = residual()
    done = executed(graph, 1)
    steps = {step.name: step for step in done.steps}
    # batch norm is folded, relu is taken in by the convolution or addition before it
    assert [s.kinds for s in done.steps] == [
        ("conv2d", "relu"), ("pad",), ("conv2d", "relu"), ("conv2d",), ("add", "relu"), ("mean",), ("linear",)
    ]  # fmt: skip
    assert steps["stem"].macs == 3 * 8 * 9 * 144
    assert steps["stem"].weights == 4 * (3 * 8 * 9 + 8)  # with the bias that the norm becomes
    assert steps["stem"].activations == 4 * (3 * 144 + 8 * 144)
    assert not any(step.integer for step in done.steps)
    # while conv1 runs: its input, its output, and the padded shortcut
    assert (done.peak.name, done.peak.alive) == ("conv1", 4 * (8 * 144 + 16 * 36 + 16 * 36))
    assert done.weights == sum(step.weights for step in done.steps)


def test_what_is_executed_in_integers_takes_one_byte_a_value():
    model, graph = residual()
    plain, integer = executed(graph, 1), executed(quantised(model, images(8)), 1)
    assert [s.kinds for s in integer.steps] == [s.kinds for s in plain.steps]
    assert [s.macs for s in integer.steps] == [s.macs for s in plain.steps]
    assert all(step.integer for step in integer.steps)
    before, after = plain.steps[0], integer.steps[0]
    assert after.activations == before.activations // 4
    assert integer.peak.alive == plain.peak.alive // 4
    assert integer.peak.name == plain.peak.name


def test_a_skipped_layer_stays_in_floating_point():
    from trimtab.compress import Quantise
    from trimtab.core.context import Context
    from trimtab.core.task import Task
    from trimtab.graph.capture import capture

    model = Residual().eval()
    context = Context(Task(model, images()), calibrate=((images(8),),))
    graph = Quantise(skip=("conv2",)).apply(capture(model, images()), context)
    found = {step.name: step.integer for step in executed(graph, 1).steps if step.macs}
    assert found == {"stem": True, "conv1": True, "conv2": False, "head": True}


def test_batches_scale_what_is_executed():
    _, graph = residual()
    one, four = executed(graph, 1), executed(graph, 4)
    assert [s.macs * 4 for s in one.steps] == [s.macs for s in four.steps]
    assert [s.activations * 4 for s in one.steps] == [s.activations for s in four.steps]
    assert one.weights == four.weights


def test_latency_is_the_sum_of_the_layers_and_comes_from_a_model(tmp_path, files):
    found = device(tmp_path).clock(files["fp32"], files, BOARD_TARGET, [])
    for clocked in found.values():
        m = clocked.metrics
        assert m["latency"].value == pytest.approx(sum(row["seconds"] for row in clocked.layers))
        assert m["energy"].value == pytest.approx(sum(row["joules"] for row in clocked.layers))
        assert m["edp"].value == pytest.approx(m["energy"].value * m["latency"].value)
        assert m["throughput"].value == pytest.approx(1 / m["latency"].value)
        assert {x.source for x in m.values()} == {"modelled"}
        assert m["latency"].how.startswith("modelled (roofline)")
        assert m["latency"].interval is None
    a, b = found["fp32"].metrics, found["int8"].metrics
    assert a["latency_ratio"].value == a["energy_ratio"].value == 1.0
    assert b["latency_ratio"].value == pytest.approx(a["latency"].value / b["latency"].value)
    assert b["peak_memory"].value * 4 == a["peak_memory"].value


def test_one_layer_by_hand(tmp_path, files):
    row = device(tmp_path).clock(files["int8"], {"": files["int8"]}, BOARD_TARGET, [])[""].layers[0]
    assert (row["name"], row["operator"], row["precision"]) == ("stem", "conv2d+relu", "int8")
    # 31104 multiply-adds at 100 M/s are 311 us; 1584 bytes do not fit into 1000 of SRAM: with the 288 of weights
    # (216 weights, 8 biases of 4 bytes, 8 scales of 4, a zero point for each of one byte) from flash at 10 MB/s 187 us
    assert row["weight_bytes"] == 288
    assert (row["bound_by"], row["seconds"]) == ("compute", pytest.approx(31104 / 100e6))
    assert row["compute_joules"] == pytest.approx(31104e-10)
    assert row["movement_joules"] == pytest.approx(1584 * 2e-11)
    assert row["memory_joules"] == pytest.approx(1584 * 1e-11 + 288 * 2e-11)


def test_each_operating_point_and_the_best_of_them(tmp_path, files):
    clocked = device(tmp_path).clock(files["fp32"], {"": files["fp32"]}, BOARD_TARGET, [])[""]
    (name,) = clocked.others
    assert name == "25 MHz at 0.6 V"
    fast, slow = clocked.metrics, clocked.others[name]
    # four times slower where the clock binds; what the flash binds does not change
    assert 2 < slow["latency"].value / fast["latency"].value < 4
    assert slow["latency_ratio"].value == 1.0
    assert "25 MHz" in slow["energy"].how
    best = {k: min(("100 MHz", fast), ("25 MHz", slow), key=lambda p: p[1][k].value)[0] for k in ("energy", "edp")}
    assert f"least energy is at {best['energy']}" in clocked.notes[0]
    assert f"least energy-delay product is at {best['edp']}" in clocked.notes[1]


def test_static_power_moves_the_best_operating_point(tmp_path, files):
    def best(watts):
        board = device(tmp_path, BOARD.replace("watts = 0.01", f"watts = {watts}"))
        return board.clock(files["fp32"], {"": files["fp32"]}, BOARD_TARGET, [])[""].notes[0]

    assert "25 MHz" in best(0)
    assert "100 MHz" in best(1.0)  # it pays to be done soon


def test_layers_alone(tmp_path):
    board = device(tmp_path)
    layer = Layer(8, 16, (3, 3), (4, 4), (1, 1), (1, 1), (1, 1))
    found = board.layers([layer, Layer(10, 5, (), (1,))], "int8", BOARD_TARGET)
    assert layer.macs == 8 * 16 * 9 * 16
    assert found[layer]["latency"] == pytest.approx(layer.macs / 100e6)
    # 18432 x 100 pJ, 1152 bytes of weights, 384 of activations, 10 mW for 184 us
    assert found[layer]["energy"] == pytest.approx(18432e-10 + 1152 * 2e-11 + 384 * 1e-11 + 0.01 * 18432 / 100e6)
    twice = board.layers([layer], "int8", Target("board", batch=2))[layer]
    assert twice["latency"] == pytest.approx(2 * found[layer]["latency"])
    # in fp32 the 1536 bytes of activations spill: 6144 bytes from flash at 10 MB/s
    assert board.layers([layer], "fp32", BOARD_TARGET)[layer]["latency"] == pytest.approx(6144 / 10e6)


def test_the_sum_of_layers_alone_is_near_the_whole_network(tmp_path, files):
    board = device(tmp_path)
    layers = [
        Layer(3, 8, (3, 3), (12, 12), (1, 1), (1, 1), (1, 1)),
        Layer(8, 16, (3, 3), (12, 12), (2, 2), (1, 1), (1, 1)),
        Layer(16, 16, (3, 3), (6, 6), (1, 1), (1, 1), (1, 1)),
        Layer(16, 5, (), (1,)),
    ]
    alone = sum(each["latency"] for each in board.layers(layers, "int8", BOARD_TARGET).values())
    whole = board.clock(files["int8"], {"": files["int8"]}, BOARD_TARGET, [])[""].metrics["latency"].value
    assert alone == pytest.approx(whole, rel=0.2)
    assert alone < whole


def test_an_operator_that_it_lacks_is_named_with_its_layer(tmp_path, files):
    text = BOARD + '\n[operators]\nnames = ["conv2d", "relu", "add", "linear", "pad"]\nsource = "made up"\n'
    with pytest.raises(NotRunnable, match=r"board does not run mean: mean: expected one of conv2d, relu, add"):
        device(tmp_path, text).clock(files["int8"], {"a": files["int8"]}, BOARD_TARGET, [])


def test_weights_beyond_the_flash_are_refused_with_what_would_fit(tmp_path, files):
    board = device(tmp_path, limited(1e5, 8e3))
    with pytest.raises(
        NotRunnable, match=r"flash: conv2 is the largest layer.*got 15\.2 kB, expected at most 8 kB. 53 %"
    ):
        board.clock(files["int8"], {"a": files["fp32"]}, BOARD_TARGET, [])
    found = board.clock(files["fp32"], files | {"int8": files["int8"]}, BOARD_TARGET, [])
    # the reference is modelled all the same, and says what it lacks
    assert "flash" in found["fp32"].lacks
    assert found["int8"].lacks is None
    assert found["int8"].notes[-1].startswith("It fits: 4.2 kB of 8 kB for weights and 2.3 kB of 100 kB")
    assert found["int8"].metrics["latency_ratio"].value > 1


def test_activations_beyond_the_sram_are_refused_at_their_layer(tmp_path, files):
    board = device(tmp_path, limited(2000, 1e6))
    with pytest.raises(NotRunnable, match=r"SRAM: conv1: got 2\.3 kB, expected at most 2 kB. 87 % of the activations"):
        board.clock(files["fp32"], {"a": files["int8"]}, BOARD_TARGET, [])


def test_an_integer_only_device_refuses_a_layer_in_floating_point(tmp_path, files):
    board = device(tmp_path, integer_only())
    assert board.precisions == ("int8",)
    with pytest.raises(NotRunnable, match=r"board has no fp32: stem: .*Quantise that layer"):
        board.clock(files["fp32"], {"a": files["fp32"]}, BOARD_TARGET, [])
    assert board.clock(files["int8"], {"a": files["int8"]}, BOARD_TARGET, [])["a"].metrics["latency"].value > 0


def test_without_int8_a_quantised_file_is_refused(tmp_path, files):
    text = BOARD.replace("int8 = 100e6\n", "").replace("int8 = 1e-10\n", "")
    board = device(tmp_path, text)
    assert board.precisions == ("fp32",)
    with pytest.raises(NotInteger, match="board has no int8"):
        board.check(files["int8"], "roofline")
    device(tmp_path).check(files["int8"], "roofline")


def test_a_missing_graph_is_an_error(tmp_path, files):
    with pytest.raises(FileError):
        device(tmp_path).clock(files["fp32"], {"a": tmp_path / "model.onnx"}, BOARD_TARGET, [])


def test_its_version_changes_with_a_figure(tmp_path):
    a = device(tmp_path).version()
    assert device(tmp_path, BOARD.replace("int8 = 100e6", "int8 = 101e6")).version() != a
    assert device(tmp_path).version() == a


def test_faster_devices_are_faster(files):
    board = {d.name: Described(d) for d in catalog()}

    def seconds(name):
        return board[name].clock(files["int8"], {"": files["int8"]}, Target(name), [])[""].metrics["latency"].value

    assert seconds("cortex-m4") > seconds("cortex-m7") > seconds("raspberry-pi-4") > seconds("raspberry-pi-5")


def test_a_large_layer_on_a_gpu_comes_from_its_cache():
    h200 = Described(next(d for d in catalog() if d.name == "h200"))
    layer = Layer(2048, 2048, (), (1,))  # 16.8 MB of weights, within 50 MB of L2 at 5120 byte/clock
    found = h200.layers([layer], "fp32", Target("h200"))[layer]["latency"]
    assert found == pytest.approx(2048 * 2048 * 4 / (5120 * 1.83e9), rel=0.01)
