"""The page of bench/survey_table.py: its tables, what they say of the hybrid, and its chart."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import log10
from typing import Any

from bench.quantise_table import points, ranged
from bench.survey_rows import CONTROL, HYBRID, MINUTES, PRINTED

Facts = Mapping[str, Any]
SHOWN = {"resnet56": "ResNet-56", "vgg": "VGG-11", "speech": "Spoken digits", "lenet300": "LeNet-300-100",
         "lenet5": "LeNet-5"}  # fmt: skip
HEAD = ("technique", "done", "times smaller, model.onnx", "coded", "survey", "times faster", "survey", "score, proving",
        "drop, points", "survey", "broken / mended", "kB", "trained and made in, s")  # fmt: skip
SAME = 0.005
"""Drops that differ by less count as the same accuracy: a single technique may lose so much more than the hybrid."""


def report(rows: Mapping[str, Facts], about: str) -> str:
    """All tables, with how they were made and on what machine."""
    text = ["# The survey's table, measured", "", *(" ".join(part.split()) + "\n" for part in about.split("\n\n")[2:])]
    done = {name: facts for name, facts in rows.items() if facts["status"] == "done"}
    if done:
        here = next(iter(done.values()))["machine"]
        libraries = ", ".join(f"{name} {version}" for name, version in here["libraries"].items())
        text += [f"{time.strftime('%Y-%m-%d')}, {here['processor']}, {here['cores']} cores,"]
        text += [f"{', '.join(here['flags'])}, {libraries}.", "", "![Smaller and faster](survey_table.svg)", ""]
    for network in MINUTES:
        own = {name: facts for name, facts in rows.items() if facts["network"] == network}
        if own:
            text += [f"## {SHOWN[network]}", "", *table(own), "", *hybrid(list(own.values())), *told(own)]
    return "\n".join(text).rstrip() + "\n"


def table(rows: Mapping[str, Facts]) -> Iterator[str]:
    """One line for each row of a network."""
    yield "| " + " | ".join(HEAD) + " |"
    yield "|" + "---|" * len(HEAD)
    for facts in rows.values():
        yield "| " + " | ".join(cells(facts)) + " |"


def cells(facts: Facts) -> list[str]:
    """What was measured of a row; why not, where nothing was."""
    smaller, faster, drop = PRINTED[facts["technique"]]
    name = [facts["technique"], facts["peer"] or facts["level"]]
    if facts["status"] != "done":
        return [*name, f"{facts['status']}: {facts['why']}", "", smaller, "", faster, "", "", drop, "", "", ""]
    before, here = facts["original"]["bytes"], facts["proving"]
    return [
        *name,
        f"{before / facts['bytes']:.2f}",
        f"{before / facts['coded']:.2f}",
        smaller,
        ranged(facts["latency_ratio"]),
        faster,
        f"{100 * here['score']:.2f}",
        points(here["drop"]),
        drop,
        f"{here['broken']} / {here['mended']} of {here['n']:,}",
        f"{facts['bytes'] / 1000:.1f}",
        f"{facts['seconds']:.0f}",
    ]


def least(facts: Facts) -> int:
    """Bytes of the smaller of a row's two forms on disk."""
    return min(facts["bytes"], facts["coded"])


def lost(facts: Facts) -> float:
    """The drop on the proving data."""
    return float(facts["proving"]["drop"]["value"])


def against(rows: Sequence[Facts], chosen: Facts) -> Iterator[tuple[str, Facts | None, Facts | None]]:
    """For each single technique its fastest and its smallest row at a hybrid's accuracy; None where none is there."""
    single = [r for r in rows if r["status"] == "done" and r["technique"] not in (HYBRID, CONTROL) and not r["peer"]]
    for technique in dict.fromkeys(r["technique"] for r in single):
        allowed = [r for r in single if r["technique"] == technique and lost(r) <= lost(chosen) + SAME]
        fastest = max(allowed, key=lambda r: r["latency_ratio"]["value"], default=None)
        yield technique, fastest, min(allowed, key=least, default=None)


def hybrid(rows: Sequence[Facts]) -> Iterator[str]:
    """Whether a hybrid beats every single technique at the same accuracy, on time and on size."""
    for chosen in (r for r in rows if r["technique"] == HYBRID and r["status"] == "done"):
        found, level = list(against(rows, chosen)), f" {chosen['level']}" if chosen["level"] else ""
        quick = [(t, r) for t, r, _ in found if r and r["latency_ratio"]["value"] >= chosen["latency_ratio"]["value"]]
        small = [(t, r) for t, _, r in found if r and least(r) <= least(chosen)]
        never = [t for t, r, _ in found if r is None]
        yield (f"The hybrid{level} loses {100 * lost(chosen):.2f} points. At that accuracy (half a point more at most) "
               f"of {len(found)} single techniques {len(quick)} are as fast{named(quick)} and {len(small)} as small"
               f"{named(small)}; {len(never)} do not reach it{': ' * bool(never)}{', '.join(never)}.")  # fmt: skip
        yield ""


