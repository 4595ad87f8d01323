import math

import pytest

from trimtab.core.errors import FileError
from trimtab.hardware.accelerator import accelerators, read_accelerator
from trimtab.hardware.energy import HOROWITZ_DRAM, mac_energy

ARRAY = """
name = "four"
title = "4 x 4 multipliers"

[clock]
hertz = 1e6
source = "made up"

[array]
sides = [4, 4]
unroll = [["outputs", "groups"], ["inputs"]]
order = ["x"]
systolic = false
energy = 1e-12
source = "made up"

[[memory]]
name = "registers"
holds = ["weights"]
shared = []
capacity = 1
read = 1
write = 1
energy = 0
source = "made up"

[[memory]]
name = "buffer"
holds = ["inputs", "outputs"]
shared = [1, 2]
capacity = 1024
read = 64
write = 64
energy = 2e-12
keeps = true
source = "made up"

[[memory]]
name = "DRAM"
holds = ["weights", "inputs", "outputs"]
shared = [1, 2]
capacity = 65536
both = 64
energy = 100e-12
source = "made up"
"""
"""A file whose costs can be computed by hand."""


def four(folder, text=ARRAY):
    path = folder / "four.toml"
    path.write_text(text)
    return read_accelerator(path)


def test_a_file_is_read(tmp_path):
    made = four(tmp_path)
    assert (made.name, made.hertz, made.sides, made.order) == ("four", 1e6, (4, 4), ("x",))
    registers, buffer, dram = made.buffers
    assert (registers.shared, registers.capacity) == ((), 1)
    assert (buffer.keeps, dram.one_port, dram.read, dram.write) == (True, True, 64, 64)
    assert dict(made.sources)["memory.DRAM"] == "made up"


def test_inputs_and_outputs_stay_where_they_fit_together(tmp_path):
    made = four(tmp_path)
    assert made.home(512, 512).name == "buffer"
    assert made.home(512, 513).name == "DRAM"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("hertz = 1e6", "", "clock.hertz"),
        ("hertz = 1e6", "hertz = -1e6", "clock.hertz"),
        ("hertz = 1e6", "hertz = nan", "clock.hertz"),
        ("sides = [4, 4]", "sides = [4, 0]", "array.sides"),
        ("sides = [4, 4]", "sides = [4, 4, 4]", "array.sides"),
        ("sides = [4, 4]", "sides = [4, 100000]", "array.sides"),
        ('order = ["x"]', 'order = ["inputs"]', "array.order"),
        ('order = ["x"]', 'order = ["width"]', "array.order"),
        ("systolic = false", 'systolic = "no"', "array.systolic"),
        ('["inputs"]]', "[]]", "array.unroll"),
        ("energy = 1e-12", "energy = -1", "array.energy"),
        ("capacity = 1\n", "capacity = 0\n", "memory[0].capacity"),
        ("shared = []", "shared = [3]", "memory[0].shared"),
        ("both = 64", "both = 0.5", "memory[2].both"),
        ("both = 64", "", "memory[2].read"),
        ("keeps = true", "keeps = 1", "memory[1].keeps"),
        ("keeps = true", "volts = 1", "memory[1].volts"),
        ("keeps = true", "estimate = 1", "memory[1].estimate"),
        ('name = "DRAM"', 'name = "buffer"', "memory[2].name"),
        ('holds = ["weights"]', 'holds = ["kernels"]', "memory[0].holds"),
    ],
)
def test_a_wrong_figure_is_named_with_its_file(tmp_path, old, new, key):
    assert old in ARRAY
    with pytest.raises(FileError) as caught:
        four(tmp_path, ARRAY.replace(old, new, 1))
    assert key in str(caught.value)
    assert "four.toml" in str(caught.value)


def test_a_source_must_be_given(tmp_path):
    with pytest.raises(FileError, match=r"clock\.source"):
        four(tmp_path, ARRAY.replace('source = "made up"', "", 1))


def test_what_was_chosen_here_is_an_estimate(tmp_path):
    assert four(tmp_path).estimates == ()
    assert four(tmp_path, ARRAY.replace("keeps = true", "estimate = true", 1)).estimates == ("memory.buffer",)
    for made in accelerators():
        ours = {section for section, source in made.sources if "ours" in source or "the rule above" in source}
        assert ours <= set(made.estimates), made.name


def test_what_is_no_toml_is_refused(tmp_path):
    with pytest.raises(FileError, match="not TOML"):
        four(tmp_path, "name = ")


def test_the_catalogue_has_each_kind_and_its_energies_follow_horowitz():
    found = {a.name: a for a in accelerators()}
    assert set(found) == {"tpu-like", "eyeriss-like", "edge-tpu-like", "fpga-like"}
    for name, made in found.items():
        gap = 7.1 if name == "fpga-like" else 1.0
        assert made.energy == pytest.approx(gap * mac_energy("int8"), rel=0.01)
        assert made.buffers[-1].energy == pytest.approx(HOROWITZ_DRAM[0], rel=0.01)
        for buffer in made.buffers[:-1]:
            # a bank is no larger than the whole memory, and energy grows by the square root of a bank
            whole = gap * 1.25e-12 * math.sqrt(buffer.capacity / 8192)
            assert 0 < buffer.energy <= 1.03 * whole, buffer.name
        assert all(text for _, text in made.sources)


def test_peaks_are_those_published():
    found = {a.name: a for a in accelerators()}

    def tops(name):
        return 2 * found[name].sides[0] * found[name].sides[1] * found[name].hertz / 1e12

    assert tops("tpu-like") == pytest.approx(92, rel=0.01)  # Jouppi et al. 2017: 92 TOPS
    assert tops("edge-tpu-like") == pytest.approx(4, rel=0.03)  # Coral: 4 TOPS
    assert 1e3 * tops("eyeriss-like") == pytest.approx(67.2, rel=0.01)  # Chen et al. 2017: 33.6 GMAC/s at 200 MHz
