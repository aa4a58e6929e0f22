"""Unpack an archive that may be hostile into a directory that is new and empty.

An artifact is signed, but a build system can be deceived, so nothing of it is taken on trust: only regular
files, directories and links are made; no name leads outside, neither by itself nor through a link that
came before; no file is set-user-id; and no more is written than the limits and the disk allow, whatever
the archive's headers say.
"""

from __future__ import annotations

import calendar
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from driftseed.core import limits
from driftseed.core.errors import DiskFull, ModuleFailed

_CHUNK_BYTES = 1 * limits.MIB
_MODE_BITS = 0o777
_LINK_BYTES_MAX = 4096  # PATH_MAX
_ZIP_ENCRYPTED = 0x1
"""General purpose bit 0 (APPNOTE.TXT, section 4.4.4)."""
_SPACE_EVERY_BYTES = 1 * limits.MIB
"""How often the free space is looked at again."""


def unpack(
    archive: Path,
    target: Path,
    *,
    bytes_max: int = limits.UNPACKED_BYTES_MAX,
    entries_max: int = limits.UNPACKED_ENTRIES_MAX,
) -> None:
    """Unpack a tar archive (plain, gzip, bzip2 or xz) or a zip archive.

    Args:
        archive: the file.
        target: a directory that exists and is empty.
        bytes_max: bytes that all files may have together.
        entries_max: files, directories and links that there may be.

    Raises:
        ModuleFailed: it is no such archive, damaged, larger than allowed, or holds what it must not.
        DiskFull: there is not enough space.
        OSError: something cannot be written.
    """
    unpacking = _Unpacking(target, bytes_max, entries_max)
    try:
        if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):
            _unpack_zip(archive, unpacking)
        else:
            _unpack_tar(archive, unpacking)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        lzma.LZMAError,
        zlib.error,
        EOFError,
        NotImplementedError,  # a zip with a compression or encryption that Python does not know
        UnicodeError,
    ) as error:
        raise ModuleFailed(f"{archive.name} cannot be unpacked: {error}") from None
    unpacking.finish()


@dataclass(frozen=True)
class _Entry:
    name: str
    mode: int
    modified: float


