"""The trim file: the same bytes again whatever they were, and one error for whatever a stranger made of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.hostile import attempted
from trimtab.core.cursor import number
from trimtab.core.errors import FileError, InputError
from trimtab.run.pack import pack
from trimtab.run.trim_file import _MAGIC, _hash, constants_in, decode_onnx, encode_onnx, read_trim, write_trim
from trimtab.run.trim_tensor import decode_tensor, encode_tensor
from trimtab.run.unpacked import unpacked


def weights(kind: str, shape: tuple[int, ...] = (120, 96)) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=shape).astype(np.float32)
    if kind == "dense":
        return dense
    codebook = rng.normal(size=15).astype(np.float16).astype(np.float32)
    shared = codebook[np.digitize(dense, np.linspace(-2, 2, 14))]
    mask = np.abs(dense) > 1.6
    zero = np.float32(0)
    return {"shared": shared, "sparse": np.where(mask, dense, zero), "both": np.where(mask, shared, zero)}[kind]


def model_of(value: np.ndarray[Any, Any]) -> Any:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", value.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: bytes, rows: int) -> np.ndarray[Any, Any]:
    x = np.random.default_rng(1).normal(size=(3, rows)).astype(np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("kind", ["dense", "shared", "sparse", "both"])
def test_a_model_comes_back_byte_for_byte_and_smaller(kind: str) -> None:
    value = weights(kind)
    data = model_of(value).SerializeToString()
    coded = encode_onnx(data)
    assert decode_onnx(coded) == data
    counts = np.unique(value, return_counts=True)[1]
    entropy = float(-(counts / value.size * np.log2(counts / value.size)).sum())
    limit = {"dense": 0.95 * len(data), "sparse": 0.2 * len(data)}.get(kind, entropy * value.size / 8 * 1.1 + 400)
    assert len(coded) < limit


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_come_back(data: bytes) -> None:
    assert decode_onnx(encode_onnx(data)) == data


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([1, 2, 4, 8]), st.integers(1, 9))
def test_any_constant_comes_back(data: bytes, width: int, columns: int) -> None:
    for some in (data, data * 7, bytes(len(data))):
        coded = encode_tensor(some, width, columns)
        assert decode_tensor(coded, len(some)) == some
        assert len(coded) <= len(some) + 1


@pytest.mark.parametrize("kind", ["dense", "shared", "sparse", "both"])
def test_a_packed_file_decodes_to_constants_that_a_runtime_has_in_memory(kind: str, tmp_path: Path) -> None:
    value = weights(kind)
    packed = pack(model_of(value))
    onnx.save(packed, tmp_path / "model.onnx")
    write_trim(tmp_path / "model.onnx", tmp_path / "model.trim")
    found = read_trim(tmp_path / "model.trim")
    constant = next(t for t in onnx.load_from_string(found).graph.initializer if len(t.dims) == 2)
    assert np.array_equal(numpy_helper.to_array(constant), value)
    assert [n.op_type for n in onnx.load_from_string(found).graph.node] == ["MatMul", "Relu"]
    assert np.array_equal(run(found, len(value)), run(packed.SerializeToString(), len(value)))
    assert (tmp_path / "model.trim").stat().st_size < (tmp_path / "model.onnx").stat().st_size


def test_a_flipped_bit_anywhere_is_found() -> None:
    coded = encode_onnx(model_of(weights("both", (40, 30))).SerializeToString())
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(coded), 200):
        flipped = bytearray(coded)
        flipped[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(FileError, match="trim file") as caught:
            decode_onnx(bytes(flipped))
        assert "\n" not in str(caught.value)


def test_a_file_cut_short_anywhere_is_found() -> None:
    coded = encode_onnx(model_of(weights("both", (40, 30))).SerializeToString())
    for end in range(0, len(coded), 7):
        with pytest.raises(FileError, match="trim file"):
            decode_onnx(coded[:end])
    with pytest.raises(FileError, match="longer than it says"):
        decode_onnx(coded + b"\0")


def forged(body: bytes, decoded: int) -> bytes:
    """A file with the right checksum of its body, as one who wants to be believed would write it."""
    return _MAGIC + number(len(body)) + number(decoded) + _hash(body) + bytes(8) + body


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_forged_body_gives_one_error_and_takes_no_memory(data: st.DataObject) -> None:
    coded = encode_onnx(model_of(weights("both", (40, 30))).SerializeToString())
    body = bytearray(coded[len(_MAGIC) + len(number(1000)) + len(number(5000)) + 16 :])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    decoded = data.draw(st.sampled_from([5000, 100, 1 << 20, 1 << 40]))
    assert attempted(lambda: decode_onnx(forged(bytes(body), decoded))) is None


@pytest.mark.parametrize("claim", [1 << 40, 3 << 30, 50 << 20])
def test_a_claim_of_a_terabyte_is_refused_before_memory_is_taken(claim: int) -> None:
    body = encode_onnx(b"")[-20:]
    tracemalloc.start()
    with pytest.raises(FileError, match=f"a claim of {claim} bytes"):
        decode_onnx(forged(body, claim))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_constant_of_more_items_than_are_decoded_is_refused_or_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = bytes(1000)
    coded = encode_tensor(data, 1, 10)
    assert len(coded) < 100
    monkeypatch.setattr("trimtab.run.trim_tensor._MOST", 999)
    with pytest.raises(FileError, match="a claim of 1000 items, expected at most 999"):
        decode_tensor(coded, len(data))
    assert decode_tensor(encode_tensor(data, 1, 10), len(data)) == data


def test_a_caller_can_allow_less() -> None:
    data = model_of(weights("dense")).SerializeToString()
    with pytest.raises(FileError, match=f"a claim of {len(data)} bytes, expected at most 1000"):
        decode_onnx(encode_onnx(data), most=1000)


def test_zeros_beyond_all_measure_still_come_back() -> None:
    data = model_of(np.zeros((2000, 2000), np.float32)).SerializeToString()
    assert decode_onnx(encode_onnx(data)) == data
    assert len(encode_onnx(data)) < len(data) / 500


def test_deflated_bytes_that_grow_without_end_are_stopped() -> None:
    import zlib

    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = bytes([1]) + deflate.compress(bytes(200 << 20)) + deflate.flush()
    body = number(len(bomb)) + bomb + number(0) + number(0)
    tracemalloc.start()
    with pytest.raises(FileError, match="bytes beside the constants"):
        decode_onnx(forged(body, 1000))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no\.trim"):
        read_trim(tmp_path / "no.trim")
    (tmp_path / "other.trim").write_bytes(b"something else")
    with pytest.raises(FileError, match=r"other\.trim.*not a trim file"):
        read_trim(tmp_path / "other.trim")


def test_only_decoding_is_folded_and_nothing_that_grows() -> None:
    value = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "s")
    graph = helper.make_graph(
        [helper.make_node("Expand", ["o", "s"], ["e"]), helper.make_node("MatMul", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [value, shape, numpy_helper.from_array(np.ones((1, 1), np.float32), "o")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert [n.op_type for n in unpacked(model).graph.node] == ["Expand", "MatMul"]


def branched() -> Any:
    """A model whose branches multiply by a packed weight of their own."""
    branches = []
    for name, kind in (("then", "shared"), ("else", "both")):
        packed = pack(model_of(weights(kind)))
        whole = packed.graph
        for node in whole.node:
            for names in (node.input, node.output):
                names[:] = [each if each in ("x", "") else f"{name}/{each}" for each in names]
        for each in (*whole.initializer, *whole.output):
            each.name = f"{name}/{each.name}"
        branches.append(helper.make_graph(whole.node, name, [], whole.output, whole.initializer))
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])],
        "test",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 120]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=packed.opset_import, ir_version=packed.ir_version)


def test_constants_of_branches_are_decoded_and_coded_as_constants(tmp_path: Path) -> None:
    model = branched()
    onnx.save(model, tmp_path / "model.onnx")
    write_trim(tmp_path / "model.onnx", tmp_path / "model.trim")
    data = read_trim(tmp_path / "model.trim")
    found = {a.name: a.g for a in onnx.load_from_string(data).graph.node[0].attribute}
    for name, kind in (("then_branch", "shared"), ("else_branch", "both")):
        assert [n.op_type for n in found[name].node] == ["MatMul", "Relu"]
        assert np.array_equal(numpy_helper.to_array(found[name].initializer[0]), weights(kind))
    assert [length for _, length, _, _ in constants_in(data)] == [120 * 96 * 4] * 2
    x = np.random.default_rng(1).normal(size=(3, 120)).astype(np.float32)
    for c in (True, False):
        runs = [
            onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, {"x": x, "c": np.array(c)})
            for each in (model.SerializeToString(), data)
        ]
        assert np.array_equal(runs[0][0], runs[1][0])


def test_a_branchs_constants_in_another_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = branched()
    model.graph.node[0].attribute[0].g.initializer[0].data_location = TensorProto.EXTERNAL
    monkeypatch.setattr("trimtab.run.trim_file.read_onnx", lambda file: model)
    with pytest.raises(InputError, match="lie in another file"):
        write_trim(tmp_path / "model.onnx", tmp_path / "model.trim")


def test_decoding_counts_what_it_holds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pack(model_of(weights("both")))
    nodes = len(model.graph.node) - 2
    assert nodes > 8
    monkeypatch.setattr("trimtab.run.unpacked._MOST", 8 * 120 * 96)  # less than all nodes make together
    assert [n.op_type for n in unpacked(model).graph.node] == ["MatMul", "Relu"]
    monkeypatch.setattr("trimtab.run.unpacked._MOST", 120 * 96 - 1)
    with pytest.raises(FileError, match="read ONNX: constants"):
        unpacked(model)
    monkeypatch.undo()
    monkeypatch.setattr("trimtab.run.unpacked._FILE", 4 * 120 * 96)
    with pytest.raises(FileError, match="bytes once decoded"):
        unpacked(model)
