"""Plan: the techniques with their settings, as JSON. Decisions, not procedures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.core.errors import FileError

SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """What to do to a network, replayable: indices and step counts, never ratios or seconds.

    Args:
        steps: each `{"technique": NAME, setting: value, ...}`, in order; none exports the original.
        model: hash of the network that the plan was made for, or None for any.
    """

    steps: tuple[Mapping[str, Any], ...] = ()
    model: str | None = None

    def json(self) -> dict[str, Any]:
        """The form of plan.json."""
        head: dict[str, Any] = {"schema": SCHEMA} | ({"model": self.model} if self.model else {})
        return {**head, "steps": [dict(s) for s in self.steps]}

    @staticmethod
    def of_json(data: Any, where: object = "plan.json") -> Plan:
        """Check and read what `json` writes, from a file that may come from a stranger."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            got = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise FileError("plan: schema", where=where, got=got, expected=SCHEMA)
        unknown = set(data) - {"schema", "model", "steps"}
        if unknown:
            raise FileError("plan", where=where, got=f"unknown field {sorted(unknown)[0]!r}")
        steps = data.get("steps")
        if not isinstance(steps, list) or not all(
            isinstance(s, dict) and isinstance(s.get("technique"), str) for s in steps
        ):
            raise FileError("plan: steps", where=where, expected='a list of {"technique": NAME, ...}')
        if not isinstance(data.get("model"), (str, type(None))):
            raise FileError("plan: model", where=where, expected="a hash, or nothing")
        return Plan(tuple(steps), data.get("model"))
