"""The ``Download`` state: give verified content to a module as a stream, or lay it into the files tree.

A module that wants the stream reads the named pipe ``stream-next``, which names the pipe with the content,
reads that, and reads ``stream-next`` again, which is then empty. A module that does not open ``stream-next``
finds the content in ``files/`` from ``ArtifactInstall`` on.

Opening a pipe for writing blocks until somebody reads, and asyncio has no way to wait for that, so the
writer's side is a thread; ``_release`` gets it out of there when the module ends without reading.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from driftseed.core import limits
from driftseed.core.errors import ModuleFailed
from driftseed.core.verified import VerifiedArtifact
from driftseed.install.runner import ModuleRunner, parse_yes_no
from driftseed.install.workdir import Workdir, check_digest
from driftseed.store.files import disk_full_as_error

_CHUNK_BYTES: Final = 1 * limits.MIB
_RELEASE_AGAIN_S: Final = 0.02


async def stage(
    runner: ModuleRunner,
    module: str,
    workdir: Workdir,
    artifact: VerifiedArtifact,
    timeout_s: float,
    environment: Mapping[str, str],
) -> None:
    """Call the module's ``Download`` or ``DownloadWithFileSizes``, and provide what it did not stream.

    Raises:
        ModuleFailed: the module failed, or began with the stream and did not end it.
        ContentMismatch: the content is not any more what was verified. The module may have all of it: it
            must not use it before ``ArtifactInstall``, to which it does not come.
        DiskFull, ModuleMissing, UnsafePermissions, ModuleTimeout, OSError: see ``ModuleRunner.run`` and
            ``Workdir.add_file``.
    """
    question = "ProvidePayloadFileSizes"
    answer = await runner.ask(module, question, workdir.tree, timeout_s, environment)
    with_sizes = parse_yes_no(module, question, answer)
    state = "DownloadWithFileSizes" if with_sizes else "Download"

    with _Stream(workdir.tree, artifact, with_sizes=with_sizes) as stream:
        serving = asyncio.create_task(asyncio.to_thread(stream.serve))
        calling = asyncio.create_task(runner.run(module, state, workdir.tree, timeout_s, environment))
        try:
            await asyncio.wait({serving, calling}, return_when=asyncio.FIRST_COMPLETED)
            if not (serving.done() and serving.exception()):
                await asyncio.wait({calling})
        finally:
            # The content is not what was signed, or this was cancelled: nobody waits for the module any more.
            calling.cancel()
            await asyncio.wait({calling})
            if not calling.cancelled():
                calling.exception()  # looked at; what it says is raised below, unless something else explains it
            await _release(stream, serving)
    serving.result()  # content that changed explains whatever the module made of it
    calling.result()
    if stream.begun and not stream.finished:
        raise ModuleFailed(f"{module} began to read the stream in {state} and did not end")
    if not stream.begun:
        await workdir.add_file(artifact)


async def _release(stream: _Stream, serving: asyncio.Task[None]) -> None:
    """End the thread: whatever it waits for, there is now nobody that will do it."""
    stream.stop.set()
    while not serving.done():
        stream.wake()
        await asyncio.wait({serving}, timeout=_RELEASE_AGAIN_S)
    # Looked at, so that asyncio does not complain when a cancelled caller never comes to result().
    serving.exception()


class _Stream:
    """The streams tree and the one who writes into it."""

    def __init__(self, tree: Path, artifact: VerifiedArtifact, *, with_sizes: bool) -> None:
        self._artifact = artifact
        self._next = tree / "stream-next"
        self._directory = tree / "streams"
        self._pipe = self._directory / artifact.artifact.filename
        size = f" {artifact.artifact.length}" if with_sizes else ""
        self._line = f"streams/{artifact.artifact.filename}{size}\n".encode()
        self._handles: list[int] = []
        self.stop = threading.Event()
        self.begun = False
        self.finished = False

    def __enter__(self) -> Self:
        with disk_full_as_error(self._directory):
            self._directory.mkdir(mode=0o700)
            # The content's pipe is there before stream-next names it.
            for pipe in (self._pipe, self._next):
                os.mkfifo(pipe, 0o600)
                self._handles.append(os.open(pipe, os.O_PATH | os.O_CLOEXEC))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The streams tree only exists during this state.
        for handle in self._handles:
            os.close(handle)
        self._next.unlink(missing_ok=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def serve(self) -> None:
        """Write, in a thread, as the module reads.

        Raises:
            ContentMismatch: what was read is not what was verified.
            OSError: the content cannot be read.
        """
        try:
            if not self._write_line():
                return
            self._write_content()
            # Opened by a reader and closed at once: a read of length zero.
            descriptor = self._open(self._next)
            if descriptor is not None:
                os.close(descriptor)
                self.finished = True
        except OSError as error:
            # The reader is gone: the module ended, or gave up. Its exit status says the rest.
            if error.errno != errno.EPIPE:
                raise

    def wake(self) -> None:
        """Let an open for writing return, for which another open for reading is enough, however short."""
        for handle in self._handles:
            # Not by name: the module may have removed it, and the thread waits all the same.
            os.close(os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def _open(self, pipe: Path) -> int | None:
        """Wait for a reader; None when there will be none."""
        if self.stop.is_set():
            return None
        descriptor = os.open(pipe, os.O_WRONLY | os.O_CLOEXEC)
        if self.stop.is_set():
            os.close(descriptor)
            return None
        return descriptor

    def _write_line(self) -> bool:
        descriptor = self._open(self._next)
        if descriptor is None:
            return False
        self.begun = True
        with os.fdopen(descriptor, "wb", buffering=0) as pipe:
            pipe.write(self._line)
        return True

    def _write_content(self) -> None:
        descriptor = self._open(self._pipe)
        if descriptor is None:
            return
        signed = self._artifact.artifact
        digest = hashlib.sha256()
        done = 0
        with (
            os.fdopen(descriptor, "wb", buffering=0) as pipe,
            Path(self._artifact.path).open("rb") as content,
        ):
            while data := content.read(_CHUNK_BYTES):
                digest.update(data)
                done += len(data)
                view = memoryview(data)
                while view:
                    view = view[pipe.write(view) :]
        check_digest(signed, done, digest.hexdigest())
