"""Trim file: an ONNX model, entropy-coded. Decoded when it is loaded; the decoded bytes are those that were coded.

    "trim", version, length of the body, length decoded, checksum of the body, checksum decoded
    body: everything but the constants (deflated), then each constant with its place, then padding

A file may come from a stranger: what it claims is held against limits and against its own size before anything is
allocated, and checksums are compared before anything is decoded.
"""

from __future__ import annotations

import hashlib
import lzma
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.core.cursor import Cursor, number, part
from trimtab.core.errors import FileError, InputError
from trimtab.core.store import write_atomic
from trimtab.run.runtime import read_onnx
from trimtab.run.trim_tensor import LEAST, WIDTHS, decode_tensor, encode_tensor
from trimtab.run.unpacked import tensors_in, unpacked

CODED = "model.trim"
"""The name of a coded model beside model.onnx."""
MOST = 2 << 30
"""Bytes that a file may decode to: an ONNX file is no larger."""
_MAGIC = b"trim\x01"
_HASH = 8
"""Bytes of a checksum."""
_RATIO, _FREE = 1024, 1 << 20
"""A file decodes to at most a megabyte and so many times its own bytes; the coder pads what would be more."""
_KEPT, _DEFLATED, _LZMA = range(3)
_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 0}]


def write_trim(file: Path, out: Path) -> Path:
    """Code an ONNX file; what it decodes to computes the same, its constants as a runtime has them in memory.

    Args:
        file: `.onnx`, its constants inside.
        out: the file to write.

    Raises:
        FileError: it is no such file, or `out` cannot be written.
    """
    model = read_onnx(file)
    if any(t.data_location for t in tensors_in(model.graph)):
        raise InputError("trim file: the model's constants lie in another file", where=file, expected="one file")
    data = encode_onnx(unpacked(model).SerializeToString(deterministic=True))
    write_atomic(out, lambda path: path.write_bytes(data))
    return out


def read_trim(file: Path, most: int = MOST) -> bytes:
    """The ONNX model of a coded file, as bytes that `onnxruntime.InferenceSession` and `onnx.load_from_string` take.

    Args:
        file: which may come from a stranger.
        most: bytes that it may decode to.

    Raises:
        FileError: there is no such file, it is cut short, damaged or hostile, or decodes to more.
        RuntimeMissing: it is coded by rANS, and the package `constriction` is not installed.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise FileError("trim file", where=file, got=error.strerror or error) from error
    try:
        return decode_onnx(data, most)
    except FileError as error:
        raise FileError(error.what, where=f"{file}: {error.where}", got=error.got, expected=error.expected) from error


def encode_onnx(model: bytes) -> bytes:
    """A serialised model, coded: `decode_onnx` gives the same bytes again, whatever they are."""
    rest, pieces, end = [], [], 0
    for at, length, width, columns in constants_in(model):
        piece = encode_tensor(model[at : at + length], width, columns)
        if len(piece) < length:
            rest.append(model[end:at])
            pieces.append(number(at - end) + number(length) + part(piece))
            end = at + length
    rest.append(model[end:])
    body = part(_squeezed(b"".join(rest))) + number(len(pieces)) + b"".join(pieces)
    missing = max(0, (len(model) - _FREE) // _RATIO - len(body))
    body += part(bytes(missing))
    return _MAGIC + number(len(body)) + number(len(model)) + _hash(body) + _hash(model) + body


def decode_onnx(data: bytes, most: int = MOST) -> bytes:
    """The bytes that `encode_onnx` took.

    Raises:
        FileError: it is cut short, damaged or hostile, or decodes to more than `most`.
    """
    cursor = Cursor(data, "trim file")
    if cursor.left < len(_MAGIC) or bytes(cursor.take(len(_MAGIC))) != _MAGIC:
        raise cursor.wrong(f"{data[:8]!r}", f"{_MAGIC!r}: not a trim file, or of another version")
    length, decoded = cursor.number(1 << 62), cursor.number(1 << 62)
    sums = [bytes(cursor.take(_HASH)) for _ in range(2)]
    if length != cursor.left:
        raise cursor.wrong(f"{cursor.left} bytes", f"{length}: it is cut short, or longer than it says")
    if decoded > min(most, _FREE + _RATIO * (length + 1)):
        raise cursor.wrong(f"a claim of {decoded} bytes", f"at most {min(most, _FREE + _RATIO * (length + 1))}")
    if _hash(cursor.data[cursor.at :]) != sums[0]:
        raise cursor.wrong("content that does not match its checksum", "the file as it was written")
    model = _joined(cursor, decoded)
    if _hash(model) != sums[1]:
        raise cursor.wrong("a decoded model that does not match its checksum", "the model that was coded")
    return model


def constants_in(model: bytes) -> list[tuple[int, int, int, int]]:
    """Where the constants of a serialised ONNX model lie: place, length, bytes of an item and items in a row of each.

    Nothing of bytes that are no ONNX model.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import ModelProto, TensorProto, helper

    parsed = ModelProto()
    try:
        parsed.ParseFromString(model)
    except DecodeError:
        return []
    found, end = [], 0
    for tensor in tensors_in(parsed.graph):
        raw = tensor.raw_data
        at = model.find(raw, end) if len(raw) >= LEAST else -1
        if at < 0:
            continue
        count = 1
        for size in tensor.dims:
            count *= size
        width = len(raw) // count if count > 0 and len(raw) % count == 0 else 1
        width = width if width in WIDTHS and tensor.data_type in helper.get_all_tensor_dtypes() else 1
        columns = count // tensor.dims[0] if len(tensor.dims) > 1 and width * count == len(raw) else 1
        found.append((at, len(raw), width, max(columns, 1) if tensor.data_type != TensorProto.STRING else 1))
        end = at + len(raw)
    return found


