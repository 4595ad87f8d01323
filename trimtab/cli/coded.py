"""Coded: encode and decode, which turn an ONNX file into an entropy-coded one and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.options import Json
from trimtab.cli.show import as_json

Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The file to write; beside FILE if left out.")]


def encode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file.", show_default=False)],
    out: Out = None,
    json: Json = False,
) -> int:
    """Write an ONNX file entropy-coded, as a .trim file that decodes to what it computes."""
    from trimtab.run.trim_file import write_trim

    return _said(file, write_trim(file, out or file.with_suffix(".trim")), json)


def decode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .trim file.", show_default=False)],
    out: Out = None,
    json: Json = False,
) -> int:
    """Write the ONNX file that a .trim file holds."""
    from trimtab.core.store import write_atomic
    from trimtab.run.trim_file import read_trim

    data, target = read_trim(file), out or file.with_suffix(".onnx")
    write_atomic(target, lambda path: path.write_bytes(data))
    return _said(file, target, json)


def _said(source: Path, target: Path, json: bool) -> int:
    sizes = [path.stat().st_size for path in (source, target)]
    if json:
        as_json({"file": str(target), "bytes_before": sizes[0], "bytes_after": sizes[1]})
    else:
        print(f"{target}  {sizes[0]:,} -> {sizes[1]:,} bytes")
    return 0
