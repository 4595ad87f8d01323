"""Latency on a device nobody has measured, from 10 architectures timed on it: HELP's six unseen devices.

    python bench/few_shot_latency.py [--seeds N] [--measured K]

The table is NAS-Bench-201's 15,625 cells on 27 devices (`nasbench201.npz` in TRIMTAB_DATA or ../shared/data). Neither
the six devices nor any Titan RTX column is trained on. What has to be set is set by leaving one family of training
devices out at a time; the six decide no setting. The table goes to bench/results/few_shot_latency.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trimtab.hardware.machine import machine  # noqa: E402
from trimtab.profile.transfer import choose, fit_prior, predict  # noqa: E402

UNSEEN = ("titan_rtx_256", "gold_6226", "fpga", "pixel2", "raspi4", "eyeriss")
HELP_TRAINS_ON = (
    "1080ti_1", "1080ti_32", "1080ti_256", "silver_4114", "silver_4210r", "samsung_a50", "pixel3", "essential_ph_1",
    "samsung_s7",
)  # fmt: skip
NEAR_ZERO = 2.0
"""ms on raspi4: 284 cells are below it, all with an output that does not depend on the input; none is near it."""
POOL = 1000
"""Random cells that a seed of the designed choice may choose from, to see how it varies."""
LEFT_OUT_SEEDS = 5
KINDS = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Table:
    """Latencies in ms [cells, devices], the devices' names, features by name, and cells whose output has an input."""

    latency: Floats
    devices: tuple[str, ...]
    features: dict[str, Floats]
    connected: Indices

    def of(self, names: Sequence[str]) -> Floats:
        """[cells, names]."""
        return self.latency[:, [self.devices.index(n) for n in names]]


@dataclass(frozen=True)
class Method:
    """Trained on the tables of some devices: which cells to measure out of a pool, and what the others then take."""

    choose: Callable[[int, Indices], Indices] | None
    predict: Callable[[Indices, Floats], tuple[Floats, Floats | None]]


Train = Callable[[Table, Sequence[str]], Method]


def read() -> Table:
    """The table, with counts of each operation and the operation on each edge as features."""
    path = Path(os.environ.get("TRIMTAB_DATA") or ROOT.parent / "shared" / "data") / "nasbench201.npz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: set TRIMTAB_DATA to the folder that holds nasbench201.npz")
    data = np.load(path, allow_pickle=False)
    names, operations = [str(n) for n in data["op_names"]], data["ops"]
    each = [operations == names.index(kind) for kind in KINDS]
    counts = np.stack([e.sum(axis=1) for e in each], axis=1).astype(float)  # [cells, 4]
    totals = np.column_stack([np.log(data["macs"]), np.log(data["params"])])
    reached = np.zeros((len(operations), 4), dtype=bool)
    reached[:, 0] = True
    for edge, (to, source) in enumerate(EDGES):  # in order of `to`, so that each source is settled before its use
        reached[:, to] |= reached[:, source] & (operations[:, edge] != names.index("none"))
    features = {
        "counts of operations": counts,
        "counts, log MACs, log parameters": np.column_stack([counts, totals]),
        "operation on each edge": np.concatenate(each, axis=1).astype(float),
    }
    devices = tuple(str(c) for c in data["latency_columns"])
    return Table(data["latency"].astype(float), devices, features, np.flatnonzero(reached[:, 3]))


def ours(features: str, latents: int) -> Train:
    """Our prior over devices."""

    def train(table: Table, names: Sequence[str]) -> Method:
        prior = fit_prior(table.of(names), table.features[features], latents)

        def answer(index: Indices, times: Floats) -> tuple[Floats, Floats | None]:
            found = predict(prior, index, times)
            return found.latency, found.deviation

        return Method(lambda k, pool: choose(prior, k, pool), answer)

    return train