def _joined(cursor: Cursor, decoded: int) -> bytes:
    """The body's parts put together to `decoded` bytes."""
    squeezed, pieces, end = cursor.part(), [], 0
    for _ in range(cursor.number(cursor.left)):
        gap = cursor.number(decoded - end)
        length = cursor.number(decoded - end - gap)
        pieces.append((gap, length, cursor.part()))
        end += gap + length
    cursor.part()
    cursor.end()
    rest = memoryview(_widened(cursor, squeezed, decoded - sum(length for _, length, _ in pieces)))
    model, at = bytearray(), 0
    for gap, length, piece in pieces:
        model += rest[at : at + gap]
        model += decode_tensor(piece, length)
        at += gap
    model += rest[at:]
    return bytes(model)


def _squeezed(data: bytes) -> bytes:
    """The shortest of the bytes themselves, deflated, and by LZMA, behind a byte that says which."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    tried = (
        data,
        deflate.compress(data) + deflate.flush(),
        lzma.compress(data, lzma.FORMAT_RAW, filters=_FILTERS),
    )
    best = min(range(len(tried)), key=lambda i: len(tried[i]))
    return bytes([best]) + tried[best]


def _widened(cursor: Cursor, data: memoryview, length: int) -> bytes:
    """What `_squeezed` took; never more than one byte beyond `length` is made."""
    method, rest = (data[0], bytes(data[1:])) if len(data) else (_KEPT, b"")
    try:
        if method == _KEPT:
            found = rest
        elif method == _DEFLATED:
            found = zlib.decompressobj(-15).decompress(rest, length + 1)
        elif method == _LZMA:
            found = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(rest, length + 1)
        else:
            raise cursor.wrong(f"method {method}", f"at most {_LZMA}")
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise cursor.wrong(error, "deflated bytes") from error
    if len(found) != length:
        raise cursor.wrong(f"{len(found)} bytes beside the constants", length)
    return found


def _hash(data: bytes | memoryview | Sequence[Any]) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH).digest()  # type: ignore[arg-type]
