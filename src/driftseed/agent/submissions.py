"""Where signed metadata and content wait that somebody hands to this agent, until all of it is verified.

Everything lies under ``DATA/submissions/ID/`` in files called ``*.unverified``, whose names come from hashes
and never from the submitter. One submission at a time, bounded in files and bytes, dropped when nobody goes on
with it, and at every start: whoever submits has it all still.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from driftseed.agent.staged import (
    Arrived,
    FileName,
    StagedFiles,
    check_length,
    check_space,
    disk_errors,
    length_max,
    parse_file_name,
    receive,
)
from driftseed.core import limits
from driftseed.core.errors import (
    Conflict,
    ContentMismatch,
    DeviceError,
    NotFound,
    RequestRefused,
    TransportError,
)
from driftseed.core.ids import Digest, parse_digest
from driftseed.trust.source import MetadataSource

_log = logging.getLogger(__name__)

DIRECTORY: Final = "submissions"
FILES_MAX: Final = 8192
"""Metadata files and small targets of one submission."""
FILES_BYTES_MAX: Final = 256 * limits.MIB
"""Bytes of all metadata files and small targets of one submission."""
IDLE_S: Final = 600.0
"""Seconds after which a submission is dropped with which nobody goes on."""
_TOO_LARGE: Final = 413
_COMMIT: Final = "commit"
"""Stands for the taking over among what a submission is busy with; no file or content is called so."""


class SubmissionTaker(Protocol):
    """Who knows what is trusted: the agent's node."""

    async def named(self, source: MetadataSource) -> Mapping[Digest, int]:
        """Verify staged metadata, without taking it over.

        Args:
            source: the staged files; ``fetch`` may be called in a worker thread.

        Returns:
            Length in bytes of each content that it names, by SHA-256.

        Raises:
            TrustError: it does not verify.
            FileMissing: it is not complete.
        """
        ...

    def holds(self, digest: Digest) -> bool:
        """Whether a content is on this device already."""
        ...

    async def take_over(self, source: MetadataSource, contents: Mapping[Digest, Path]) -> int:
        """Verify staged metadata, trust it from now on, keep the contents and tell the neighbours.

        Args:
            source: the staged files.
            contents: files whose SHA-256 is right, on the data directory's file system; those that are kept
                are to be renamed away, the others are removed afterwards.

        Returns:
            The timestamp version that is trusted now.

        Raises:
            TrustError: it does not verify; nothing was taken over.
            FileMissing: it is not complete.
            DeviceError: it could not be kept.
        """
        ...


@dataclass
class _Submission:
    id: str
    directory: Path
    files: StagedFiles = field(default_factory=StagedFiles)
    sizes: dict[FileName, int] = field(default_factory=dict)
    """Bytes of each file that is here."""
    contents: dict[Digest, Path] = field(default_factory=dict)
    named: Mapping[Digest, int] | None = None
    """What the files name; None after another one has come."""
    arrivals: int = 0
    """Counts what began to arrive: names the files on the disk, and tells whether ``files`` changed."""
    busy: set[str] = field(default_factory=set)
    """What is arriving, or ``commit``."""
    naming: asyncio.Lock = field(default_factory=asyncio.Lock)

    def bytes_beside(self, name: FileName) -> int:
        """Bytes of all files but one."""
        return sum(self.sizes.values()) - self.sizes.get(name, 0)


