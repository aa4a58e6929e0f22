"""One client of the relay: its WebSocket, what waits for it, and how much it may send."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web

from driftseed.core import limits
from driftseed.core.errors import PeerMisbehaved, PeerStalled
from driftseed.core.ids import DeviceId
from driftseed.core.rate import TokenBucket
from driftseed.net import relay_frames
from driftseed.net.relay_frames import Status


class RelayClient:
    """A connection whose key is proved.

    Args:
        device: the key.
        socket: its WebSocket, after the handshake.
        rate: bytes per second that it may send; a second's worth at once, within 1 and 16 MiB.
        guest: it is no member, and may only speak to those who let guests in.
        drops: counts frames that it did not get, by reason.
    """

    def __init__(
        self,
        device: DeviceId,
        socket: web.WebSocketResponse,
        *,
        rate: float,
        guest: bool,
        drops: Counter[str],
    ) -> None:
        self.device = device
        self.guest = guest
        self.key = bytes.fromhex(device)
        self.contacts: set[bytes] = set()
        """Keys that it has sent to, and that are told when it goes."""
        self._socket = socket
        self._drops = drops
        self._queue: deque[bytes] = deque()
        self._waiting = asyncio.Event()
        self._bucket = _bucket(rate)
        self._ending = False
        self._speaks_status = socket.ws_protocol == relay_frames.PROTOCOLS[0]
        self._told_limited = False

    def offer(self, frame: bytes) -> bool:
        """Queue a frame for it; False, and counted, when too many wait already."""
        if len(self._queue) >= limits.RELAY_QUEUE_FRAMES:
            self._drops["queue-full"] += 1
            return False
        self._queue.append(frame)
        self._waiting.set()
        return True

    def tell(self, status: Status) -> None:
        """Queue a status, if its protocol version has one."""
        if self._speaks_status:
            self.offer(relay_frames.status_frame(status))

    def promote(self, rate: float) -> None:
        """A guest is a member now, with a member's rate in bytes per second."""
        if self.guest:
            self.guest = False
            self._bucket = _bucket(rate)
            self._told_limited = False

    def hang_up(self) -> None:
        """End the connection once what is queued is sent."""
        self._ending = True
        self._waiting.set()

    async def receive(self) -> bytes | None:
        """The next frame from it; None when it has gone.

        Raises:
            PeerMisbehaved: ``text-frame``, or ``frame-too-large``.
            PeerStalled: it was silent for ``RELAY_IDLE_S``.
        """
        try:
            message = await self._socket.receive(timeout=limits.RELAY_IDLE_S)
        except TimeoutError:
            raise PeerStalled(f"relay client {self.device[:10]} is silent") from None
        if message.type is WSMsgType.BINARY:
            data: bytes = message.data
            return data
        if message.type is WSMsgType.TEXT:
            raise PeerMisbehaved("text on a relay connection", kind="text-frame")
        error = message.data
        if isinstance(error, WebSocketError) and error.code == WSCloseCode.MESSAGE_TOO_BIG:
            raise PeerMisbehaved("a relay message beyond its bound", kind="frame-too-large")
        return None

    async def slow_down(self, size: int) -> None:
        """Wait until it may have sent ``size`` more bytes; meanwhile TCP holds it back."""
        clock = asyncio.get_running_loop().time
        while not self._bucket.take(size, clock()):
            if not self._told_limited:
                self._told_limited = True
                self.tell(Status.RATE_LIMITED)
            await asyncio.sleep(self._bucket.wait(size, clock()))

    async def write_forever(self) -> None:
        """Send what is queued, one frame after the other, until ``hang_up``.

        Raises:
            PeerStalled: it did not take one within ``RELAY_WRITE_TIMEOUT_S``.
            ConnectionError: it has gone.
        """
        while True:
            while self._queue:
                frame = self._queue.popleft()
                try:
                    async with asyncio.timeout(limits.RELAY_WRITE_TIMEOUT_S):
                        await self._socket.send_bytes(frame)
                except TimeoutError:
                    raise PeerStalled(f"relay client {self.device[:10]} takes nothing") from None
            if self._ending:
                return
            self._waiting.clear()
            await self._waiting.wait()

    async def close(self) -> None:
        """End the connection, without waiting long for its consent."""
        await close_socket(self._socket)


def _bucket(rate: float) -> TokenBucket:
    return TokenBucket(rate, min(max(rate, limits.RELAY_FRAME_BYTES_MAX), limits.RELAY_BURST_BYTES))


async def close_socket(socket: web.WebSocketResponse) -> None:
    """Close a WebSocket within a second, whatever the other side does."""
    try:
        async with asyncio.timeout(limits.STREAM_RESET_TIMEOUT_S):
            await socket.close()
    except (TimeoutError, ConnectionError):
        # Gone or stuck; the server drops the transport when the handler returns.
        return
