"""Server: what it refuses, byte by byte; what it keeps, and for how long."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.run.remote.files import LAYER, elsewhere, integer
from tests.run.remote.serving import TOKEN, serving
from trimtab.core.errors import FileError, InputError
from trimtab.run.remote import wire
from trimtab.run.remote.kept import INPUTS, MODELS, Kept
from trimtab.run.remote.server import listen
from trimtab.run.remote.service import Service

BYTES = 1 << 20
NOWHERE = "0" * 64


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Service]]:
    with serving(max_bytes=BYTES) as found:
        yield found


def told(url: str, method: str, path: str, body: Any = None, token: str | None = TOKEN, **headers: str) -> Any:
    """Status and JSON of one request."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    shown = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        connection.request(method, path, body, {**shown, **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def refused(*arguments: Any, **more: Any) -> tuple[int, str, str]:
    """Status, kind and message of a refusal, which holds nothing else."""
    status, said = told(*arguments, **more)
    assert set(said) == {"error"}
    assert set(said["error"]) == {"kind", "message"}
    return status, said["error"]["kind"], said["error"]["message"]


def test_it_says_what_it_is(served: tuple[str, Service]) -> None:
    status, said = told(served[0], "GET", "/v1/about")
    assert status == 200
    assert said["limits"] == {"bytes": BYTES, "seconds": 60.0}
    assert "onnxruntime" in said["runtimes"]
    assert TOKEN not in json.dumps(said) + repr(served[1])


@pytest.mark.parametrize("token", [None, "", "x", TOKEN + "x", TOKEN[:-1], TOKEN.upper()])
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/about"), ("PUT", f"/v1/models/{NOWHERE}"), ("GET", "/odd")])
def test_nothing_is_told_without_the_token(
    served: tuple[str, Service], token: str | None, method: str, path: str
) -> None:
    assert refused(served[0], method, path, token=token) == (401, "Token", "the token is missing or wrong")


def test_a_file_is_kept_under_its_hash_and_sent_once(served: tuple[str, Service], tmp_path: Path) -> None:
    url = served[0]
    data = integer(tmp_path / "a.onnx").read_bytes()
    path = f"/v1/models/{sha256(data).hexdigest()}"
    assert refused(url, "GET", path)[:2] == (404, "Unknown")
    assert told(url, "PUT", path, data)[0] == 201
    assert told(url, "PUT", path, data)[0] == 200
    assert told(url, "GET", path)[0] == 200
    status, kind, message = refused(url, "PUT", f"/v1/models/{NOWHERE}", data)
    assert (status, kind) == (422, "FileError")
    assert "SHA-256" in message
    assert refused(url, "GET", f"/v1/models/{NOWHERE}")[0] == 404


@pytest.mark.parametrize("digest", ["x", NOWHERE.upper()[:-1] + "G", "..%2f..%2fetc%2fpasswd", "0" * 65])
def test_a_file_has_no_other_name(served: tuple[str, Service], digest: str) -> None:
    assert refused(served[0], "PUT", f"/v1/models/{digest}", b"x")[0] in (400, 404)


