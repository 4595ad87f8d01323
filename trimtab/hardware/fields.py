"""Fields: the tables and figures of a description in TOML, checked; an error names the file and the key."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.core.errors import FileError

_BYTES = 1 << 20
"""The largest file that is read."""


def toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, which may come from a stranger.

    Raises:
        FileError: it is missing, too large or no TOML.
    """
    try:
        size = path.stat().st_size
        if size > _BYTES:
            raise FileError("device", where=path, got=f"{size} bytes", expected=f"at most {_BYTES}")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(
            "device: cannot be read", where=path, got=error.strerror or error, expected="a TOML file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise FileError("device: not TOML", where=path, got=error) from error


def section(
    data: Mapping[str, Any],
    key: str,
    where: str,
    sources: dict[str, str],
    wanted: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    """A table of the file whose keys are as expected; its source is noted."""
    found = data[key]
    if not isinstance(found, dict):
        raise wrong(where, key, repr(found)[:80], f"a table [{key}]")
    known(found, where, f"{key}.", (*wanted, "source"), (*optional, "estimate"))
    flag(found, "estimate", where, f"{key}.")
    sources[key] = text(found, "source", where, f"{key}.")
    return found


def tables(entries: Any, key: str, where: str) -> list[dict[str, Any]]:
    """The tables that an array of tables holds."""
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise wrong(where, key, repr(entries)[:80], f"tables [[{key}]]")
    return entries


def known(
    table: Mapping[str, Any], where: str, prefix: str, wanted: tuple[str, ...], optional: tuple[str, ...]
) -> None:
    """FileError where a wanted key is missing or an unknown one is there."""
    for key in wanted:
        if key not in table:
            raise wrong(where, f"{prefix}{key}", "nothing", "it to be given")
    for key in table:
        if key not in (*wanted, *optional):
            raise wrong(where, f"{prefix}{key[:80]}", "an unknown key", f"one of {', '.join((*wanted, *optional))}")


def figure(table: Mapping[str, Any], key: str, where: str, prefix: str = "", *, zero: bool = False) -> float:
    """A finite number above 0, or from 0 on."""
    value = table[key]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise wrong(
            where, f"{prefix}{key}", repr(value)[:80], f"a finite number {'of 0 or more' if zero else 'above 0'}"
        )
    return float(value)


def flag(table: Mapping[str, Any], key: str, where: str, prefix: str = "") -> bool:
    """True or false; false where the key is missing."""
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise wrong(where, f"{prefix}{key}", repr(value)[:80], "true or false")
    return value


def estimates(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The sections of a checked file whose figures are estimated, as `estimate = true` says: `energy`, `memory.L2`."""
    found = [key for key, value in data.items() if isinstance(value, dict) and value.get("estimate")]
    for key, value in data.items():
        entries = value if isinstance(value, list) else []
        found += [f"{key}.{entry['name']}" for entry in entries if entry.get("estimate")]
    return tuple(found)


def text(table: Mapping[str, Any], key: str, where: str, prefix: str = "") -> str:
    """A text that is not empty, in one line."""
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise wrong(where, f"{prefix}{key}", repr(value)[:80], "a text that is not empty")
    return " ".join(value.split())


def wrong(where: str, key: str, got: str, expected: str) -> FileError:
    """The error for a key of a file."""
    return FileError(f"device: {key}", where=where, got=got, expected=expected)