def named(found: Sequence[tuple[str, Facts]]) -> str:
    """Techniques in brackets."""
    return f" ({', '.join(name for name, _ in found)})" if found else ""


def told(rows: Mapping[str, Facts]) -> Iterator[str]:
    """Recipes as they were given, with the steps that the time allowed."""
    for name, facts in rows.items():
        if facts["status"] == "done" and facts["recipe"]:
            counted = [steps(step) for step in facts["plan"]]
            trained = f" ({', '.join(f'{n:,}' for n in counted if n)} steps)" if any(counted) else ""
            yield f"- {name}: `{'`, `'.join(facts['recipe'])}`{trained}"
    yield ""


def steps(step: Facts) -> int:
    """Of a plan's step: how long it trains."""
    return int(step.get("steps") or (step.get("train") or {}).get("steps") or 0)


COLOURS = ("#0a8f7f", "#c4601d", "#6c54c4", "#b03060", "#4a7a2a", "#2f6db5", "#8a6d00", "#7d4f50", "#5b7083", "#a14fb0",
           "#d4a017", "#39a0a0", "#222222")  # fmt: skip
WIDE, HIGH, LEFT = 400, 300, 56
MOST_SMALLER, MOST_FASTER = 100.0, 30.0


def chart(rows: Mapping[str, Facts]) -> str:
    """Times smaller against times faster, both logarithmic, a panel for each network; hollow above 3 points of drop."""
    kinds = [t for t in PRINTED if t != CONTROL]
    colour = dict(zip(kinds, COLOURS, strict=True))
    parts: list[str] = []
    shown = [n for n in MINUTES if any(f["network"] == n and f["status"] == "done" for f in rows.values())]
    for k, network in enumerate(shown):
        x, y = LEFT + (k % 2) * (WIDE + 70), 40 + (k // 2) * (HIGH + 70)
        parts += panel(network, x, y)
        for name, facts in rows.items():
            if facts["network"] == network and facts["status"] == "done" and facts["technique"] != CONTROL:
                parts.append(dot(name, facts, x, y, colour[facts["technique"]]))
    bottom = 40 + -(-len(shown) // 2) * (HIGH + 70)
    for k, kind in enumerate(kinds):
        x, y = LEFT + (k % 4) * 210, bottom + 20 + (k // 4) * 22
        parts.append(
            f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{colour[kind]}"/><text x="{x + 10}" y="{y}">{kind}</text>'
        )
    style = "text{font:12px system-ui,sans-serif;fill:#57606a}.name{font-size:14px;font-weight:600}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDE + 160} {bottom + 90}">'
            f"<style>{style}</style>{''.join(parts)}</svg>\n")  # fmt: skip


def panel(network: str, x: int, y: int) -> Iterator[str]:
    """The frame of a network's panel, with its grid."""
    yield f'<rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" fill="none" stroke="#afb8c1"/>'
    yield f'<text class="name" x="{x}" y="{y - 8}">{SHOWN[network]}</text>'
    yield f'<text x="{x + WIDE - 88}" y="{y + HIGH + 32}">times smaller</text>'
    yield f'<text transform="translate({x - 34} {y + 76}) rotate(-90)">times faster</text>'
    for value in (1, 2, 5, 10, 20, 50, 100):
        across, up = place(value, 1.0, x, y)[0], place(1.0, value, x, y)[1]
        yield f'<text x="{across - 6:.0f}" y="{y + HIGH + 16}">{value}</text>'
        if value <= MOST_FASTER:
            yield f'<text x="{x - 22}" y="{up + 4:.0f}">{value}</text>'
            yield f'<path d="M{x} {up:.1f}h{WIDE}" stroke="#eaeef2"/>'


def dot(name: str, facts: Facts, x: int, y: int, colour: str) -> str:
    """A row as a dot with its name as a tooltip; other tools' are squares."""
    before, drop = facts["original"]["bytes"], lost(facts)
    smaller, faster = before / least(facts), facts["latency_ratio"]["value"]
    across, up = place(smaller, faster, x, y)
    look = f'fill="{colour if drop <= 0.03 else "white"}" stroke="{colour}" stroke-width="1.5"'
    text = f"{name}: {smaller:.1f} times smaller, {faster:.2f} times faster, drop {100 * drop:.2f} points"
    radius = 7 if facts["technique"] == HYBRID else 5
    shape = f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{radius}" {look}>'
    if facts["peer"]:
        shape = f'<rect x="{across - 4:.1f}" y="{up - 4:.1f}" width="8" height="8" {look}>'
    return f"{shape}<title>{escape(text)}</title></{'rect' if facts['peer'] else 'circle'}>"


def place(smaller: float, faster: float, x: int, y: int) -> tuple[float, float]:
    """A point of a panel; what is below 0.7 or beyond the frame stands at its border."""
    across = min(max(log10(smaller / 0.7) / log10(MOST_SMALLER / 0.7), 0.0), 1.0)
    up = min(max(log10(faster / 0.7) / log10(MOST_FASTER / 0.7), 0.0), 1.0)
    return x + WIDE * across, y + HIGH * (1 - up)
