"""The content that this node keeps: verified files named by their SHA-256, within a quota.

==================== =======================================================================
``SHA256``           a whole file; it had this SHA-256 when it was given this name
``SHA256.unverified`` being fetched, or fetched and not yet verified; worth nothing until then
==================== =======================================================================

A file's modification time is the time of its last use; that survives a kill and needs no second place
that could disagree. What else lies in the directory (leftovers, symbolic links, names that are no SHA-256) is
removed at the start: the directory belongs to this class alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from driftseed.core import limits
from driftseed.core.errors import ContentMismatch, DiskFull, Misuse, NotFound
from driftseed.core.ids import Digest, parse_digest
from driftseed.core.verified import VerifiedArtifact
from driftseed.store import files
from driftseed.swarm.client import PARTIAL_SUFFIX

COPY_BYTES: Final = 1 * limits.MIB
"""Bytes of one step when a file is copied in."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Whole:
    """A verified file."""

    length: int
    used: float
    """Seconds since 1970 of its last use."""


class ContentStore:
    """Files by their SHA-256. Not thread-safe except where said; methods that do I/O block.

    Args:
        directory: made when it is not there; nobody else may write to it.
        quota_bytes: most bytes of whole and partial files together.
        clock: seconds since 1970.
        free: bytes that are free on a directory's file system.

    Raises:
        Misuse: the directory is a symbolic link or no directory.
        OSError: it cannot be made or read.
    """

    def __init__(
        self,
        directory: Path,
        quota_bytes: int = limits.CONTENT_QUOTA_DEFAULT,
        *,
        clock: Callable[[], float] = time.time,
        free: Callable[[Path], int] = files.free_bytes,
    ) -> None:
        if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
            raise Misuse(f"{directory} is not a directory", hint="give the content a directory of its own")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.quota_bytes = quota_bytes
        self._clock = clock
        self._free = free
        self._whole: dict[Digest, _Whole] = {}
        self._partial: dict[Digest, int] = {}
        """Bytes that each partial file may come to have: the signed length once somebody fetches it."""
        self._pins: set[Digest] = set()
        self._scan()

    # --- what is here ---------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the whole, verified file is here."""
        return digest in self._whole

    def digests(self) -> list[Digest]:
        """Whole files, the most recently used first."""
        return sorted(self._whole, key=lambda digest: self._whole[digest].used, reverse=True)

    def partials(self) -> list[Digest]:
        """Files that were begun."""
        return sorted(self._partial)

    def path(self, digest: Digest) -> Path:
        """Where a whole file is.

        Raises:
            NotFound: it is not here.
        """
        if digest not in self._whole:
            raise NotFound(f"content {digest} is not on this device")
        return self.directory / digest

    def partial_path(self, digest: Digest) -> Path:
        """Where a file is, or would be, while it is fetched."""
        return self.directory / (digest + PARTIAL_SUFFIX)

    @property
    def used_bytes(self) -> int:
        """Bytes that count against the quota: whole files, and partial ones as if they were whole."""
        return sum(whole.length for whole in self._whole.values()) + sum(self._partial.values())

    def touch(self, digest: Digest) -> None:
        """Note that a whole file was used now. Does nothing when it is not here."""
        if digest in self._whole:
            now = self._clock()
            self._whole[digest].used = now
            # Gone behind our back: whoever reads it next finds out, with a better message.
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.directory / digest, (now, now), follow_symlinks=False)

    # --- making room ----------------------------------------------------------------------------

    @property
    def pins(self) -> frozenset[Digest]:
        """What is never evicted: what is installed, being installed, or may be rolled back to."""
        return frozenset(self._pins)

    def pin(self, digest: Digest) -> None:
        """Never evict this content; it need not be here yet."""
        self._pins.add(digest)

    def unpin(self, digest: Digest) -> None:
        """Let this content be evicted when its turn comes."""
        self._pins.discard(digest)

    def make_room(self, digest: Digest, length: int) -> list[Digest]:
        """Reserve space for a content that is about to be fetched or added, evicting what it must.

        The reservation holds until the content is adopted, or ``discard``ed. Of the least recently used
        only as many are evicted as are needed.

        Args:
            digest: the content; nothing is needed when it is here.
            length: its bytes.

        Returns:
            What was evicted: its files are gone, and whoever serves them must stop.

        Raises:
            DiskFull: it does not fit into the quota beside what is pinned or being fetched, or the file
                system would have less than ``limits.DISK_MARGIN_BYTES`` left. Nothing was evicted.
        """
        if digest in self._whole:
            return []
        others = self.used_bytes - self._partial.get(digest, 0)
        candidates = [each for each in reversed(self.digests()) if each not in self._pins]
        over_quota = others + length - self.quota_bytes
        missing = self._unwritten(besides=digest) + length - self._allocated(digest)
        short = missing + limits.DISK_MARGIN_BYTES - self._free(self.directory)
        victims: list[Digest] = []
        freed = 0
        while candidates and freed < max(over_quota, short):
            victim = candidates.pop(0)
            victims.append(victim)
            freed += self._whole[victim].length
        if freed < over_quota:
            raise DiskFull(
                f"content {digest} of {length} bytes does not fit into the quota of {self.quota_bytes} bytes",
                hint="raise the content quota, or remove content that is not needed",
            )
        if freed < short:
            raise DiskFull(
                f"content {digest} needs {short - freed} bytes more than are free at {self.directory}",
                hint="free some space on this file system; it is tried again",
            )
        for victim in victims:
            log.info("evicting content %s to make room for %s", victim, digest)
            self.remove(victim)
        self._partial[digest] = length
        return victims

    def _allocated(self, digest: Digest) -> int:
        """Bytes that a partial file has on the disk already."""
        try:
            return self.partial_path(digest).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def _unwritten(self, *, besides: Digest) -> int:
        """Bytes that are promised to other contents and not yet taken from the file system."""
        return sum(
            max(0, length - self._allocated(other))
            for other, length in self._partial.items()
            if other != besides
        )

    # --- coming and going -----------------------------------------------------------------------

    def adopt(self, artifact: VerifiedArtifact) -> Path:
        """Take a partial file whose SHA-256 was verified as a whole one, durably.

        Also right when the engine has given it its final name already (it can do so without dropping
        connections); ``adoption.adopt`` does both in order.

        Returns:
            The file.

        Raises:
            NotFound: there is neither a partial nor a whole file of this SHA-256.
            DiskFull: its bytes did not reach the disk; it stays partial.
            OSError: likewise.
        """
        digest = Digest(artifact.artifact.sha256)
        path, partial = self.directory / digest, self.partial_path(digest)
        if path.exists():
            flush(path)
            partial.unlink(missing_ok=True)
            files.sync_directory(self.directory)
        elif partial.exists():
            files.adopt(partial, path)
        else:
            raise NotFound(f"content {digest} is not on this device")
        return self._keep(digest, artifact.artifact.length)

    def add_file(self, source: Path, digest: Digest) -> Path:
        """Copy a file in, verifying it on the way.

        Call ``make_room`` first, which reserves the space.

        Returns:
            The file here.

        Raises:
            ContentMismatch: ``source`` does not have this SHA-256. Nothing is left here.
            DiskFull: likewise.
            OSError: ``source`` cannot be read. Likewise.
        """
        if digest in self._whole:
            return self.directory / digest
        partial = self.partial_path(digest)
        try:
            with files.disk_full_as_error(partial):
                length = _copy(source, partial, digest)
            files.adopt(partial, self.directory / digest)
        except BaseException:
            self.discard(digest)
            raise
        return self._keep(digest, length)

    def _keep(self, digest: Digest, length: int) -> Path:
        self._partial.pop(digest, None)
        self._whole[digest] = _Whole(length, 0.0)
        self.touch(digest)
        return self.directory / digest

    def discard(self, digest: Digest) -> None:
        """Remove a partial file and give its reservation back. Raises OSError."""
        self.partial_path(digest).unlink(missing_ok=True)
        self._partial.pop(digest, None)

    def remove(self, digest: Digest) -> None:
        """Remove a whole file, pinned or not. Does nothing when it is not here. Raises OSError."""
        if self._whole.pop(digest, None) is not None:
            (self.directory / digest).unlink(missing_ok=True)

    def _scan(self) -> None:
        with os.scandir(self.directory) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                digest = _digest(entry.name.removesuffix(PARTIAL_SUFFIX))
                status = entry.stat(follow_symlinks=False)
                if digest is None or not stat.S_ISREG(status.st_mode):
                    _drop(Path(entry.path))
                elif entry.name.endswith(PARTIAL_SUFFIX):
                    self._partial[digest] = status.st_size
                else:
                    self._whole[digest] = _Whole(status.st_size, status.st_mtime)
        for digest in self._partial.keys() & self._whole.keys():
            self.discard(digest)  # the power went, or the engine died, in the middle of an adoption


def _copy(source: Path, target: Path, digest: Digest) -> int:
    """Copy a file; return its length. Raises ContentMismatch when it does not have this SHA-256."""
    length = 0
    hasher = hashlib.sha256()
    target.unlink(missing_ok=True)
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(COPY_BYTES):
            hasher.update(chunk)
            writer.write(chunk)
            length += len(chunk)
    if hasher.hexdigest() != digest:
        raise ContentMismatch(f"{source} has SHA-256 {hasher.hexdigest()}, not {digest}")
    return length


def flush(path: Path) -> None:
    """Make a file's bytes durable, whoever wrote them.

    Raises:
        DiskFull: they do not fit after all (delayed allocation).
        OSError: they cannot be written, or the file is not there.
    """
    with files.disk_full_as_error(path), path.open("rb") as file:
        os.fsync(file.fileno())


def _digest(name: str) -> Digest | None:
    try:
        return parse_digest(name)
    except Misuse:
        return None


def _drop(path: Path) -> None:
    """Remove what does not belong here; a link is removed, not followed; a directory is left, and told."""
    if path.is_dir() and not path.is_symlink():
        log.warning("%s does not belong into the content directory", path)
        return
    log.warning("removing %s, which does not belong into the content directory", path)
    path.unlink()