def test_what_is_too_large_is_not_read(served: tuple[str, Service]) -> None:
    url, path = served[0], f"/v1/models/{NOWHERE}"
    assert refused(url, "PUT", path, **{"Content-Length": "1000000000000"})[:2] == (413, "TooLarge")
    assert refused(url, "PUT", path, iter([b"x" * (BYTES // 4)] * 5))[:2] == (413, "TooLarge")  # no length is said
    assert refused(url, "POST", "/v1/check", b" " * (wire.JSON_BYTES + 1))[:2] == (413, "TooLarge")
    assert served[1].busy is False


def test_what_is_no_model_or_leans_on_other_files_is_refused(served: tuple[str, Service], tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(1152))
    for data, message in (
        (b"", "not an ONNX model"),
        (b"\x80\x04\x95 a pickle", "not an ONNX model"),
        (integer(tmp_path / "a.onnx").read_bytes()[:-200], "not an ONNX model"),
        (elsewhere(tmp_path / "b.onnx", "w").read_bytes(), "external data"),
        (elsewhere(tmp_path / "b.onnx", "../../../etc/passwd").read_bytes(), "external data"),
        (elsewhere(tmp_path / "b.onnx", "model.onnx").read_bytes(), "external data"),
    ):
        path = f"/v1/models/{sha256(data).hexdigest()}"
        status, kind, found = refused(served[0], "PUT", path, data)
        assert (status, kind) == (422, "FileError")
        assert message in found
        assert "trimtab-device-" not in found  # nor where it lies
        assert refused(served[0], "GET", path)[0] == 404


def test_inputs_are_arrays_by_number(served: tuple[str, Service]) -> None:
    for arrays, good in (({"0": 1, "1": 2}, True), ({"a": 1}, False), ({"1": 1}, False), ({}, False)):
        data = save({name: np.full(3, value, np.float32) for name, value in arrays.items()})
        status, _ = told(served[0], "PUT", f"/v1/inputs/{sha256(data).hexdigest()}", data)
        assert status == (201 if good else 422)
    assert refused(served[0], "PUT", f"/v1/inputs/{sha256(b'x').hexdigest()}", b"x")[:2] == (422, "FileError")


TIME = {
    "baseline": NOWHERE,
    "file": NOWHERE,
    "inputs": NOWHERE,
    "runtimes": ["onnxruntime"],
    "threads": 1,
    "seconds": 1,
}
LAYERS = {"layers": [asdict(LAYER)], "precision": "int8", "runtime": "onnxruntime", "batch": 1, "threads": 1}


@pytest.mark.parametrize(
    ("path", "question", "status", "told_there"),
    [
        ("/v1/time", TIME, 404, "baseline: no such file"),
        ("/v1/time", {**TIME, "baseline": "/etc/passwd"}, 400, "baseline: got '/etc/passwd'"),
        ("/v1/time", {**TIME, "code": "print()"}, 400, "expected an object of"),
        ("/v1/time", [], 400, "expected an object of"),
        ("/v1/check", {"file": NOWHERE, "runtime": "onnxruntime"}, 404, "file: no such file"),
        ("/v1/layers", {**LAYERS, "runtime": "torch"}, 422, "runtime: got 'torch', expected onnxruntime"),
        ("/v1/layers", {**LAYERS, "precision": "int4"}, 422, "precision"),
        ("/v1/layers", {**LAYERS, "threads": 100_000}, 422, "target: threads: got '100000'"),
        ("/v1/layers", {**LAYERS, "batch": 0}, 422, "batch"),
        ("/v1/layers", {**LAYERS, "batch": True}, 422, "batch"),
        ("/v1/layers", {**LAYERS, "batch": 65_536}, 422, "at most 1048576 bytes together"),
        ("/v1/layers", {**LAYERS, "layers": [asdict(LAYER)] * 2}, 422, "2 layers, 1 different"),
        ("/v1/layers", {**LAYERS, "layers": ["x"]}, 422, "layer: got 'str'"),
        ("/v1/run", {"file": NOWHERE}, 400, "expected an object of"),
    ],
)
def test_a_question_that_is_wrong_is_refused(
    served: tuple[str, Service], path: str, question: Any, status: int, told_there: str
) -> None:
    found = refused(served[0], "POST", path, json.dumps(question))
    assert found[0] == status
    assert told_there in found[2]


def test_what_is_no_question_is_refused(served: tuple[str, Service]) -> None:
    url = served[0]
    assert refused(url, "POST", "/v1/time", b"\xff\xfe")[:2] == (400, "Request")
    assert refused(url, "POST", "/v1/time", b'{"seconds": Infinity}')[:2] == (400, "Request")
    assert refused(url, "GET", "/v1/time")[0] == 405
    assert refused(url, "GET", "/v2/about")[0] == 404


def test_another_job_waits_outside(served: tuple[str, Service]) -> None:
    url, offer = served
    offer.busy = True
    try:
        assert refused(url, "POST", "/v1/layers", json.dumps(LAYERS))[:2] == (503, "Busy")
        assert refused(url, "PUT", f"/v1/models/{NOWHERE}", b"x")[:2] == (503, "Busy")
        assert told(url, "GET", "/v1/about")[0] == 200
    finally:
        offer.busy = False


def test_the_files_go_with_the_server(tmp_path: Path) -> None:
    data = integer(tmp_path / "a.onnx").read_bytes()
    digest = sha256(data).hexdigest()
    with serving() as (url, offer):
        assert told(url, "PUT", f"/v1/models/{digest}", data)[0] == 201
        assert offer.kept is not None
        path = offer.kept.path(MODELS, digest)
        assert path is not None
        assert path.read_bytes() == data
    assert not path.parents[2].exists()


def test_the_file_that_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    files = [integer(tmp_path / "a.onnx", replace(LAYER, outputs=n)).read_bytes() for n in (16, 17, 18)]
    names = [sha256(data).hexdigest() for data in files]
    folder = tmp_path / "kept"
    kept = Kept(folder, len(files[0]) + len(files[2]))
    kept.put(MODELS, names[0], files[0])
    kept.put(MODELS, names[1], files[1])
    assert kept.path(MODELS, names[0]) is not None
    kept.put(MODELS, names[2], files[2])
    assert [kept.path(MODELS, name) is not None for name in names] == [True, False, True]
    assert sorted(p.name for p in (folder / MODELS).iterdir()) == sorted([names[0], names[2]])
    assert kept.path(INPUTS, names[0]) is None
    with pytest.raises(FileError, match="SHA-256"):
        kept.put(MODELS, names[1], files[0])


def test_an_address_in_use_is_named() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(InputError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("inputs", 0),
        ("inputs", 8.0),
        ("outputs", 1 << 21),
        ("groups", 3),
        ("kernel", [3]),
        ("kernel", [13, 3, 3, 3]),
        ("kernel", [15, 3]),
        ("spatial", "12"),
        ("stride", [0, 1]),
        ("padding", [-1, 0]),
    ],
)
def test_a_layer_that_cannot_be_is_refused(field: str, value: object) -> None:
    good = json.loads(json.dumps(asdict(LAYER)))
    assert wire.layer_of(good) == LAYER
    with pytest.raises(InputError, match="layer"):
        wire.layer_of({**good, field: value})
