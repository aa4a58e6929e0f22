"""Reads an archive to its end before it is signed, and says where it broke.

An archive that a build cut short often unpacks without complaint, as far as it goes: tar stops quietly
at the first header it cannot read. A device would then install half an application.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, Final, cast

from driftseed.core.errors import ArtifactUnreadable

BLOCK: Final = 512
"""Bytes of a tar block (POSIX pax, "ustar Interchange Format")."""
READ_BYTES: Final = 1024 * 1024
"""Bytes read at once."""

_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError)


def check_archive(path: Path) -> int:
    """Read a tar (plain, gzip, bzip2, xz) or zip archive to its end.

    Args:
        path: the file.

    Returns:
        Number of members.

    Raises:
        ArtifactUnreadable: neither a tar nor a zip archive, encrypted, damaged, or cut off.
    """
    with path.open("rb") as raw:
        # A zip archive that was cut off has lost the directory at its end by which zipfile knows it.
        looks_like_zip = raw.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(raw)
    return _check_zip(path) if looks_like_zip else _check_tar(path)


def _check_zip(path: Path) -> int:
    where = "at its directory"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                where = f"in {member.filename!r}"
                with archive.open(member) as stream:
                    while stream.read(READ_BYTES):
                        pass
    # RuntimeError: encrypted. NotImplementedError is one, too: a compression that Python does not have.
    except (zipfile.BadZipFile, RuntimeError, *_DAMAGE) as error:
        raise _broken(path, "zip", where, error) from None
    return len(members)


def _check_tar(path: Path) -> int:
    count = 0
    where = "at its first header"
    with path.open("rb") as raw:
        try:
            # Not closed: it owns nothing, and closing a plain file would lose the place where it broke.
            stream = _decompressed(raw)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    where = f"after {member.name!r}"
                    count += 1
                # tarfile ends its iteration at what POSIX says ends an archive, a block of zeros, and just as
                # well at the end of the file or at a header that is damaged.
                stream.seek(archive.offset)
                end = stream.read(BLOCK)
                if len(end) < BLOCK:
                    raise tarfile.ReadError("the archive has no end: it was cut off between two members")
                if any(end):
                    raise tarfile.ReadError("no header of a member where one should be")
                # To the very end, as a checksum of the compression comes last.
                while stream.read(READ_BYTES):
                    pass
        except _DAMAGE as error:
            raise _broken(path, "tar", f"{where}, near byte {raw.tell()}", error) from None
    return count


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw, mode="rb"))
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if magic == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(raw)
    return raw


def _broken(path: Path, kind: str, where: str, error: Exception) -> ArtifactUnreadable:
    return ArtifactUnreadable(
        f"{path} is not a whole {kind} archive: {where} of {path.stat().st_size}: {str(error) or type(error).__name__}",
        hint="build it again; the module 'directory' unpacks tar (also .gz, .bz2, .xz) and zip archives",
    )
