"""Bencoding (BEP 3), strict and bounded: what torrent files are written in.

A torrent is read here, in the agent's own process, before libtorrent sees a byte of it; so this decoder takes
the canonical form only (sorted unique keys, no leading zeros, nothing after the end), counts what it makes, and
knows byte strings, integers, lists and dictionaries and nothing else.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

Value: TypeAlias = "bytes | int | list[Value] | dict[bytes, Value]"

DEPTH_MAX: Final = 8
"""Containers within containers; a torrent of one file needs five."""
ITEMS_MAX: Final = 1024
"""Values in one document; a torrent of one file has about a dozen."""

_INTEGER: Final = re.compile(rb"i(0|-?[1-9][0-9]{0,18})e")
_LENGTH: Final = re.compile(rb"(0|[1-9][0-9]{0,9}):")


def encode(value: Value) -> bytes:
    """Encode a value; dictionaries come out with their keys sorted, so equal values are equal bytes."""
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def _encode(value: Value, parts: list[bytes]) -> None:
    match value:
        case bytes():
            parts += (str(len(value)).encode(), b":", value)
        case int():
            parts.append(b"i%de" % value)
        case list():
            parts.append(b"l")
            for item in value:
                _encode(item, parts)
            parts.append(b"e")
        case dict():
            parts.append(b"d")
            for key in sorted(value):
                _encode(key, parts)
                _encode(value[key], parts)
            parts.append(b"e")


def decode(data: bytes) -> Value:
    """Decode one whole document.

    Raises:
        ValueError: it is not canonical bencoding, ends early, goes on after its end, nests deeper than
            ``DEPTH_MAX`` or has more than ``ITEMS_MAX`` values.
    """
    reader = _Reader(data)
    value = reader.value(DEPTH_MAX)
    if reader.position != len(data):
        raise ValueError(f"{len(data) - reader.position} bytes after the end")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.items = 0

    def value(self, depth: int) -> Value:
        self.items += 1
        if self.items > ITEMS_MAX:
            raise ValueError(f"more than {ITEMS_MAX} values")
        if depth == 0:
            raise ValueError(f"nested deeper than {DEPTH_MAX}")
        match self.data[self.position : self.position + 1]:
            case b"i":
                return self._integer()
            case b"l":
                return self._list(depth)
            case b"d":
                return self._dictionary(depth)
            case _:
                return self._string()

    def _integer(self) -> int:
        found = _INTEGER.match(self.data, self.position)
        if found is None:
            raise ValueError(f"no integer at byte {self.position}")
        self.position = found.end()
        return int(found[1])

    def _string(self) -> bytes:
        found = _LENGTH.match(self.data, self.position)
        if found is None:
            raise ValueError(f"no value at byte {self.position}")
        end = found.end() + int(found[1])
        if end > len(self.data):
            raise ValueError(f"a string of {int(found[1])} bytes at byte {self.position} is cut off")
        self.position = end
        return self.data[found.end() : end]

    def _more(self) -> bool:
        if self.data[self.position : self.position + 1] == b"e":
            self.position += 1
            return False
        return True

    def _list(self, depth: int) -> list[Value]:
        self.position += 1
        values: list[Value] = []
        while self._more():
            values.append(self.value(depth - 1))
        return values

    def _dictionary(self, depth: int) -> dict[bytes, Value]:
        self.position += 1
        values: dict[bytes, Value] = {}
        last: bytes | None = None
        while self._more():
            key = self._string()
            if last is not None and key <= last:
                raise ValueError(f"dictionary keys out of order at byte {self.position}")
            last = key
            values[key] = self.value(depth - 1)
        return values
