"""Remote: a round trip over a real socket, and every way in which the other machine can be wrong."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.run.remote.files import IMAGE, LAYER, half_integer, integer
from tests.run.remote.serving import TOKEN, answering, http, serving
from trimtab.core.errors import DeviceError, FileError, InputError, NotInteger, RuntimeMissing
from trimtab.core.target import Target, parse
from trimtab.hardware.layer import Layer
from trimtab.hardware.machine import machine
from trimtab.pipeline.devices import device_of, machine_of
from trimtab.run import runtime
from trimtab.run.remote import client as asking
from trimtab.run.remote.client import Client, address, ask
from trimtab.run.remote.device import Remote, _chunks, remote
from trimtab.run.remote.service import Service

LINEAR = Layer(16, 5, spatial=(1,))


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Service]]:
    with serving() as found:
        yield found


@pytest.fixture
def there(served: tuple[str, Service]) -> Remote:
    return remote(served[0], token=TOKEN)


def test_a_file_is_timed_there_beside_the_original(there: Remote, tmp_path: Path) -> None:
    larger = replace(LAYER, outputs=512)
    baseline, file = integer(tmp_path / "a.onnx", larger), integer(tmp_path / "b.onnx")
    found = there.clock(baseline, {"b": file}, Target(there.name), [IMAGE], seconds=0.05)["b"]
    names = {"onnxruntime", "openvino"} if runtime("openvino").available() is None else {"onnxruntime"}
    assert {found.runtime, *found.others} == names
    latency, ratio = found.metrics["latency"], found.metrics["latency_ratio"]
    assert latency.source == ratio.source == there.source == "measured"
    assert latency.n is not None
    assert latency.n >= 30
    assert latency.interval is not None
    assert latency.interval[0] <= latency.value <= latency.interval[1]
    assert ratio.value > 1.5  # 32 times fewer multiply-adds
    assert found.metrics["throughput"].value == pytest.approx(1 / latency.value)
    assert latency.how is not None
    assert f"on {machine().processor} at {there.name}" in latency.how
    assert TOKEN not in repr(found) + repr(there)
    assert [note for note in found.notes if "unreliable" not in note] == []  # it computes the same there


def test_layers_are_timed_there(there: Remote) -> None:
    larger = replace(LAYER, outputs=512, spatial=(48, 48))
    found = there.layers([LAYER, LINEAR, larger], "int8", Target(there.name))
    assert list(found) == [LAYER, LINEAR, larger]
    assert found[larger]["latency"] > 5 * found[LAYER]["latency"] > 0  # 512 times the multiply-adds


def test_what_runs_in_floats_there_is_named(there: Remote, tmp_path: Path) -> None:
    there.check(integer(tmp_path / "a.onnx"), "onnxruntime")
    with pytest.raises(NotInteger, match=f"{there.name}.*0 of 1 in int8"):
        there.check(half_integer(tmp_path / "b.onnx"), "onnxruntime")


def test_outputs_there_are_those_here(there: Remote, tmp_path: Path) -> None:
    file = integer(tmp_path / "a.onnx")
    session = runtime("onnxruntime").load(file, 1)
    (wanted,) = session.run([IMAGE])
    (found,) = there.outputs(file, "onnxruntime", [IMAGE])
    assert np.array_equal(found, wanted)


def test_other_outputs_there_are_said(there: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = integer(tmp_path / "a.onnx")
    honest = Remote.outputs

    def wrong(self: Remote, *arguments: Any) -> list[Any]:
        return [array * 2.0 for array in honest(self, *arguments)]

    monkeypatch.setattr(Remote, "outputs", wrong)
    (note,) = there._strays(file, "onnxruntime", [IMAGE], Target(there.name))
    assert "differ from those here by 100%" in note


def test_the_version_is_that_of_the_machine_there(there: Remote) -> None:
    assert there.version() == f"{machine().key()} onnxruntime {runtime('onnxruntime').version()}"
    assert replace(there, runtime="onnxruntime").available() is None
    missing = replace(there, runtime="inductor")
    with pytest.raises(InputError, match="no inductor there, expected one of onnxruntime"):
        missing.version()
    assert "no inductor there" in str(missing.available())


def test_the_machine_there_describes_itself(there: Remote) -> None:
    told, here = there.machine(), machine().json()
    assert told == {**json.loads(json.dumps(here))}
    placed = machine_of(there)
    assert placed is not None
    assert placed == {"address": there.name, **told}


def test_an_address_is_a_target(served: tuple[str, Service], monkeypatch: pytest.MonkeyPatch) -> None:
    url = served[0]
    monkeypatch.setenv("TRIMTAB_TOKEN", TOKEN)
    target = parse(f"{url}:batch=2")
    assert (target.device, target.batch) == (url, 2)
    device = device_of(target)
    assert (device.name, device.source, device.available()) == (url, "measured", None)
    assert TOKEN not in repr(target) + target.name
    monkeypatch.setenv("TRIMTAB_TOKEN", "another")
    with pytest.raises(RuntimeMissing, match=f"{url}.*another token.*Set TRIMTAB_TOKEN"):
        device_of(target)
    monkeypatch.delenv("TRIMTAB_TOKEN")
    with pytest.raises(InputError, match="no token"):
        device_of(target)


def test_another_token_is_refused(there: Remote) -> None:
    with pytest.raises(DeviceError, match=f"another token: {there.name}. Set TRIMTAB_TOKEN") as caught:
        remote(there.name, token="guess").version()
    assert "guess" not in str(caught.value)


def test_a_busy_machine_is_waited_for_but_not_for_ever(served: tuple[str, Service]) -> None:
    url, offer = served
    layer = {"layers": [], "precision": "int8", "runtime": "onnxruntime", "batch": 1, "threads": 1}
    offer.busy = True
    try:
        with pytest.raises(DeviceError, match="someone else"):
            ask(Client(url, TOKEN, patience=0.0), "/v1/layers", layer)
    finally:
        offer.busy = False
    with pytest.raises(InputError, match="0 layers"):  # it was heard
        ask(Client(url, TOKEN, patience=0.0), "/v1/layers", layer)


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with serving(max_seconds=0.01) as (url, offer):
        with pytest.raises(DeviceError, match=r"slow.*took more than 0.01 s"):
            remote(url, token=TOKEN).check(integer(tmp_path / "a.onnx"), "onnxruntime")
        assert not offer.busy


def test_a_file_that_is_too_large_is_not_sent(tmp_path: Path) -> None:
    with serving(max_bytes=1000) as (url, _), pytest.raises(InputError, match=r"at most 1,000 bytes.*--max-mb"):
        remote(url, token=TOKEN).check(integer(tmp_path / "a.onnx"), "onnxruntime")


def test_a_file_that_is_no_model_fails_as_it_would_here(there: Remote, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(FileError, match=f"{there.name}.*not an ONNX model"):
        there.check(tmp_path / "a.onnx", "onnxruntime")
    with pytest.raises(FileError, match="No such file"):
        there.check(tmp_path / "b.onnx", "onnxruntime")


def test_layers_are_asked_for_in_bounded_groups() -> None:
    shapes = [replace(LAYER, outputs=n) for n in range(1, 131)]
    assert [len(group) for group in _chunks(shapes, 1, 1 << 30)] == [64, 64, 2]
    heavy = [replace(LAYER, outputs=n, spatial=(1, 1)) for n in (1000, 1001, 1002)]  # 4 (72 n + 8 + n) bytes each
    assert [len(group) for group in _chunks(heavy, 1, 600_000)] == [2, 1]


ABOUT = {
    "schema": 1,
    "trimtab": "0",
    "key": "k",
    "machine": {"processor": "p"},
    "runtimes": {"onnxruntime": "1"},
    "limits": {"bytes": 1 << 20, "seconds": 1},
}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP: BadStatusLine"),
        (http(b"<html>Welcome to the router</html>"), "not JSON"),
        (http(b'{"schema": 1, "seconds": NaN}'), "not JSON"),
        (http(b"[" * 100_000), "not JSON"),
        (http(b"{}"), "expected an object of schema"),
        (http(json.dumps({**ABOUT, "schema": 2}).encode()), "schema: got '2'"),
        (http(json.dumps({**ABOUT, "key": "x\ny"}).encode()), "key: got 'x y'"),
        (http(json.dumps({**ABOUT, "runtimes": {"rm": "1"}}).encode()), "a machine with a runtime"),
        (http(json.dumps({**ABOUT, "limits": {"bytes": -1, "seconds": 1}}).encode()), "bytes: got '-1'"),
        (http(json.dumps({**ABOUT, "machine": {"processor": "p", "memory": 0.5}}).encode()), "memory: got '0.5'"),
        (http(json.dumps({**ABOUT, "machine": {"processor": "p", "flags": "avx2"}}).encode()), "flags: got 'avx2'"),
        (http(json.dumps({**ABOUT, "machine": {"processor": "p", "caches": {"L1": -1}}}).encode()), "caches: got '-1'"),
        (http(json.dumps({**ABOUT, "machine": {"processor": "p", "libraries": [1]}}).encode()), "libraries: got '[1]'"),
        (http(b"", 302), "HTTP status 302"),
        (http(b'{"error": {"kind": "Internal", "message": "\x1b[2J"}}', 500), "HTTP status 500"),
        (http(json.dumps(ABOUT).encode() + b" " * 9)[:-9], "cut short by 9 bytes"),
    ],
)
def test_nonsense_is_named(said: bytes, told: str) -> None:
    with answering(lambda path: said) as url, pytest.raises(DeviceError, match="nonsense") as caught:
        remote(url, token=TOKEN).version()
    line = str(caught.value)
    assert told in line
    assert url in line
    assert line.isprintable()
    assert len(line) < 500


def timings(**changed: Any) -> dict[str, Any]:
    one = {"burst": 2, "batch": 1, "rounds": [1e-3] * 30}
    return {"timings": {"": one, "onnxruntime": {**one, **changed}}}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (timings(rounds=[1e-3] * 29 + [-1e-3]), "rounds: got '-0.001'"),
        (timings(rounds=[1e-3] * 29 + [0]), "rounds: got '0'"),
        (timings(rounds=[1e-3] * 29 + [True]), "rounds: got 'True'"),
        (timings(rounds=[1e-3] * 29), "rounds"),
        (timings(rounds="fast"), "rounds: got 'fast'"),
        (timings(batch=2), "batch: got '2'"),
        (timings(burst=0), "burst: got '0'"),
        (timings(median=1.0), "expected an object of burst, batch, rounds"),
        ({"timings": {"": timings()["timings"][""]}}, "timings"),
        ([], "expected an object of timings"),
    ],
)
def test_timings_that_cannot_be_are_refused(said: Any, told: str, tmp_path: Path) -> None:
    answers = {"/v1/about": ABOUT, "/v1/time": said}
    with answering(lambda path: http(json.dumps(answers.get(path, {})).encode())) as url:
        there, file = remote(url, token=TOKEN), integer(tmp_path / "a.onnx")
        with pytest.raises(DeviceError, match="nonsense") as caught:
            there.clock(file, {"a": file}, Target(url), [IMAGE])
    assert told in str(caught.value)


@pytest.mark.parametrize("seconds", [[], [1e-6, 1e-6], [-1.0], ["1"], None])
def test_layer_times_that_cannot_be_are_refused(seconds: Any) -> None:
    answers = {"/v1/about": ABOUT, "/v1/layers": {"seconds": seconds}}
    with (
        answering(lambda path: http(json.dumps(answers[path]).encode())) as url,
        pytest.raises(DeviceError, match=r"nonsense.*seconds"),
    ):
        remote(url, token=TOKEN).layers([LAYER], "fp32", Target(url))


def test_what_is_computed_here_from_the_rounds_is_flagged_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that jumps there: 11 rounds of 30 take twice as long.
    said = timings(rounds=[1e-3] * 19 + [2e-3] * 11)
    answers = {"/v1/about": ABOUT, "/v1/time": said}
    with answering(lambda path: http(json.dumps(answers.get(path, {})).encode())) as url:
        there, file = remote(url, token=TOKEN), integer(tmp_path / "a.onnx")
        monkeypatch.setattr(Remote, "_strays", lambda *_: ())
        found = there.clock(file, {"a": file}, Target(url), [IMAGE])["a"]
    assert "spread 100.0%; unreliable" in str(found.metrics["latency"].how)
    assert any("unreliable" in note for note in found.notes)
    assert found.metrics["latency"].value == pytest.approx(1e-3)


def test_a_machine_that_hangs_is_not_waited_for() -> None:
    start = time.monotonic()
    with answering(lambda path: None) as url, pytest.raises(DeviceError, match=f"slow: {url}: got no answer in 1 s"):
        ask(Client(url, TOKEN), "/v1/about", seconds=1.0)
    assert time.monotonic() - start < 20


def test_a_machine_that_drips_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        stop = threading.Event()

        def drip() -> None:
            with listening.accept()[0] as connection:
                while not stop.wait(0.1):
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        with pytest.raises(DeviceError, match="slow"):
            ask(Client(url, TOKEN), "/v1/about", seconds=1.0)
        stop.set()
        thread.join(10)


def test_an_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_BYTES", 1 << 20)
    with answering(lambda path: http(b" " * (2 << 20))) as url, pytest.raises(DeviceError, match="more than 1 MiB"):
        ask(Client(url, TOKEN), "/v1/about")


def test_a_machine_that_is_gone_is_named_after_some_tries() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(DeviceError, match=f"gone: {url}: got Connection refused. Start `trimtab device` there"):
        ask(Client(url, TOKEN, pauses=(0.1, 0.2)), "/v1/about")
    assert time.monotonic() - start >= 0.3
    with pytest.raises(DeviceError, match=r"cannot be reached: http://nowhere\.invalid"):
        ask(Client("http://nowhere.invalid", TOKEN), "/v1/about")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://me:secret@board:7070", "a name or password in the address"),
        ("http://me@board", "a name or password in the address"),
        ("http://board:7070?token=secret", "expected an address"),
        ("http://board/v1", "expected an address"),
        ("http://", "expected an address"),
        ("http://board:99999", "expected an address"),
        ("ftp://board", "expected an address"),
        ("http://[::1", "expected an address"),
    ],
)
def test_an_address_is_scheme_host_and_port(url: str, told: str) -> None:
    with pytest.raises(InputError, match="target") as caught:
        remote(url, token=TOKEN)
    assert told in str(caught.value)
    if "@" in url:
        assert "secret" not in str(caught.value)


def test_addresses_are_written_alike() -> None:
    assert address("http://Board:7070/") == address("http://board:7070") == "http://board:7070"
    assert address("http://[::1]:7070") == "http://[::1]:7070"
