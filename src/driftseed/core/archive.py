"""The subset of tar that a bundle is made of: regular files, in order, nothing else.

Written so that any ``tar`` lists and unpacks it (POSIX ustar headers, with GNU's ``L`` records for long names and
base-256 sizes), and read so that nothing but that is taken: no links, no devices, no directories, no sparse
files, no extended headers. A name is one of three shapes, so that none can lead anywhere::

    bundle.json   metadata/NAME   targets/PATH   content/SHA256

Every record is 512 bytes and padded to that; two empty ones end the archive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from driftseed.core.errors import Misuse

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
NAME_BYTES_MAX: Final = 512
DESCRIPTION: Final = "bundle.json"
CONTENT: Final = "content/"
_LONG_NAME: Final = b"././@LongLink"
_MAGIC: Final = b"ustar"
_SIZE_OCTAL_MAX: Final = 0o77777777777
_PART: Final = r"[A-Za-z0-9@%][A-Za-z0-9@%._+~-]*"
_NAME: Final = re.compile(
    rf"bundle\.json|metadata/{_PART}|targets/{_PART}(?:/{_PART}){{0,7}}|content/[0-9a-f]{{64}}"
)


@dataclass(frozen=True, slots=True)
class Header:
    """One file of an archive."""

    name: str
    size: int
    """Bytes."""
    is_name: bool = False
    """The bytes that follow are the name of the file after this one."""

    @property
    def padding(self) -> int:
        """Bytes that follow the file's."""
        return -self.size % BLOCK


def check_name(name: str) -> str:
    """Take a name of one of the three shapes. Raises Misuse for any other."""
    if len(name) > NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise Misuse(
            f"not a bundle: it holds a file called {name[:80]!r}", hint="driftseed bundle export makes one"
        )
    return name


def header(name: str, size: int, modified: int) -> bytes:
    """The records that come before a file's bytes.

    Args:
        name: of one of the shapes above.
        size: bytes.
        modified: seconds since 1970, for those who unpack it with ``tar``.
    """
    raw = check_name(name).encode("ascii")
    if len(raw) <= 100:
        return _record(raw, size, modified, b"0")
    long_name = raw + b"\0"
    padding = bytes(-len(long_name) % BLOCK)
    return (
        _record(_LONG_NAME, len(long_name), 0, b"L")
        + long_name
        + padding
        + _record(raw[:100], size, modified, b"0")
    )


def parse_header(block: bytes) -> Header | None:
    """Read one record; None for an empty one, which ends the archive.

    Raises:
        Misuse: damaged, or a kind of file that has no place in a bundle.
    """
    if block == bytes(BLOCK):
        return None
    if len(block) != BLOCK or block[257:262] != _MAGIC:
        raise Misuse("not a bundle: this is no tar archive", hint="is the file whole?")
    if _octal(block[148:156]) != _checksum(block):
        raise Misuse("the bundle is damaged: a header's checksum is wrong", hint="copy it again")
    kind = block[156:157]
    name = block[:100].rstrip(b"\0")
    size = _number(block[124:136])
    if kind == b"L" and name == _LONG_NAME and 1 < size <= NAME_BYTES_MAX + 1:
        return Header("", size, is_name=True)
    if kind != b"0":
        raise Misuse(
            f"not a bundle: it holds something that is no plain file (type {kind!r})",
            hint="driftseed bundle export makes one",
        )
    return Header(name.decode("ascii", "replace"), size)


def parse_long_name(data: bytes) -> str:
    """Read the bytes that follow a header with ``is_name``. Raises Misuse."""
    return check_name(data.rstrip(b"\0").decode("ascii", "replace"))


def _record(name: bytes, size: int, modified: int, kind: bytes) -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    if size <= _SIZE_OCTAL_MAX:
        block[124:136] = b"%011o\0" % size
    else:
        block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[136:148] = b"%011o\0" % max(0, min(modified, _SIZE_OCTAL_MAX))
    block[156:157] = kind
    block[257:265] = b"ustar  \0"
    block[148:156] = b"%06o\0 " % _checksum(bytes(block))
    return bytes(block)


def _checksum(block: bytes) -> int:
    """Sum of the bytes, with spaces where the checksum itself is."""
    return sum(block) - sum(block[148:156]) + 8 * 0x20


def _octal(field: bytes) -> int:
    digits = field.strip(b"\0 ")
    if not re.fullmatch(rb"[0-7]{1,12}", digits):
        raise Misuse("the bundle is damaged: a header has no number where one must be", hint="copy it again")
    return int(digits, 8)


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field)
