"""Jobs: what a serving machine does for each request."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import InputError
from trimtab.hardware.machine import machine
from trimtab.run import runtimes
from trimtab.run.remote import wire
from trimtab.run.remote.kept import INPUTS, MODELS, Kept
from trimtab.run.remote.service import Refused, Service, alone, asked_of, body_of, clean

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


def _json(data: Any, status: int = 200) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(data, status)


async def about(offer: Service, _: Request) -> Response:
    return _json(offer.about)


async def file(offer: Service, request: Request) -> Response:
    kind, digest = request.url.path.split("/")[2], request.path_params["digest"]
    if not wire.DIGEST.fullmatch(digest):
        raise Refused(400, "Request", "a file is named by its SHA-256, 64 hex digits")
    with alone(offer) as kept:
        if kept.path(kind, digest) is not None:
            return _json({"digest": digest})
        if request.method == "GET":
            raise Refused(404, "Unknown", f"{kind}: no such file")
        data = await body_of(request, offer.max_bytes)
        await asyncio.to_thread(kept.put, kind, digest, data)
    return _json({"digest": digest}, 201)


def _kept(kept: Kept, kind: str, asked: dict[str, Any], name: str) -> str:
    try:
        path = kept.path(kind, wire.text(asked[name], name, wire.DIGEST))
    except InputError as error:
        raise Refused(400, "Request", str(error)) from error
    if path is None:
        raise Refused(404, "Unknown", f"{name}: no such file")
    return str(path)


def _threads(asked: dict[str, Any]) -> int:
    return wire.whole(asked["threads"], "target: threads", machine().usable)


def _runtime(offer: Service, asked: dict[str, Any]) -> str:
    return wire.text(asked["runtime"], "runtime", tuple(offer.about["runtimes"]))


async def _time(offer: Service, request: Request) -> Response:
    asked = await asked_of(request, ("baseline", "file", "inputs", "runtimes", "threads", "seconds"))
    with alone(offer) as kept:
        baseline, file = (_kept(kept, MODELS, asked, name) for name in ("baseline", "file"))
        inputs = _kept(kept, INPUTS, asked, "inputs")
        names = asked["runtimes"] if isinstance(asked["runtimes"], list) else [asked["runtimes"]]
        which = [wire.text(name, "runtimes", tuple(offer.about["runtimes"])) for name in names]
        files = {"": [baseline, runtimes()[0].name], **{name: [file, name] for name in which}}
        seconds = wire.number(asked["seconds"], "seconds", offer.max_seconds / 4)
        arguments = {"files": files, "inputs": inputs, "seconds": seconds, "threads": _threads(asked)}
        found = await clean(offer, "time", arguments)
    rounds = {name: {"burst": t["burst"], "batch": t["batch"], "rounds": t["rounds"]} for name, t in found.items()}
    return _json({"timings": rounds})


async def _layers(offer: Service, request: Request) -> Response:
    asked = await asked_of(request, ("layers", "precision", "runtime", "batch", "threads"))
    with alone(offer):
        listed = asked["layers"] if isinstance(asked["layers"], list) else [asked["layers"]]
        layers = [wire.layer_of(layer) for layer in listed]
        batch = wire.whole(asked["batch"], "batch", 1 << 16)
        size = wire.layers_bytes(layers, batch)
        if not layers or len(set(layers)) != len(layers) or size > offer.max_bytes:
            got = f"{len(layers)} layers, {len(set(layers))} different, {size} bytes"
            raise InputError("layers", got=got, expected=f"different ones of at most {offer.max_bytes} bytes together")
        precision = wire.text(asked["precision"], "precision", wire.PRECISIONS)
        of = {"precision": precision, "runtime": _runtime(offer, asked), "batch": batch, "threads": _threads(asked)}
        return _json(await clean(offer, "layers", {"shapes": listed, **of}))


async def _check(offer: Service, request: Request) -> Response:
    asked = await asked_of(request, ("file", "runtime"))
    with alone(offer) as kept:
        file = _kept(kept, MODELS, asked, "file")
        return _json(await clean(offer, "check", {"path": file, "runtime": _runtime(offer, asked)}))


async def _run(offer: Service, request: Request) -> Response:
    from starlette.responses import Response as Plain

    asked = await asked_of(request, ("file", "inputs", "runtime", "threads"))
    with alone(offer) as kept, tempfile.TemporaryDirectory(prefix="trimtab-device-") as folder:
        file, inputs = _kept(kept, MODELS, asked, "file"), _kept(kept, INPUTS, asked, "inputs")
        (Path(folder) / "0.safetensors").write_bytes(Path(inputs).read_bytes())
        of = {"runtime": _runtime(offer, asked), "threads": _threads(asked)}
        await clean(offer, "run", {"path": file, "folder": folder, "count": 1, **of})
        outputs = Path(folder) / "outputs.safetensors"
        if outputs.stat().st_size > offer.max_bytes:
            raise Refused(413, "TooLarge", f"the outputs have more than {offer.max_bytes} bytes")
        return Plain(outputs.read_bytes(), media_type="application/octet-stream")


JOBS = {"/v1/time": _time, "/v1/layers": _layers, "/v1/check": _check, "/v1/run": _run}
