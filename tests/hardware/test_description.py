import re

import pytest

from tests.hardware.boards import BOARD, limited, written
from trimtab.core.errors import FileError, NotRunnable
from trimtab.hardware.cost import Work, cost
from trimtab.hardware.description import FAMILIES, at, catalog, read


def test_a_description_is_read(tmp_path):
    board = read(written(tmp_path, limited(5e4, 1e5)))
    assert (board.name, board.family, board.precisions) == ("board", "mcu", ("fp32", "int8"))
    assert board.peak == {"fp32": 50e6, "int8": 100e6}
    assert [m.name for m in board.memory] == ["sram", "flash"]
    assert (board.sram, board.flash, board.operators) == (5e4, 1e5, None)
    assert {"peak", "energy", "memory.sram", "memory.flash", "static", "overhead", "limits"} <= set(board.sources)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("int8 = 100e6", "int8 = -100e6", r"peak\.int8: .*board\.toml: got -1.*expected a finite number above 0"),
        ("int8 = 100e6", "int8 = inf", r"peak\.int8: .*got inf"),
        ("int8 = 100e6", "int8 = nan", r"peak\.int8: .*got nan"),
        ("int8 = 100e6", "int8 = true", r"peak\.int8: .*got True"),
        ("int8 = 100e6", 'int8 = "fast"', r"peak\.int8: .*got 'fast'"),
        ("int8 = 100e6", "int8 = 0", r"peak\.int8: .*got 0.*above 0"),
        ("int8 = 1e-10\n", "", r"energy\.int8: .*got nothing"),
        ("int8 = 100e6\n", "", r"peak\.int8: .*got nothing"),
        ("watts = 0.01", "watts = -1", r"static\.watts: .*expected a finite number of 0 or more"),
        ("watts = 0.01", "", r"static\.watts: .*got nothing"),
        ("watts = 0.01", "watts = 0.01\nvolts = 3", r"static\.volts: .*unknown key.*one of watts, source"),
        ('seconds = 1e-6\nsource = "made up"', "seconds = 1e-6", r"overhead\.source: .*got nothing"),
        ('seconds = 1e-6\nsource = "made up"', 'seconds = 1e-6\nsource = " "', r"overhead\.source: .*not empty"),
        ("capacity = 1000\n", "", r"memory\[0\]\.capacity: .*got nothing"),
        ("energy = 2e-11", "energy = -2e-11", r"memory\[1\]\.energy: "),
        ('name = "flash"', 'name = "sram"', r"memory\[1\]\.name: .*another name"),
        ('holds = ["activations"]', 'holds = ["programs"]', r"memory\[0\]\.holds: "),
        ("clocked = true", "clocked = 1", r"memory\[0\]\.clocked: "),
        ('family = "mcu"', 'family = "toaster"', r"family: .*got 'toaster'.*mcu"),
        ('name = "board"', 'name = "../board"', r"name: "),
        ("[static]\nwatts", "[still]\nwatts", r"static: .*got nothing"),
        ("watts = 0.01", "watts = 0.01\nestimate = 1", r"static\.estimate: .*got 1, expected true or false"),
        ("clocked = true", 'estimate = "yes"', r"memory\[0\]\.estimate: .*true or false"),
        ("volt = 0.6", "volt = 0", r"operating\[1\]\.volt: "),
        ("volt = 0.6\nhertz = 25e6", "volt = 1.2\nhertz = 100e6", r"operating\[1\]: .*another point"),
        ('title = "A', 'title = A"', "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, old, new, told):
    assert old in BOARD
    with pytest.raises(FileError, match=told) as caught:
        read(written(tmp_path, BOARD.replace(old, new, 1)))
    assert "\n" not in str(caught.value)


def test_estimated_figures_are_named(tmp_path):
    assert read(written(tmp_path)).estimates == ()
    text = BOARD.replace("watts = 0.01", "watts = 0.01\nestimate = true").replace("clocked = true", "estimate = true")
    assert read(written(tmp_path, text)).estimates == ("static", "memory.sram")


def test_a_joule_divided_out_of_a_board_s_power_is_an_estimate():
    for device in catalog():
        for section, source in device.sources.items():
            if source.startswith("Derived"):
                assert section in device.estimates, f"{device.name}: {section}"


def test_neither_fp32_nor_int8_is_refused(tmp_path):
    text = BOARD.replace("fp32 =", "fp16 =").replace("int8 =", "bf16 =")
    with pytest.raises(FileError, match=r"peak: .*got fp16, bf16, expected fp32, int8 or both"):
        read(written(tmp_path, text))


def test_a_missing_or_huge_file_is_refused(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        read(tmp_path / "none.toml")
    with pytest.raises(FileError, match="expected at most"):
        read(written(tmp_path, BOARD + "#" * (1 << 20)))


def test_compute_binds(tmp_path):
    found = cost(read(written(tmp_path)), Work(macs=1e6, weights=1000, activations=500, precision="int8"))
    # 1e6 / 100e6 = 10 ms; 1000 bytes of flash at 10 MB/s 0.1 ms; 500 bytes of SRAM at 100 MB/s 5 us
    assert (found.bound.by, found.bound.seconds) == ("compute", pytest.approx(0.01))
    assert found.energy.compute == pytest.approx(1e6 * 1e-10)
    # only flash may hold weights, so it is their nearest memory: 1000 x 20 pJ, and 500 x 10 pJ of SRAM
    assert found.energy.memory == pytest.approx(1000 * 2e-11 + 500 * 1e-11)
    assert found.energy.movement == 0
    assert found.energy.static == pytest.approx(0.01 * 0.01)
    assert found.energy.total == pytest.approx(1e-4 + 2e-8 + 5e-9 + 1e-4)


def test_memory_binds_and_activations_spill(tmp_path):
    found = cost(read(written(tmp_path)), Work(macs=1e3, weights=1000, activations=4000, precision="fp32"))
    # 4000 bytes do not fit into 1000 of SRAM: they come from flash too, 5000 bytes at 10 MB/s, and through the SRAM
    assert (found.bound.by, found.bound.seconds) == ("memory", pytest.approx(5e-4))
    assert found.energy.memory == pytest.approx(1000 * 2e-11 + 4000 * 1e-11)
    assert found.energy.movement == pytest.approx(4000 * 2e-11)


def test_overhead_binds_where_there_is_nothing_to_do(tmp_path):
    found = cost(read(written(tmp_path)), Work(macs=0, weights=0, activations=10, precision="fp16"))
    assert (found.bound.by, found.bound.seconds) == ("overhead", 1e-6)


def test_a_precision_that_it_lacks_is_refused(tmp_path):
    with pytest.raises(NotRunnable, match=r"board has no fp16: conv1: .*expected one of fp32, int8"):
        cost(read(written(tmp_path)), Work(1.0, 1.0, 1.0, "fp16"), "conv1")


def test_an_operating_point_scales_speed_with_the_clock_and_energy_with_the_voltage_squared(tmp_path):
    board = read(written(tmp_path))
    slow = at(board, board.operating[1])  # a quarter of the clock, half of the voltage
    assert slow.peak == {"fp32": 12.5e6, "int8": 25e6}
    assert slow.energy["int8"] == pytest.approx(0.25e-10)
    sram, flash = slow.memory
    assert (sram.bandwidth, sram.energy) == (25e6, pytest.approx(0.25e-11))
    assert (flash.bandwidth, flash.energy) == (10e6, 2e-11)
    assert (slow.overhead, slow.static) == (pytest.approx(4e-6), 0.01)
    assert at(board, board.operating[0]).peak == board.peak


def test_the_catalogue_holds_the_devices_of_every_family():
    found = {d.name: d for d in catalog()}
    wanted = {"a100", "h100", "h200", "tpu-v4", "jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-5", "cortex-m7"}
    assert wanted | {"cortex-m4", "loihi", "fpga-dpu-b3136", "ethos-u55-256-roofline"} <= set(found)
    assert {d.family for d in found.values()} <= set(FAMILIES)
    # known figures, by another route: cores x clock x multiply-adds per clock
    assert found["a100"].peak["fp32"] == pytest.approx(6912 * 1.41e9, rel=0.001)
    assert found["h100"].peak["fp32"] == pytest.approx(16896 * 1.98e9, rel=0.005)
    assert found["tpu-v4"].peak["int8"] == pytest.approx(8 * 128 * 128 * 1.05e9, rel=0.002)
    assert found["raspberry-pi-5"].peak["fp32"] == 4 * 2.4e9 * 8
    assert found["cortex-m7"].flash == 1 << 20


@pytest.mark.parametrize("device", catalog(), ids=lambda d: d.name)
def test_a_device_of_the_catalogue_is_plausible(device):
    assert re.search(r"[A-Z]", device.sources["peak"])
    assert all(len(source) > 20 for source in device.sources.values())
    # within what silicon of 2014 to 2024 does: 0.1 pJ to 1 nJ for a multiply-add
    assert all(1e-13 < joules < 1e-9 for joules in device.energy.values())
    # a nearer memory is faster, for what both may hold
    for kind in ("weights", "activations"):
        speeds = [m.bandwidth for m in device.memory if kind in m.holds]
        assert speeds == sorted(speeds, reverse=True)
    if device.operating:
        assert device.operating[0].hertz == max(p.hertz for p in device.operating)