class Submissions:
    """At most one submission at a time.

    Args:
        data: the agent's data directory, whose lock the caller holds.
        taker: verifies and takes over.
        new_id: makes unpredictable names, such as ``lambda: uuid4().hex``.
        idle_s: seconds after which an abandoned submission is dropped.
    """

    def __init__(
        self, data: Path, taker: SubmissionTaker, *, new_id: Callable[[], str], idle_s: float = IDLE_S
    ) -> None:
        self._directory = data / DIRECTORY
        self._taker = taker
        self._new_id = new_id
        self._idle_s = idle_s
        self._current: _Submission | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._removals: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Remove what a former process left."""
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def close(self) -> None:
        """Drop what there is."""
        if self._current is not None:
            self._drop(self._current)
        if self._removals:
            await asyncio.wait(self._removals)

    async def begin(self) -> str:
        """Begin a submission.

        Returns:
            Its id.

        Raises:
            Conflict: another one is under way.
            DiskFull: there is no space for it.
        """
        if self._current is not None:
            raise Conflict(
                f"submission {self._current.id} is under way",
                hint=f"wait for its end, or give it up: DELETE /v1/submit/{self._current.id}",
            )
        name = self._new_id()
        submission = _Submission(name, self._directory / name)
        self._current = submission
        try:
            with disk_errors(submission.directory):
                submission.directory.mkdir(mode=0o700, parents=True)
        except DeviceError:
            self._drop(submission)
            raise
        self._touch(submission)
        return name

    def abandon(self, submission_id: str) -> None:
        """Give a submission up. Raises NotFound, or Conflict while it is being taken over."""
        submission = self._find(submission_id)
        if _COMMIT in submission.busy:
            raise Conflict(f"submission {submission_id} is being taken over")
        self._drop(submission)

    async def put_file(self, submission_id: str, name: str, body: AsyncIterator[bytes]) -> int:
        """Take in a metadata file or small target; a later one of the same name replaces it.

        Args:
            submission_id: from ``begin``.
            name: its repository name.
            body: its bytes.

        Returns:
            Its length.

        Raises:
            Misuse: not a usable name.
            NotFound: no such submission (any more).
            Conflict: it is arriving already, or the submission is being taken over.
            RequestRefused: too large, or too much of it (status 413).
            DiskFull: no space; nothing of this file is left.
        """
        submission = self._find(submission_id)
        checked = parse_file_name(name)
        with self._arriving(submission, checked):
            if checked not in submission.files:
                check_length(len(submission.files) + len(submission.busy), FILES_MAX)
            others = submission.bytes_beside(checked)
            arrived = await self._receive(
                submission, body, min(length_max(checked), FILES_BYTES_MAX - others)
            )
            if submission.bytes_beside(checked) + arrived.length > FILES_BYTES_MAX:
                # Another one arrived at the same time, and each was measured without the other.
                arrived.path.unlink()
            check_length(submission.bytes_beside(checked) + arrived.length, FILES_BYTES_MAX)
            submission.sizes[checked] = arrived.length
            submission.files.add(checked, arrived.path)
            submission.named = None
        return arrived.length

    async def put_content(
        self, submission_id: str, sha256: str, body: AsyncIterator[bytes], *, length: int | None
    ) -> int:
        """Take in a content that the submitted metadata names.

        Args:
            submission_id: from ``begin``.
            sha256: of the content.
            body: its bytes.
            length: as announced; None when it was not.

        Returns:
            Its length.

        Raises:
            TrustError: the metadata does not verify, or does not name this content (ContentMismatch), or the
                bytes are not those (ContentMismatch); nothing of them is left.
            FileMissing: the metadata is not complete.
            NotFound, Conflict: like ``put_file``.
            DiskFull: no space; nothing of this content is left.
        """
        submission = self._find(submission_id)
        digest = parse_digest(sha256)
        with self._arriving(submission, digest):
            expected = (await self._named(submission)).get(digest)
            if expected is None:
                raise ContentMismatch(
                    f"the submitted metadata names no content {digest[:16]}", hint="submit the metadata first"
                )
            if length is not None and length != expected:
                raise ContentMismatch(f"content {digest[:16]} has {expected} bytes, not {length}")
            check_space(submission.directory, expected)
            try:
                arrived = await self._receive(submission, body, expected)
            except RequestRefused as error:
                if error.status == _TOO_LARGE:
                    raise ContentMismatch(
                        f"content {digest[:16]} has {expected} bytes, and more came"
                    ) from None
                raise
            if (arrived.length, arrived.sha256) != (expected, digest):
                arrived.path.unlink()
                raise ContentMismatch(
                    f"what came as content {digest[:16]} has {arrived.length} bytes and SHA-256 {arrived.sha256[:16]}; "
                    f"signed are {expected} bytes",
                    hint="the file changed, or was damaged on its way: submit it again",
                )
            # The same bytes may come twice, after a lost answer: they are not kept twice.
            if (former := submission.contents.get(digest)) is not None:
                former.unlink()
            submission.contents[digest] = arrived.path
        return arrived.length

    async def missing(self, submission_id: str) -> dict[Digest, int]:
        """Contents that the submitted metadata names and that are neither submitted nor on this device.

        Returns:
            Length in bytes by SHA-256.

        Raises:
            TrustError, FileMissing: see ``SubmissionTaker.named``.
            NotFound: like ``put_file``.
        """
        submission = self._find(submission_id)
        named = await self._named(submission)
        return {
            digest: length
            for digest, length in named.items()
            if digest not in submission.contents and not self._taker.holds(digest)
        }

    async def commit(self, submission_id: str) -> int:
        """Verify everything and take it over.

        A submission that is false ends here. One that is incomplete, or for which the device had no room, stays
        and can be committed again.

        Returns:
            The timestamp version that is trusted now.

        Raises:
            NotFound, Conflict: like ``put_file``.
            TrustError, FileMissing, DeviceError: see ``SubmissionTaker.take_over``.
        """
        submission = self._find(submission_id)
        if submission.busy:
            raise Conflict(
                f"submission {submission_id} is busy with {', '.join(sorted(submission.busy))[:200]}"
            )
        with self._arriving(submission, _COMMIT):
            try:
                version = await self._taker.take_over(submission.files, dict(submission.contents))
            except (TransportError, DeviceError):
                # What was taken already is with the taker now.
                for digest, path in list(submission.contents.items()):
                    if not path.exists():
                        del submission.contents[digest]
                raise
            except BaseException:
                self._drop(submission)
                raise
        self._drop(submission)
        return version

    # --- inside -----------------------------------------------------------------------------------

    def _find(self, submission_id: str) -> _Submission:
        if self._current is None or self._current.id != submission_id:
            raise NotFound(
                f"no submission {submission_id[:64]!r} is under way",
                hint="it may have ended or been dropped: begin again with POST /v1/submit",
            )
        return self._current

    def _still(self, submission: _Submission) -> None:
        """A submission can be dropped while something for it arrives."""
        if self._current is not submission:
            raise NotFound(f"submission {submission.id} was given up meanwhile")

    @contextlib.contextmanager
    def _arriving(self, submission: _Submission, what: str) -> Iterator[None]:
        if what in submission.busy or _COMMIT in submission.busy:
            raise Conflict(
                f"submission {submission.id} is busy with {_COMMIT if _COMMIT in submission.busy else what}"
            )
        submission.busy.add(what)
        self._touch(submission)
        try:
            yield
        finally:
            submission.busy.discard(what)
            self._touch(submission)
            if self._current is not submission:
                # It was dropped meanwhile, and this may have made a file after the others were removed.
                self._remove(submission)

    async def _named(self, submission: _Submission) -> Mapping[Digest, int]:
        """What the files name, asked once for all contents that follow."""
        async with submission.naming:
            while submission.named is None:
                before = submission.arrivals
                named = await self._taker.named(submission.files)
                if submission.arrivals == before:
                    submission.named = named
            return submission.named

    async def _receive(self, submission: _Submission, body: AsyncIterator[bytes], limit: int) -> Arrived:
        submission.arrivals += 1
        path = submission.directory / f"{submission.arrivals}.unverified"
        arrived = await receive(path, self._watched(submission, body), limit)
        self._still(submission)
        return arrived

    async def _watched(self, submission: _Submission, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in body:
            self._still(submission)
            self._touch(submission)
            yield part

    def _touch(self, submission: _Submission) -> None:
        """Somebody goes on with it."""
        if self._current is not submission:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._expire, submission)

    def _expire(self, submission: _Submission) -> None:
        if self._current is submission and not submission.busy:
            _log.info("a submission was dropped: nobody went on with it for %.0f s", self._idle_s)
            self._drop(submission)

    def _drop(self, submission: _Submission) -> None:
        """Forget a submission and remove its files."""
        if self._current is submission:
            self._current = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._remove(submission)

    def _remove(self, submission: _Submission) -> None:
        removal = asyncio.create_task(
            asyncio.to_thread(shutil.rmtree, submission.directory, ignore_errors=True),
            name="submission-removal",
        )
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