def components(count: int, strength: float) -> Train:
    """The plain way: principal components of the other devices' log latencies, and ridge regression on them."""

    def train(table: Table, names: Sequence[str]) -> Method:
        logs = np.log(table.of(names))
        left, size, _ = np.linalg.svd((logs - logs.mean(axis=0)) / logs.std(axis=0), full_matrices=False)
        basis = left[:, :count] * size[:count] / np.sqrt(len(names))

        def answer(index: Indices, times: Floats) -> tuple[Floats, Floats | None]:
            rows = basis[index] - basis[index].mean(axis=0)
            gram = rows.T @ rows + strength * np.eye(count)
            return basis @ np.linalg.solve(gram, rows.T @ np.log(times)), None

        return Method(None, answer)

    return train


def score(table: Table, device: str, method: Method, index: Indices) -> tuple[float, float]:
    """Spearman over the cells that were not measured, and the share of them within two deviations."""
    truth = table.of([device])[:, 0]
    latency, deviation = method.predict(index, truth[index])
    counted = np.ones(len(truth), dtype=bool)
    counted[index] = False
    counted &= truth >= NEAR_ZERO if device == "raspi4" else True
    inside = np.nan if deviation is None else np.mean(np.abs(latency - truth)[counted] < 2 * deviation[counted])
    return float(spearmanr(latency[counted], truth[counted])[0]), float(inside)


def family(device: str) -> str:
    """Devices that are left out together: all batch sizes of a GPU, both chips of a kind, both GPUs named Titan X."""
    first = device.split("_")[0]
    return "titanx" if first == "titanxp" else first


def left_out(table: Table, names: Sequence[str], train: Train, seeds: int, k: int) -> tuple[float, float]:
    """Mean Spearman over families of training devices, each predicted by the others: designed and random choice."""
    designed, random = [], []
    for group in sorted({family(n) for n in names}):
        method = train(table, [n for n in names if family(n) != group])
        for drawn, pick in ((designed, method.choose), (random, draw)):
            found = [
                score(table, name, method, pick(k, pool(table, seed)))[0]
                for name in names
                if family(name) == group
                for seed in range(seeds)
                if pick is not None
            ]
            drawn.append(np.mean(found) if found else np.nan)
    return float(np.mean(designed)), float(np.mean(random))


def pool(table: Table, seed: int) -> Indices:
    """Connected cells in random order, as many as may be chosen from."""
    return np.random.default_rng(seed).choice(table.connected, POOL, replace=False)


def draw(k: int, cells: Indices) -> Indices:
    """The random choice: the first of the cells, which are in random order."""
    return cells[:k]


def interval(values: Floats) -> str:
    """Mean and its 95 % interval over seeds."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


def main() -> None:
    """Settle the settings on the training devices, then measure the six, and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--measured", type=int, default=10)
    given = parser.parse_args()
    table, start = read(), time.perf_counter()
    trained = [d for d in table.devices if d not in UNSEEN and not d.startswith("titan_rtx")]
    settings, best = settle(table, trained, given.measured)
    ridge, plain = settle_ridge(table, trained, given.measured)
    sets = {f"all {len(trained)}": trained, f"HELP's {len(HELP_TRAINS_ON)}": list(HELP_TRAINS_ON)}
    results = {name: unseen(table, names, best, given) for name, names in sets.items()}
    write([*settings, ridge], results, unseen(table, trained, plain, given), given, time.perf_counter() - start)


def settle(table: Table, names: Sequence[str], k: int) -> tuple[list[str], Train]:
    """Rows of the table of settings, and the setting with the best mean of designed and random choice."""
    rows, best, top = [], None, -np.inf
    for features in table.features:
        for latents in (0, 1, 2):
            train = ours(features, latents)
            designed, random = left_out(table, names, train, LEFT_OUT_SEEDS, k)
            rows.append(f"| {features}, {latents} latents | {designed:.4f} | {random:.4f} |")
            print(rows[-1], flush=True)
            if designed + random > top:
                best, top = train, designed + random
    assert best is not None
    return rows, best


