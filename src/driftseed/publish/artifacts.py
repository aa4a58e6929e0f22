"""What ``release create`` is given: files and URLs, each with the devices it is for.

A file is looked at as a device will receive it: whether it is a file at all, can be read to its end and
stays the same meanwhile. What is wrong with it should be said to the person who can mend it, not by a
thousand devices.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from driftseed.core import limits
from driftseed.core.errors import ArtifactUnreadable, Misuse
from driftseed.core.ids import Digest, SafeName, parse_safe_name

READ_BYTES: Final = 1024 * 1024
"""Bytes read at once while hashing."""

Progress = Callable[[str, int], None]
"""Called with what is being read and how many bytes of it more."""


@dataclass(frozen=True, slots=True)
class ArtifactArgument:
    """One ``--artifact``: where the file is, and which devices it is for."""

    source: str
    """A path or an http(s) URL."""
    selector: str

    @property
    def is_url(self) -> bool:
        """Whether it must be downloaded first."""
        return self.source.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class ReadArtifact:
    """A file that was read to its end and did not change meanwhile."""

    path: Path
    filename: SafeName
    length: int
    sha256: Digest


def split_artifact(text: str, exists: Callable[[str], bool] = os.path.exists) -> ArtifactArgument:
    """Split ``FILE[:SELECTOR]`` or ``URL[:SELECTOR]``.

    File names may contain colons, so the longest prefix that exists is the file; a selector never contains
    one. In a URL the first colon after the host's slash ends it (write ``%3A`` for a colon in its path).

    Args:
        text: what the person wrote.
        exists: whether there is something of this name.

    Raises:
        ArtifactUnreadable: no part of it is a file, or the URL has no file name.
    """
    if text.startswith(("http://", "https://")):
        return _split_url(text)
    cut = len(text)
    while cut > 0:
        if exists(text[:cut]):
            return ArtifactArgument(text[:cut], text[cut + 1 :])
        cut = text.rfind(":", 0, cut)
    raise ArtifactUnreadable(
        f"there is no file {text.partition(':')[0]!r}",
        hint="--artifact takes FILE or FILE:SELECTOR, such as app-arm64.tar.gz:arch=arm64",
    )


def _split_url(text: str) -> ArtifactArgument:
    scheme, _, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    path, _, selector = path.partition(":")
    if not host or not slash or not url_filename(f"{scheme}://{host}/{path}"):
        raise ArtifactUnreadable(
            f"there is no file name in {text[:200]!r}",
            hint="a URL to an artifact ends with the name of a file",
        )
    return ArtifactArgument(f"{scheme}://{host}/{path}", selector)


def total_length(artifacts: Iterable[ArtifactArgument]) -> int:
    """Bytes that will be read, for a progress bar: files that are not there, and URLs, count nothing."""
    total = 0
    for artifact in artifacts:
        with contextlib.suppress(OSError):
            total += 0 if artifact.is_url else Path(artifact.source).stat().st_size
    return total


def url_filename(url: str) -> str:
    """The last component of a URL's path; empty when there is none."""
    return unquote(urlsplit(url).path.rpartition("/")[2])


def artifact_filename(name: str) -> SafeName:
    """The name under which devices will see the file.

    Raises:
        ArtifactUnreadable: it is not a harmless file name.
    """
    try:
        return parse_safe_name(name, "file name")
    except Misuse as error:
        raise ArtifactUnreadable(
            f"devices could not store a file of this name: {name[:160]!r}", hint=f"rename it: {error.hint}"
        ) from None


def read_artifact(path: Path, filename: str, progress: Progress) -> ReadArtifact:
    """Read a file to its end and compute its SHA-256.

    Args:
        path: the file.
        filename: the name under which devices will see it.
        progress: called while reading.

    Raises:
        ArtifactUnreadable: missing, unreadable, not a regular file, empty, too large, or changed meanwhile.
    """
    safe = artifact_filename(filename)
    digest = hashlib.sha256()
    length = 0
    try:
        with steady(path) as stream:
            while chunk := stream.read(READ_BYTES):
                digest.update(chunk)
                length += len(chunk)
                progress(f"reading {filename}", len(chunk))
    except OSError as error:
        raise ArtifactUnreadable(f"{path} cannot be read: {error.strerror or error}") from None
    return ReadArtifact(path, safe, length, Digest(digest.hexdigest()))


class _Steady:
    """A file opened for reading, with what it was at that moment."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._position = 0
        self._before = os.fstat(descriptor)

    def read(self, count: int) -> bytes:
        data = os.read(self._descriptor, count)
        self._position += len(data)
        return data

    def check(self) -> None:
        now = os.fstat(self._descriptor)
        same = (now.st_size, now.st_mtime_ns) == (self._before.st_size, self._before.st_mtime_ns)
        # The end of the file is where the writer has got to, so the position is compared as well.
        if not same or self._position != self._before.st_size:
            raise ArtifactUnreadable(
                f"{self._path} changed while it was read",
                hint="wait until whatever writes it has finished, then run the command again",
            )


@contextmanager
def steady(path: Path) -> Iterator[_Steady]:
    """Open a regular file and insist, at the end, that it was read whole and did not change.

    Raises:
        ArtifactUnreadable: not a regular file, empty, too large, or changed while it was open.
        OSError: it cannot be opened or read.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer, for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ArtifactUnreadable(f"there is no file {str(path)!r}") from None
    try:
        _check_kind(os.fstat(descriptor), path)
        stream = _Steady(descriptor, path)
        yield stream
        stream.check()
    finally:
        os.close(descriptor)


def _check_kind(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ArtifactUnreadable(
            f"{path} is a directory",
            hint=f"pack it first: tar -C {path} -czf {path.name or 'artifact'}.tar.gz .",
        )
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactUnreadable(f"{path} is not a regular file")
    if status.st_size == 0:
        raise ArtifactUnreadable(f"{path} is empty", hint="did the build that writes it fail?")
    if status.st_size > limits.ARTIFACT_BYTES_MAX:
        raise ArtifactUnreadable(
            f"{path} has {status.st_size} bytes, and {limits.ARTIFACT_BYTES_MAX} are allowed"
        )
