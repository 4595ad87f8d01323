"""docs/compression.md: every technique is on it, and every recipe that it shows is one, in an order that is taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trimtab.compress.order import check_order
from trimtab.compress.plan import recipe, techniques

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "compression.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"trimtab compress .*?--out \S+", PAGE, re.DOTALL)
ROWS = [line.split(" | ") for line in PAGE.splitlines() if line.startswith(("| [`", "| `")) and line.count(" | ") == 4]


def test_there_are_commands_and_rows() -> None:
    assert len(COMMANDS) >= 8
    assert len(ROWS) >= 10


def test_every_technique_has_a_row() -> None:
    named = {name.replace("_", "") for row in ROWS for name in re.findall(r"`(\w+)`", row[0])}
    assert {name.lower() for name in techniques()} <= named


@pytest.mark.parametrize("command", COMMANDS)
def test_the_steps_of_a_command_are_recipes_in_an_order_that_is_taken(command: str) -> None:
    texts = re.findall(r"--with '([^']*)'", command)
    assert texts
    check_order([recipe(text) for text in texts])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_example_of_a_row_is_a_recipe(row: list[str]) -> None:
    text = re.findall(r"`([^`]*)`", row[4])[0]
    assert type(recipe(text)).__name__.lower() in row[0].replace("_", "")
