"""The tables of bench/quantise.py as Markdown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

Facts = Mapping[str, Any]
HEADS = {
    "int8": ("8 bits after training", "drop at most 0.4 point at the upper end of its interval, under 60 s, and as "
             "fast as the others in the same runtime"),
    "calibration": ("8 bits, by how ranges are chosen", "chosen on the choosing images"),
    "w4a8": ("4-bit weights, 8-bit activations after training", "drop at most 1.0 point"),
    "w4a4": ("4-bit weights and activations, trained", "drop at most 2.0 points"),
    "binary": ("Binary weights, trained", "binarised tensors at least 28 times smaller, the file 18 times"),
    "mixed": ("2, 4 or 8 bits for each layer, 4 on average", "better than 4 for all at the same size, on every seed"),
}  # fmt: skip
SHOWN = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def report(rows: Mapping[str, Facts], about: str) -> str:
    """All tables, with how they were made and on what machine."""
    text = ["# Quantisation", "", *(" ".join(part.split()) + "\n" for part in about.split("\n\n")[2:])]
    if rows:
        here = next(iter(rows.values()))["machine"]
        libraries = ", ".join(f"{name} {version}" for name, version in here["libraries"].items())
        flags = ", ".join(here["flags"])
        text += [f"{time.strftime('%Y-%m-%d')}, {here['processor']}, {here['cores']} cores, {flags}, {libraries}.", ""]
    for kind, (title, wanted) in HEADS.items():
        chosen = {name: facts for name, facts in rows.items() if facts["kind"] == kind}
        if chosen:
            text += [f"## {title}", "", f"To reach: {wanted}.", "", *table(chosen), ""]
            text += sorted({line for name, facts in chosen.items() for line in told(name, facts)})
    return "\n".join(text).rstrip() + "\n"


def table(rows: Mapping[str, Facts]) -> Iterator[str]:
    """One line for each file in each runtime."""
    head = ("row", "made by", "s", "runs in", "integer layers", "accuracy, proving", "drop, proving, points",
            "broken / mended", "drop, choosing", "drop, all 10,000", "latency ratio", "over the best other here", "kB",
            "times smaller")  # fmt: skip
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for name, facts in rows.items():
        first = facts["runs"][0]["bytes"]
        for run in facts["runs"]:
            yield "| " + " | ".join([name, *cells(run, first)]) + " |"


def cells(run: Facts, first: int) -> list[str]:
    """What was measured of one file in one runtime.

    Args:
        run: its facts.
        first: bytes of the original.
    """
    here = run["proving"]
    return [
        run["name"],
        f"{run['seconds']:.0f}" if run["name"] != "original" else "",
        SHOWN[run["runtime"]],
        run["integer"],
        f"{100 * here['accuracy']:.2f}",
        points(here["drop"]),
        f"{here['broken']} / {here['mended']}",
        points(run["choosing"]["drop"]),
        points(run["all"]["drop"]),
        ranged(run["latency_ratio"]),
        ranged(min(run["lead"].values(), key=lambda lead: lead["value"])) if run["lead"] else "",
        f"{run['bytes'] / 1000:.1f}",
        f"{first / run['bytes']:.2f}",
    ]


def points(drop: Facts) -> str:
    """A drop in percentage points with its interval."""
    low, high = drop.get("interval") or (float("nan"),) * 2
    return f"{100 * drop['value']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def ranged(figure: Facts) -> str:
    """A ratio with its interval."""
    low, high = figure["interval"]
    shaky = " (unsteady)" if "unreliable" in figure["how"] else ""
    return f"{figure['value']:.2f} [{low:.2f}, {high:.2f}]{shaky}"


def told(name: str, facts: Facts) -> Iterator[str]:
    """Settings, and how far the weights themselves shrank."""
    original = facts["runs"][0]["weights"]
    for run in facts["runs"][1:]:
        if run["settings"] is None or run["runtime"] != "onnxruntime":
            continue
        settings = {key: value for key, value in run["settings"].items() if key != "technique" and key != "layers"}
        yield f"- {name}, {run['name']}: `Quantise({', '.join(f'{k}={v!r}' for k, v in settings.items())})`."
        if facts["kind"] in ("w4a8", "binary", "mixed"):
            before, after, scales = shrunk(original, run["weights"])
            yield (f"- {name}, {run['name']}: {before / after:.1f} times smaller weights than fp32, "
                   f"{before / (after + scales):.1f} with their scales.")  # fmt: skip


def shrunk(original: Mapping[str, int], packed: Mapping[str, int]) -> tuple[int, int, int]:
    """Bytes of the weights that were made smaller, before and after, and of their scales."""
    smaller = [k for k in original if k.endswith(".weight") and packed.get(k, original[k]) < original[k]]
    scales = sum(packed.get(f"{k}_scale", 0) for k in smaller)
    return sum(original[k] for k in smaller), sum(packed[k] for k in smaller), scales
