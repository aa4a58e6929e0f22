"""Bytes between one local TCP socket and one stream, both ways, with nothing held but one chunk a way.

The end of either side's sending (TCP FIN, stream FIN) is passed on while the other direction goes on. Whatever
else ends a direction ends both at once: the stream is reset, and the socket too (RST), so that neither side takes a
torn connection for a finished one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from driftseed.core import limits
from driftseed.net.stream import CHUNK_BYTES, Stream

SOCKET_BUFFER_BYTES: Final = limits.MIB
"""Bytes that the kernel may hold for each local socket and direction."""
Hold: TypeAlias = Callable[[int], Awaitable[None]]
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


def prepare(sock: socket.socket) -> None:
    """Make a local socket non-blocking, prompt, and wide."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)


async def pump(
    sock: socket.socket,
    stream: Stream,
    *,
    sent: Callable[[int], None],
    received: Callable[[int], None],
    hold_out: Hold | None = None,
    hold_in: Hold | None = None,
) -> None:
    """Carry bytes until both sides have ended, then close the socket.

    Reading waits as long as the connection lives (an idle BitTorrent connection says nothing for two minutes,
    and its engine gives it up by itself); writing waits ``TUNNEL_STALL_S``.

    Args:
        sock: connected; prepared with ``prepare``.
        stream: open in both directions.
        sent: told the bytes that went from the socket into the stream.
        received: told the bytes that came out of the stream.
        hold_out: waits until so many bytes may go into the stream; None never does.
        hold_in: likewise for what came out of it, so that the sender comes to wait.

    Raises:
        OSError: the local side broke, or took nothing for too long (TimeoutError). Both sides are reset then.
        TransportError: the remote side did; likewise.
    """
    ways = [
        asyncio.create_task(_outwards(sock, stream, sent, hold_out), name="pump-out"),
        asyncio.create_task(_inwards(stream, sock, received, hold_in), name="pump-in"),
    ]
    clean = False
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        for way in ways:
            if way.done():
                way.result()
        clean = True
    finally:
        # The engine's calls hold a stream's half while they run: they end before it can be reset.
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        if not clean:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            await stream.reset()
        sock.close()


async def _outwards(
    sock: socket.socket, stream: Stream, count: Callable[[int], None], hold: Hold | None
) -> None:
    loop = asyncio.get_running_loop()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    while size := await loop.sock_recv_into(sock, buffer):
        if hold is not None:
            await hold(size)
        await stream.write_raw(view[:size], limits.TUNNEL_STALL_S)
        count(size)
    await stream.finish()


async def _inwards(
    stream: Stream, sock: socket.socket, count: Callable[[int], None], hold: Hold | None
) -> None:
    loop = asyncio.get_running_loop()
    while data := await stream.read_raw(CHUNK_BYTES, timeout=None):
        if hold is not None:
            await hold(len(data))
        async with asyncio.timeout(limits.TUNNEL_STALL_S):
            await loop.sock_sendall(sock, data)
        count(len(data))
    # It may be gone already: both directions ended at the same time.
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
