"""Devices by a user's own file: a board by its data sheet, an array of multipliers."""

import pytest

from tests.hardware.boards import BOARD, written
from tests.hardware.test_accelerator import ARRAY
from trimtab.core.errors import FileError, RuntimeMissing
from trimtab.core.target import Target, parse
from trimtab.pipeline.devices import device_of, estimates_of, machine_of
from trimtab.run.described import Described, estimated
from trimtab.run.zigzag import ZigZag


def own(folder, text):
    path = folder / "own.toml"
    path.write_text(text)
    return parse(str(path))


def test_a_file_with_an_array_is_an_accelerator(tmp_path):
    pytest.importorskip("zigzag")
    target = own(tmp_path, ARRAY)
    found = device_of(target)
    assert isinstance(found, ZigZag)
    assert (found.name, found.accelerator.sides) == (target.device, (4, 4))
    assert found.version() != device_of(own(tmp_path, ARRAY.replace("hertz = 1e6", "hertz = 2e6"))).version()


def test_any_other_file_is_a_board(tmp_path):
    found = device_of(Target(str(written(tmp_path))))
    assert isinstance(found, Described)
    assert (found.description.name, found.name) == ("board", str(tmp_path / "board.toml"))
    assert machine_of(found) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ARRAY.replace("hertz = 1e6", "hertz = -1"), r"clock\.hertz: .*own\.toml: got -1"),
        (ARRAY.replace("[array]", "[arrays]"), r"own\.toml: got name, title, clock, arrays, memory, expected \[peak\]"),
        (ARRAY + "\n[clocks]\nhertz = 1\n", r"clocks: .*unknown key"),
        (BOARD.replace("watts = 0.01", ""), r"static\.watts: .*own\.toml: got nothing, expected it to be given"),
        (BOARD + "\n[array]\nsides = [1, 1]\n", r"clock: .*own\.toml: got nothing"),
        ("", r"own\.toml: got an empty file, expected \[peak\] and the rest"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, told):
    with pytest.raises(FileError, match=told) as caught:
        device_of(own(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_zigzag_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r"zigzag is not installed.*trimtab\[accelerator\]"):
        device_of(own(tmp_path, ARRAY))


def test_estimated_figures_are_told():
    assert "energy" in estimates_of(device_of(Target("h100")))
    assert estimates_of(device_of(Target("cpu"))) == ()
    assert estimated(()) == ()
    assert estimated(("energy", "memory.L2"))[0].endswith("sources say how: energy, memory.L2.")