def settle_ridge(table: Table, names: Sequence[str], k: int) -> tuple[str, Train]:
    """The same for the plain way, so that it is given the same care."""
    tried = {
        (count, strength): left_out(table, names, components(count, strength), LEFT_OUT_SEEDS, k)[1]
        for count in (2, 3, 5, 8)
        for strength in (0.01, 0.1, 1.0)
    }
    count, strength = max(tried, key=lambda key: tried[key])
    random = tried[count, strength]
    row = f"| PCA + ridge, best of {len(tried)}: {count} components, ridge {strength:g} | - | {random:.4f} |"
    print(row, flush=True)
    return row, components(count, strength)


def unseen(table: Table, names: Sequence[str], train: Train, given: argparse.Namespace) -> dict[str, Any]:
    """On the six: the one designed choice, the designed choice from pools, and the random choice [seeds, devices]."""
    method, found = train(table, names), {}
    pools = [pool(table, seed) for seed in range(given.seeds)]
    ways = {"random": [draw(given.measured, p) for p in pools]}
    if method.choose:
        ways["designed"] = [method.choose(given.measured, table.connected)]
        ways["pools"] = [method.choose(given.measured, p) for p in pools]
    for way, choices in ways.items():
        found[way] = np.array([[score(table, d, method, c) for d in UNSEEN] for c in choices])
    return found


def write(settings: list[str], results: dict[str, Any], plain: Any, given: argparse.Namespace, took: float) -> None:
    """Both tables as Markdown."""
    here = machine()
    first, others = next(iter(results.values())), list(results)[1:]
    text = [
        "# Latency on an unseen device from a few measurements",
        "",
        f"`python bench/few_shot_latency.py`, {time.strftime('%Y-%m-%d')}, on {here.processor}, {here.cores} cores,"
        f" in {took:.0f} s.",
        f"NAS-Bench-201's latency table; {given.measured} cells measured on each unseen device; Spearman's rank",
        "correlation over the cells that were not measured (raspi4: without the 284 degenerate ones below 2 ms).",
        "Source of all figures: predicted, against latencies that others measured. Designed: the one choice from all",
        f"cells, the same for the six devices and made without them. Designed from pools: the same from {POOL} random",
        f"cells a seed. Random: no design. Both are means over {given.seeds} seeds with their 95 % interval.",
        "",
    ]
    for name in results:
        text += unseen_table(name, results[name], plain if name not in others else None)
    text += [
        "Settings, by leaving out each family of the training devices in turn (mean Spearman over families):",
        "",
        "| setting | designed from pools | random |",
        "|---|---|---|",
        *settings,
    ]
    lowest = first["random"][:, :, 0].mean(axis=1).min()
    text += ["", f"Lowest mean over the six of any of the {given.seeds} random choices: {lowest:.3f}."]
    out = ROOT / "bench" / "results" / "few_shot_latency.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def unseen_table(name: str, found: dict[str, Any], plain: dict[str, Any] | None) -> list[str]:
    """One table of the six, for one set of training devices."""
    head, rule = "| unseen device | designed | designed from pools | random |", "|---|---|---|---|"
    head, rule = (head + " within 2 deviations |", rule + "---|")
    head, rule = (head + " PCA + ridge, random |", rule + "---|") if plain else (head, rule)
    text = [f"Trained on {name} devices; HELP (Lee et al. 2021) prints a mean of 0.932 from its own 9:", "", head, rule]
    for at in [*range(len(UNSEEN)), slice(None)]:
        cells = {way: values[:, at, :].reshape(len(values), -1, 2).mean(axis=1) for way, values in found.items()}
        label = "**mean**" if isinstance(at, slice) else UNSEEN[at]
        row = f"| {label} | {cells['designed'][0, 0]:.3f} | {interval(cells['pools'][:, 0])} |"
        row += f" {interval(cells['random'][:, 0])} | {100 * cells['designed'][0, 1]:.0f} % |"
        if plain:
            row += f" {interval(plain['random'][:, at, 0].reshape(len(plain['random']), -1).mean(axis=1))} |"
        text.append(row)
    return [*text, ""]


if __name__ == "__main__":
    main()
