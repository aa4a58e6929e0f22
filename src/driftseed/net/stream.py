"""One QUIC stream, read and written by whole frames or as raw bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from driftseed.core import limits, wire
from driftseed.core.errors import LinkClosed, PeerMisbehaved, PeerStalled
from driftseed.net.shim import cause, iroh

ResultT = TypeVar("ResultT")

CHUNK_BYTES = 256 * limits.KIB
"""Bytes handed to the engine in one call."""


class Stream:
    """Both directions of one stream.

    One reader and one writer at a time. A read or write that was cancelled or timed out may have lost bytes
    inside the engine, so the direction is dead afterwards and says so (LinkClosed).
    """

    def __init__(self, bi: Any) -> None:
        self._send: Any = bi.send()
        self._recv: Any = bi.recv()
        self._buffer = bytearray()
        self._read_dead = False
        self._write_dead = False
        self._ended = False

    async def read_frame(
        self,
        max_length: int = limits.FRAME_BYTES_MAX,
        timeout: float | None = limits.READ_TIMEOUT_S,  # noqa: ASYNC109 - the two phases have different bounds
    ) -> wire.Message | wire.UnknownFrame | None:
        """Read the next frame.

        Args:
            max_length: most bytes of the frame, type byte included; a longer one is refused before it is read.
            timeout: seconds to wait for its first byte; None waits as long as the connection lives. From
                its first byte on, a frame has ``READ_TIMEOUT_S`` to arrive whole.

        Returns:
            The message, or None when the peer ended the stream between frames.

        Raises:
            PeerMisbehaved: ``frame-too-large``, ``frame-empty``, ``frame-malformed``, or ``frame-truncated``.
            PeerStalled: nothing came in time.
            LinkClosed: the stream or its connection is gone.
        """
        most = max_length + wire.HEADER.size - 1
        if not self._buffer and not await self._fill(most, timeout):
            return None
        try:
            async with asyncio.timeout(limits.READ_TIMEOUT_S):
                await self._need(wire.HEADER.size, most)
                header = bytes(self._buffer[: wire.HEADER.size])
                length, number = wire.parse_header(header, max_length)
                size = wire.HEADER.size + length
                await self._need(size, most)
        except TimeoutError:
            self._read_dead = True
            raise PeerStalled(f"a frame stopped arriving for {limits.READ_TIMEOUT_S:g} s") from None
        body = bytes(self._buffer[wire.HEADER.size : size])
        del self._buffer[:size]
        return wire.decode(number, body)

    async def write_frame(
        self,
        message: wire.Message,
        timeout: float = limits.WRITE_TIMEOUT_S,  # noqa: ASYNC109 - part of the call's contract
    ) -> None:
        """Send one frame.

        Raises:
            PeerStalled: the peer does not take it within ``timeout`` seconds.
            LinkClosed: the stream or its connection is gone.
        """
        await self.write_raw(wire.encode(message), timeout)

    async def read_raw(
        self,
        size: int,
        timeout: float | None = limits.READ_TIMEOUT_S,  # noqa: ASYNC109 - part of the call's contract
    ) -> bytes:
        """Read up to ``size`` bytes, what was read ahead first; empty at the end of the stream.

        Raises:
            PeerStalled: nothing came within ``timeout`` seconds (None: no bound but the connection's life).
            LinkClosed: the stream or its connection is gone.
        """
        if not self._buffer:
            return await self._read_chunk(size, timeout)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def write_raw(
        self,
        data: bytes | bytearray | memoryview,
        timeout: float | None = limits.WRITE_TIMEOUT_S,  # noqa: ASYNC109 - per chunk, not per call
    ) -> None:
        """Send bytes as they are.

        Args:
            data: any number of bytes.
            timeout: seconds that the peer may take for each 256 KiB; None: no bound but the connection's life.

        Raises:
            PeerStalled: it did not take them.
            LinkClosed: the stream or its connection is gone.
        """
        if self._write_dead:
            raise LinkClosed("the sending side of this stream is gone")
        try:
            for chunk in _chunks(data):
                await _bounded(self._send.write_all(chunk), timeout)
        except TimeoutError:
            self._write_dead = True
            raise PeerStalled(f"the peer took nothing for {timeout:g} s") from None
        except asyncio.CancelledError:
            self._write_dead = True
            raise
        except iroh.IrohError as error:
            self._write_dead = True
            raise _closed(error) from None

    async def finish(self) -> None:
        """End our direction: the peer reads what was written, then the end.

        Raises:
            LinkClosed: the stream or its connection is gone.
        """
        try:
            await _bounded(self._send.finish(), limits.WRITE_TIMEOUT_S)
        except iroh.IrohError as error:
            raise _closed(error) from None
        finally:
            self._write_dead = True

    async def reset(self, code: int = 0) -> None:
        """Give both directions up at once; the peer's reads and writes fail. Doing so twice is harmless.

        Args:
            code: for the peer's log, 0 to 2**62-1.
        """
        self._read_dead = self._write_dead = True
        for give_up in (self._send.reset, self._recv.stop):
            try:
                await _bounded(give_up(code), limits.STREAM_RESET_TIMEOUT_S)
            except (iroh.IrohError, TimeoutError):
                # Already ended, reset or lost with its connection: what was wanted.
                continue

    async def _fill(self, most: int, timeout: float | None) -> bool:  # noqa: ASYNC109 - passed through
        """Read more into the buffer, up to ``most`` bytes in all; False at the end of the stream."""
        data = await self._read_chunk(most - len(self._buffer), timeout)
        self._buffer += data
        return bool(data)

    async def _need(self, size: int, most: int) -> None:
        while len(self._buffer) < size:
            if not await self._fill(most, None):
                raise PeerMisbehaved(
                    f"the stream ended after {len(self._buffer)} bytes of a frame", kind="frame-truncated"
                )

    async def _read_chunk(self, size: int, timeout: float | None) -> bytes:  # noqa: ASYNC109 - passed through
        if self._ended:
            return b""
        if self._read_dead:
            raise LinkClosed("the receiving side of this stream is gone")
        try:
            data: bytes = await _bounded(self._recv.read(min(size, CHUNK_BYTES)), timeout)
        except TimeoutError:
            self._read_dead = True
            raise PeerStalled(f"the peer sent nothing for {timeout:g} s") from None
        except asyncio.CancelledError:
            # The engine may have had bytes ready that nobody will see any more.
            self._read_dead = True
            raise
        except iroh.IrohError as error:
            self._read_dead = True
            raise _closed(error) from None
        self._ended = not data
        return data


async def _bounded(call: Awaitable[ResultT], seconds: float | None) -> ResultT:
    if seconds is None:
        return await call
    async with asyncio.timeout(seconds):
        return await call


def _chunks(data: bytes | bytearray | memoryview) -> list[bytes | bytearray | memoryview]:
    if len(data) <= CHUNK_BYTES:
        return [data]
    view = memoryview(data)
    return [view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES)]


def _closed(error: Any) -> LinkClosed:
    return LinkClosed(f"the stream is gone: {cause(error)}")
