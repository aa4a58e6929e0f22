"""Files of a submission on the disk: unverified bytes, their names, and how they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NewType

from driftseed.core import limits
from driftseed.core.errors import DeviceError, DiskFull, FileMissing, Misuse, PeerMisbehaved, RequestRefused
from driftseed.store.files import disk_full_as_error, free_bytes

NAME_CHARS_MAX: Final = 512
"""Characters of a repository name, as in ``core.wire.GetFile``."""
_WRITE_BYTES: Final = limits.MIB
_COMPONENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")

FileName = NewType("FileName", str)
"""A repository name that was checked: ``metadata/…`` or ``targets/…``, no way out of either."""


def parse_file_name(text: str) -> FileName:
    """Check a repository name.

    Raises:
        Misuse: it is not under ``metadata/`` or ``targets/``, or could lead out of there.
    """
    parts = text.split("/")
    if (
        len(text) > NAME_CHARS_MAX
        or len(parts) < 2
        or parts[0] not in {"metadata", "targets"}
        or not all(_COMPONENT.fullmatch(part) for part in parts)
    ):
        raise Misuse(
            f"not a file of a repository: {text[:200]!r}",
            hint="such as metadata/4.snapshot.json or targets/deployments/HASH.ID.json",
        )
    return FileName(text)


def length_max(name: FileName) -> int:
    """Bytes that a file may have: targets are documents and torrents, of which torrents are larger."""
    return limits.METADATA_BYTES_MAX if name.startswith("metadata/") else limits.TORRENT_BYTES_MAX


class StagedFiles:
    """The metadata of one submission, as a source for ``trust.device.FleetTrust.refresh``.

    ``fetch`` may be called in any thread while the event loop adds files.
    """

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, name: FileName) -> bool:
        return name in self._paths

    def add(self, name: FileName, path: Path) -> None:
        """A file has arrived whole; one that had its name before is removed."""
        former = self._paths.get(name)
        self._paths[name] = path
        if former is not None:
            former.unlink(missing_ok=True)

    def fetch(self, name: str, max_length: int) -> bytes:
        """Give a staged file.

        Raises:
            FileMissing: it was not submitted, or the submission was dropped meanwhile.
            PeerMisbehaved: ``file-too-large``: it has more than ``max_length`` bytes.
        """
        path = self._paths.get(name)
        if path is None:
            raise FileMissing(f"the submission has no {name}")
        try:
            with path.open("rb") as file:
                data = file.read(max_length + 1)
        except FileNotFoundError:
            raise FileMissing(f"the submission was given up while {name} was asked for") from None
        if len(data) > max_length:
            raise PeerMisbehaved(
                f"the submitted {name} has more than {max_length} bytes", kind="file-too-large"
            )
        return data


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that was written whole."""

    path: Path
    length: int
    sha256: str


async def receive(path: Path, body: AsyncIterator[bytes], limit: int) -> Arrived:
    """Write a body to a new file, hashing it; nothing is left when it fails.

    Not durable yet: what is taken over is adopted by ``store.files``, which sees to that.

    Args:
        path: of the new file.
        body: whatever it raises is passed on.
        limit: most bytes that it may have.

    Raises:
        RequestRefused: it has more (status 413).
        DiskFull, DeviceError: it cannot be written.
    """
    receiver = await asyncio.to_thread(_Receiver, path)
    try:
        pending = bytearray()
        async for part in body:
            pending += part
            check_length(receiver.length + len(pending), limit)
            if len(pending) >= _WRITE_BYTES:
                await asyncio.to_thread(receiver.write, bytes(pending))
                pending.clear()
        await asyncio.to_thread(receiver.finish, bytes(pending))
    except BaseException:
        receiver.abort()
        raise
    return Arrived(path, receiver.length, receiver.digest.hexdigest())


def check_length(length: int, limit: int) -> None:
    """Raise RequestRefused (status 413) for more bytes than there may be."""
    if length > limit:
        raise RequestRefused(f"{length} bytes or more where {limit} are allowed", status=413)


class _Receiver:
    """A file that is being written in worker threads, one call after the other."""

    def __init__(self, path: Path) -> None:
        self.length = 0
        self.digest = hashlib.sha256()
        self._path = path
        with disk_errors(path):
            self._file = path.open("xb")

    def write(self, data: bytes) -> None:
        with disk_errors(self._path):
            self._file.write(data)
        self.length += len(data)
        self.digest.update(data)

    def finish(self, data: bytes) -> None:
        self.write(data)
        # Not durable yet: what is taken over is adopted by ``store.files``, which sees to that.
        with disk_errors(self._path):
            self._file.close()

    def abort(self) -> None:
        # On a full disk closing tries to write once more, and fails once more; the file goes in any case.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise DiskFull or another DeviceError where the system says OSError."""
    try:
        with disk_full_as_error(path):
            yield
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror}") from error


def check_space(directory: Path, length: int) -> None:
    """Refuse at once what cannot fit. Raises DiskFull."""
    free = free_bytes(directory)
    if free < length + limits.DISK_MARGIN_BYTES:
        raise DiskFull(
            f"no space for {length} bytes of content: {free} are free, and {limits.DISK_MARGIN_BYTES} must stay so",
            hint="free some space on this file system, and submit again",
        )
