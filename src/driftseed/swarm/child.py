"""The process of the BitTorrent engine, seen by its parent: how it is started, spoken to, and surely ended.

What it is told, and what becomes of its answers, is ``client.py``'s.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Final

from driftseed.core import limits
from driftseed.core.errors import EngineFailed
from driftseed.swarm import protocol

STOP_TIMEOUT_S: Final = 2.5
"""Seconds in which the engine must end by itself when told; then it is killed."""
HEAP: Final = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_MMAP_THRESHOLD_": "131072",
}
"""For glibc: a heap for each thread, and keeping what was freed, cost 17 MB after a fast transfer."""
STDERR_TAIL_BYTES: Final = 2048
"""Bytes of what the engine last said on stderr, kept for the error message."""
RECEIVE_BYTES: Final = 64 * limits.KIB


class Child:
    """A running engine. Whoever spawned it reaps it, whatever happens in between."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._stderr = asyncio.create_task(_tail(process.stderr), name="engine stderr")
        self._frames = protocol.event_decoder()

    @classmethod
    async def spawn(cls) -> Child:
        """Start an engine; it says ``Ready`` when it listens.

        When cancelled, it is started all the same and ended at once: asyncio loses track of a process whose
        start is cancelled in the middle.

        Raises:
            EngineFailed: the system starts no process.
        """
        starting = asyncio.create_task(cls._spawn(), name="engine start")
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait({starting})
            if starting.exception() is None:
                starting.result().kill()
                await starting.result().reap()
            raise

    @classmethod
    async def _spawn(cls) -> Child:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # the working directory is not ours to import from
                    "-m",
                    "driftseed.swarm.engine",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                    # A signal to the agent's group (Ctrl-C) is for the agent, which then ends the engine.
                    start_new_session=True,
                    env={**os.environ, **HEAP},
                )
            reader, writer = await asyncio.open_connection(sock=ours)
        except OSError as error:
            ours.close()
            raise EngineFailed(f"the BitTorrent engine does not start: {error}") from error
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, command: protocol.Command) -> None:
        """Send a command; it may have to wait in memory (``drain``).

        Raises:
            OSError: the engine is gone.
        """
        self._writer.write(protocol.encode(command))

    async def drain(self) -> None:
        """Wait until the engine takes commands fast enough; without end, where it hangs.

        Raises:
            OSError: the engine is gone.
        """
        await self._writer.drain()

    async def receive(self) -> list[protocol.EngineEvent]:
        """Wait for what it says; there may be no whole event in it yet.

        Raises:
            EOFError: it closed its socket.
            OSError: the socket failed.
            ValueError: it sent what is no event; the stream cannot be followed any more.
        """
        data = await self._reader.read(RECEIVE_BYTES)
        if not data:
            raise EOFError("the engine closed its socket")
        return self._frames.receive(data)

    def kill(self) -> None:
        """End it at once; it is still to be reaped."""
        self._process.kill()

    async def reap(self) -> tuple[int, str]:
        """Make sure that the process is gone, within ``STOP_TIMEOUT_S``; return its exit status and last words."""
        self._writer.transport.abort()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                status = await self._process.wait()
        except (TimeoutError, asyncio.CancelledError) as error:
            self._process.kill()
            status = await self._process.wait()
            if isinstance(error, asyncio.CancelledError):
                self._stderr.cancel()
                raise
        said = (await self._stderr).decode(errors="replace").strip()
        return status, said


async def _tail(stream: asyncio.StreamReader | None) -> bytes:
    """Read all of a stream, keeping its end."""
    tail = b""
    while stream is not None and (data := await stream.read(RECEIVE_BYTES)):
        tail = (tail + data)[-STDERR_TAIL_BYTES:]
    return tail
