"""The survey's table of techniques, measured: how much smaller, how much faster, at what drop of accuracy.

    python bench/survey_table.py [--only NAME ...] [--minutes 10] [--seconds 8] [--runs FOLDER] [--time] [--table]

Every row has a folder of its own under `--runs`; a row that is done is not done again, a training that was killed goes
on, and `--table` writes the table of what is there. A technique that is not there yet is a row that says so. The table
goes to bench/results/survey_table.md, its chart beside it.

All rows of a network train for the same time, the recovery of a hybrid's last step included; so does the control, the
original given the same training. A drop counts against the better of the original and its control, on data that
nothing was chosen on, paired, with its bootstrap 95 % interval. Sizes are bytes on disk of the whole file: model.onnx,
and model.trim, the same file entropy-coded. Times are in ONNX Runtime, batch 1, one thread, interleaved with the
original's; of a network that does less for some inputs, over real inputs in turn. Other tools' networks are recovered
by the same training for the same time, and written by the same exporter.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.survey_files import MODEL, Missing, compared, make, measure, prepared_of  # noqa: E402
from bench.survey_page import chart, report  # noqa: E402
from bench.survey_rows import CONTROL, MINUTES, ROWS, Row  # noqa: E402
from trimtab.core.errors import TrimtabError  # noqa: E402
from trimtab.core.store import read_json, write_json  # noqa: E402
from trimtab.pipeline.prepare import Prepared  # noqa: E402
from trimtab.run.export import export_onnx  # noqa: E402

RESULT = ROOT / "bench" / "results" / "survey_table.md"


def main() -> None:
    """Do the rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(MINUTES), metavar="ROW", help="names of rows or of networks")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training for a row of ResNet-56 or VGG")
    parser.add_argument("--seconds", type=float, default=8.0, help="to time each row for")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "survey")
    parser.add_argument("--result", type=Path, default=RESULT, help="the table; its chart has the same name")
    parser.add_argument("--time", action="store_true", help="time and compare rows that are done once more")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, run nothing")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and their recipes")
    options = parser.parse_args()
    chosen = rows(options.only)
    if options.list:
        print("\n".join(f"{row.name}: {', '.join([row.peer or '', *(p.text for p in row.parts)])}" for row in chosen))
        return
    for row in () if options.table else chosen:
        run(row, options)
    paths = {name: options.runs / name / "facts.json" for name in ROWS}
    facts = {name: read_json(path) for name, path in paths.items() if path.exists()}
    text = report(facts, __doc__ or "")
    options.result.parent.mkdir(exist_ok=True)
    options.result.write_text(text, encoding="utf-8")
    options.result.with_suffix(".svg").write_text(chart(facts), encoding="utf-8")
    print(text)


def rows(names: list[str]) -> list[Row]:
    """Rows by their own names or by their networks', each network's control before the others."""
    unknown = [name for name in names if name not in ROWS and name not in MINUTES]
    if unknown:
        sys.exit(f"survey_table: no row or network {unknown[0]}; --list shows them")
    found = [row for row in ROWS.values() if row.name in names or row.network in names]
    controls = [row for row in ROWS.values() if row.technique == CONTROL and row.network in {r.network for r in found}]
    return [*controls, *(row for row in found if row.technique != CONTROL)]


def run(row: Row, options: argparse.Namespace) -> None:
    """One row into its folder, unless it is there; what fails is told in it and tried again the next time."""
    folder = options.runs / row.name
    done = folder / "facts.json"
    if done.exists() and read_json(done)["status"] == "done" and not options.time:
        return
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"network": row.network, "technique": row.technique, "level": row.level}
    facts |= {"peer": row.peer, "minutes": options.minutes * MINUTES[row.network]}
    facts["recipe"] = [part.text for part in row.parts]
    try:
        facts |= {"status": "done", **finished(row, folder, options)}
    except Missing as missing:
        facts |= {"status": "missing", "why": f"{missing} is not among the techniques"}
    except (TrimtabError, ImportError) as error:
        facts |= {"status": "failed", "why": str(error)}
    write_json(done, facts)
    told = facts.get("why") or f"{facts['latency_ratio']['value']:.2f} times faster, {facts['bytes']} bytes"
    print(f"{row.name}: {facts['status']}: {told}", file=sys.stderr, flush=True)


def finished(row: Row, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What was made and measured of a row."""
    prepared = prepared_of(row, options.runs, progress(row.name))
    original = original_of(row, prepared, options.runs)
    made = make(row, prepared, folder, options.minutes)
    found = measure(prepared, original, folder / MODEL, folder, options.seconds)
    control = options.runs / next(r.name for r in ROWS.values() if (r.network, r.technique) == (row.network, CONTROL))
    known = [(original, original.parent)]
    known += [(control / MODEL, control)] if (control / MODEL).exists() and row.technique != CONTROL else []
    found["original"] = {"bytes": original.stat().st_size}
    found |= compared(prepared, known, folder / MODEL, folder)
    return {**made, **found}


def original_of(row: Row, prepared: Prepared, runs: Path) -> Path:
    """The original's file, written once for each network."""
    file = runs / f"{row.network}-original" / "original.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        export_onnx(prepared.context.teacher, file)
    return file


def progress(name: str) -> Callable[[str, int, int], None]:
    """Prints every 10 s how far a row is."""
    last = [0.0]

    def show(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 10:
            last[0] = time.monotonic()
            print(f"{name}: {what} {done}/{total}", file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    main()
