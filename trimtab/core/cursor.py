"""Cursor: numbers and parts read one behind the other from bytes that may come from a stranger."""

from __future__ import annotations

from trimtab.core.errors import FileError

_GROUP = 7
"""Bits of a number in each of its bytes."""
_LONGEST = 9
"""Bytes of the longest number: 63 bits."""


def number(value: int) -> bytes:
    """A whole number, 0 or more, in as few bytes as it needs: seven bits in each, the lowest first (LEB128)."""
    parts = bytearray()
    while value >> _GROUP:
        parts.append(value & 0x7F | 0x80)
        value >>= _GROUP
    parts.append(value)
    return bytes(parts)


def part(data: bytes) -> bytes:
    """Bytes behind their own length."""
    return number(len(data)) + data


class Cursor:
    """A place in bytes; it only moves forward, and never past the end.

    Args:
        data: what is read.
        what: it is, for messages.
    """

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self.data, self.what, self.at = memoryview(data), what, 0

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return len(self.data) - self.at

    def take(self, count: int) -> memoryview:
        """The next bytes, not copied.

        Raises:
            FileError: there are fewer.
        """
        if count > self.left:
            raise self.wrong(f"{self.left} bytes", f"{count}: it is cut short or damaged")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, most: int) -> int:
        """The next number.

        Raises:
            FileError: it is above `most`, or cut short.
        """
        value = 0
        for i in range(_LONGEST):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << _GROUP * i
            if not byte >> _GROUP:
                break
        else:
            raise self.wrong("a number without an end", "a number")
        if value > most:
            raise self.wrong(f"a claim of {value}", f"at most {most}")
        return value

    def part(self) -> memoryview:
        """The next bytes that stand behind their own length."""
        return self.take(self.number(self.left))

    def end(self) -> None:
        """FileError where anything is left."""
        if self.left:
            raise self.wrong(f"{self.left} bytes too many", "its end")

    def wrong(self, got: object, expected: object) -> FileError:
        """The error of a file that is not what it says."""
        return FileError(self.what, where=f"byte {self.at}", got=got, expected=expected)
