"""Profile: where the time of a network goes on a target, and what could help."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

import trimtab
from trimtab.cli.options import Json, TargetName
from trimtab.cli.show import as_json, note, printed
from trimtab.core.errors import InputError
from trimtab.core.target import Target, parse

if TYPE_CHECKING:
    from trimtab.graph.model import Graph
    from trimtab.report.html import Safe


def profile(
    what: Annotated[
        str, typer.Argument(metavar="TASK|FILE.onnx", help="A task, or a file of any origin.", show_default=False)
    ],
    target: TargetName = "cpu",
    rows: Annotated[int | None, typer.Option(min=1, help="Print so many rows.", show_default="all")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the layers under this machine's ceilings.")] = False,
    fusion: Annotated[
        bool, typer.Option("--fusion", help="Show instead what each runtime computes together, and what not and why.")
    ] = False,
    batches: Annotated[
        bool, typer.Option("--batches", help="Show and draw instead throughput against latency over batch sizes.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The picture, .svg or .html.", show_default="roofline.svg"),
    ] = None,
    json: Json = False,
) -> int:
    """Show where the time and the bytes go, layer by layer, what binds each layer and what could help."""
    device = parse(target)
    asked = [name for name, given in (("--plot", plot), ("--fusion", fusion), ("--batches", batches)) if given]
    if len(asked) > 1:
        raise InputError("profile", got=" and ".join(asked), expected="one of them")
    if fusion:
        _fusion(what, device, rows, json)
        return 0
    if batches:
        _batches(what, device, out or Path("batches.svg"), json)
        return 0
    from trimtab.run.kernels import OWN

    if device.device != "cpu" or device.runtime in OWN:
        _elsewhere(what, device, rows, asked, json)
        return 0
    from trimtab.profile.table import summary
    from trimtab.profile.table import table as layers
    from trimtab.report.picture import check_name
    from trimtab.report.roofline import roofline

    picture = out or Path("roofline.svg")
    check_name(picture)
    found = trimtab.profile(Path(what) if what.endswith(".onnx") else trimtab.load_task(what), device)
    if plot:
        _saved(roofline(found, Path(what).stem), picture)
    if json:
        as_json(found.json())
        return 0
    printed(layers(found, rows))
    print()
    print(*summary(found), sep="\n")
    return 0


def _elsewhere(what: str, target: Target, rows: int | None, asked: list[str], json: bool) -> None:
    """On another device, as it tells of its layers; in a runtime that compiles from the graph, by its own kernels."""
    if asked or what.endswith(".onnx"):
        got = asked[0] if asked else "an ONNX file"
        do = f"Give a task, without {' '.join(asked) or 'a file'}: {target.name} lists its layers or kernels alone."
        raise InputError(f"profile: {target.name}", got=got, expected="a task", do=do)
    if target.device == "cpu":
        from trimtab.profile.own import own_profile
        from trimtab.profile.table import own_summary, own_table

        network = _network(what)
        assert not isinstance(network, Path)
        found = own_profile(network, target)
        if json:
            as_json(found.json())
            return
        printed(own_table(found, rows))
        print(*own_summary(found), sep="\n")
        return
    from trimtab.cli.clocked import clocked_json, clocked_table
    from trimtab.pipeline.clocked import clocked

    told = clocked(trimtab.load_task(what), target)
    if json:
        as_json(clocked_json(told))
        return
    printed(clocked_table(told, target.name, rows))
    print(*told.notes, sep="\n")


def _fusion(what: str, target: Target, rows: int | None, json: bool) -> None:
    """Of the target's runtime, or of each that is installed."""
    from trimtab.profile.fusion import fusion
    from trimtab.profile.table import fusion_summary, fusion_table
    from trimtab.run import runtimes

    network = _network(what)
    names = (target.runtime,) if target.runtime else tuple(r.name for r in runtimes())
    found = [fusion(network, name, target) for name in names]
    if json:
        as_json([one.json() for one in found])
        return
    for one in found:
        printed(fusion_table(one, rows))
        print(fusion_summary(one), end="\n\n")


def _batches(what: str, target: Target, picture: Path, json: bool) -> None:
    """With the target's threads, and with one where it has more."""
    from trimtab.graph.model import Graph
    from trimtab.profile.batch import sweep
    from trimtab.profile.table import batches_table
    from trimtab.report.batches import batches
    from trimtab.report.picture import check_name
    from trimtab.run.export import export_onnx

    check_name(picture)
    network = _network(what)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx" if isinstance(network, Graph) else network
        if isinstance(network, Graph):
            export_onnx(network, path)
        found = sweep(path, target, sorted({1, target.threads}))
    _saved(batches(found, Path(what).stem), picture)
    if json:
        as_json([point.json() for point in found])
    else:
        printed(batches_table(found))


def _network(what: str) -> Path | Graph:
    """The file, or the task's network as captured."""
    if what.endswith(".onnx"):
        return Path(what)
    from trimtab.graph.capture import capture
    from trimtab.graph.modes import set_mode

    task = trimtab.load_task(what)
    return set_mode(capture(task.model, task.example), False)


def _saved(picture: Safe, path: Path) -> None:
    from trimtab.report.picture import save

    save(picture, path)
    note(f"the picture is in {path}")