class _Unpacking:
    """Writes entries below a directory, and nowhere else."""

    def __init__(self, target: Path, bytes_max: int, entries_max: int) -> None:
        self._target = target
        self._bytes_left = bytes_max
        self._entries_left = entries_max
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._unchecked = _SPACE_EVERY_BYTES  # so that the space is looked at before the first byte
        self._links: set[str] = set()
        self._directories: dict[Path, _Entry] = {}

    def directory(self, entry: _Entry) -> None:
        path = self._place(entry.name)
        if path.is_symlink():
            raise ModuleFailed(f"a directory that is a link already: {entry.name}")
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._directories[path] = entry

    def file(self, entry: _Entry, content: IO[bytes]) -> None:
        path = self._place(entry.name)
        self._make_room(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            while data := content.read(_CHUNK_BYTES):
                self._count(len(data))
                file.write(data)
            file.flush()
            os.fchmod(file.fileno(), (entry.mode & _MODE_BITS) | stat.S_IRUSR | stat.S_IWUSR)
        os.utime(path, (entry.modified, entry.modified))

    def symlink(self, entry: _Entry, target: str) -> None:
        path = self._place(entry.name)
        name = _clean(entry.name)
        _clean(posixpath.join(posixpath.dirname(name), target), link=f"{entry.name} -> {target}")
        if posixpath.isabs(target):
            raise ModuleFailed(f"a link to an absolute path: {entry.name} -> {target}")
        self._make_room(path)
        path.symlink_to(target)
        self._links.add(name)

    def hardlink(self, entry: _Entry, target: str) -> None:
        path, linked = self._place(entry.name), self._place(target, new=False)
        if not stat.S_ISREG(os.lstat(linked).st_mode):
            raise ModuleFailed(f"a hard link to something that is not a file: {entry.name} -> {target}")
        self._make_room(path)
        os.link(linked, path, follow_symlinks=False)

    def finish(self) -> None:
        """Look at links once all are there, and give directories their modes: one may be read-only.

        Raises:
            ModuleFailed: a link leads outside by way of another.
        """
        root = self._target.resolve()
        for name in self._links:
            if not Path(os.path.realpath(root / name)).is_relative_to(root):
                raise ModuleFailed(f"a link that leads outside by way of others: {name}")
        for path, entry in reversed(self._directories.items()):
            path.chmod((entry.mode & _MODE_BITS) | stat.S_IRWXU)
            os.utime(path, (entry.modified, entry.modified))

    def _place(self, name: str, *, new: bool = True) -> Path:
        """Where an entry goes. Raises ModuleFailed: outside, or through a link."""
        clean = _clean(name)
        parents = clean.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            if "/".join(parents[:depth]) in self._links:
                raise ModuleFailed(f"a name that leads through a link: {name}")
        if new:
            if self._entries_left == 0:
                raise ModuleFailed(f"more than {self._entries_max} entries")
            self._entries_left -= 1
        return self._target / clean

    def _make_room(self, path: Path) -> None:
        """What comes twice counts the second time, as tar has it; a directory is never replaced."""
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.is_symlink():
            self._links.discard(str(path.relative_to(self._target)))
        path.unlink(missing_ok=True)

    def _count(self, length: int) -> None:
        self._bytes_left -= length
        if self._bytes_left < 0:
            raise ModuleFailed(f"more than {self._bytes_max} bytes when unpacked")
        self._unchecked += length
        if self._unchecked >= _SPACE_EVERY_BYTES:
            self._unchecked = 0
            if shutil.disk_usage(self._target).free < limits.DISK_MARGIN_BYTES:
                raise DiskFull(f"less than {limits.DISK_MARGIN_BYTES} bytes would stay free")


def _clean(name: str, *, link: str = "") -> str:
    """A path below the root, without ``.`` and empty parts.

    Raises:
        ModuleFailed: it is absolute, leads above the root, or holds a character that no name can.
    """
    clean = posixpath.normpath(name)
    outside = posixpath.isabs(name) or clean == ".." or clean.startswith("../")
    if outside or "\0" in name or (not link and ".." in name.split("/")):
        raise ModuleFailed(f"a name that leads outside: {link or name}")
    return clean


def _unpack_tar(archive: Path, unpacking: _Unpacking) -> None:
    with tarfile.open(archive, "r:*") as tar:
        for member in _members(tar):
            entry = _Entry(member.name, member.mode, max(0.0, float(member.mtime)))
            if member.isdir():
                unpacking.directory(entry)
            elif member.issym():
                unpacking.symlink(entry, member.linkname)
            elif member.islnk():
                unpacking.hardlink(entry, member.linkname)
            elif member.isreg() and not member.issparse():
                content = tar.extractfile(member)
                if content is None:
                    raise ModuleFailed(f"no content of {member.name}")
                with content:
                    unpacking.file(entry, content)
            else:
                raise ModuleFailed(f"neither file, directory nor link: {member.name}")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members one by one, without keeping those that are done with."""
    while (member := tar.next()) is not None:
        yield member
        # typeshed does not know it, and tarfile would otherwise keep a million of them in memory
        tar.members = []  # type: ignore[attr-defined]


def _unpack_zip(archive: Path, unpacking: _Unpacking) -> None:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            if not info.filename or info.flag_bits & _ZIP_ENCRYPTED:
                raise ModuleFailed(f"an entry that has no name, or is encrypted: {info.filename!r}")
            # The upper half holds Unix modes, where the archive was made on such a system.
            mode = info.external_attr >> 16
            entry = _Entry(
                info.filename, mode & _MODE_BITS or (0o755 if info.is_dir() else 0o644), _when(info)
            )
            kind = stat.S_IFMT(mode)
            if info.is_dir():
                unpacking.directory(entry)
            elif kind == stat.S_IFLNK:
                with packed.open(info) as content:
                    target = content.read(_LINK_BYTES_MAX + 1)
                if len(target) > _LINK_BYTES_MAX:
                    raise ModuleFailed(f"a link of more than {_LINK_BYTES_MAX} bytes: {info.filename}")
                unpacking.symlink(entry, target.decode("utf-8"))
            elif kind in {0, stat.S_IFREG}:
                with packed.open(info) as content:
                    unpacking.file(entry, content)
            else:
                raise ModuleFailed(f"neither file, directory nor link: {info.filename}")


def _when(info: zipfile.ZipInfo) -> float:
    """A zip's time has no zone; it is taken as UTC, so that it is the same on every device."""
    year, month, *rest = info.date_time
    # A zip may claim a thirteenth month; days and seconds that do not exist run over.
    return float(max(0, calendar.timegm((year, min(max(month, 1), 12), *rest, 0, 0, 0))))
