"""A board with round figures, for tests."""

from __future__ import annotations

from pathlib import Path

BOARD = """
name = "board"
title = "A board with round figures"
family = "mcu"

[peak]
int8 = 100e6
fp32 = 50e6
source = "made up"

[energy]
int8 = 1e-10
fp32 = 4e-10
source = "made up"

[[memory]]
name = "sram"
capacity = 1000
bandwidth = 100e6
energy = 1e-11
holds = ["activations"]
clocked = true
source = "made up"

[[memory]]
name = "flash"
capacity = 100_000
bandwidth = 10e6
energy = 2e-11
source = "made up"

[static]
watts = 0.01
source = "made up"

[overhead]
seconds = 1e-6
source = "made up"

[[operating]]
volt = 1.2
hertz = 100e6
source = "made up"

[[operating]]
volt = 0.6
hertz = 25e6
source = "made up"
"""


def integer_only(text: str = BOARD) -> str:
    """The board without fp32."""
    return text.replace("fp32 = 50e6\n", "").replace("fp32 = 4e-10\n", "")


def limited(sram: float, flash: float, text: str = BOARD) -> str:
    """The board with limits to what its memories hold."""
    return f'{text}\n[limits]\nsram = {sram}\nflash = {flash}\nsource = "made up"\n'


def written(folder: Path, text: str = BOARD) -> Path:
    """The board as a file."""
    path = folder / "board.toml"
    path.write_text(text)
    return path
