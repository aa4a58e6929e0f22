"""Tries, for a member that asks, whether others can connect to it: at the address at which it is seen, and nowhere else.

So nobody can have us send anything to a third party, and what we send, one short request on one TCP connection, is no
more than what the member has sent us. How often is bounded, for one device and for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from driftseed.core import limits, wire
from driftseed.core.ids import DeviceId
from driftseed.core.rate import TokenBucket
from driftseed.core.reachability import may_be_dialled
from driftseed.net.paths import IpAddress, format_socket_addr, parse_socket_addr
from driftseed.net.stream import Stream
from driftseed.node.overlay import Overlay
from driftseed.node.peer import OverlayPeer

_log = logging.getLogger(__name__)

_OK: Final = (b"HTTP/1.1 200", b"HTTP/1.0 200")
_ANSWER_BYTES: Final = len(_OK[0])


class DialBack:
    """Answers AskDial.

    Args:
        overlay: the links, which say where a device is.
        monotonic: seconds.
    """

    def __init__(self, overlay: Overlay, monotonic: Callable[[], float]) -> None:
        self._overlay = overlay
        self._monotonic = monotonic
        self._bucket = TokenBucket(limits.DIAL_BACKS_PER_SECOND, float(limits.DIAL_BACKS_BURST))
        self._lately: OrderedDict[DeviceId, float] = OrderedDict()
        """When a device was last dialled, the longest ago first."""
        self.asked = 0
        """Requests that came."""
        self.seen_at: Callable[[OverlayPeer], IpAddress | None] = seen_from_outside
        """Where a device is as others see it; None when we do not see it as others would."""

    async def answer(self, message: wire.Message, stream: Stream, device: DeviceId) -> None:
        """Answer one request. Raises TransportError when the asker is gone."""
        self.asked += 1
        peer = self._overlay.peer(device)
        ip = None if peer is None else self.seen_at(peer)
        reply = wire.Dialled(tried=False)
        if (
            isinstance(message, wire.AskDial)
            and ip is not None
            and may_be_dialled(message.port)
            and self._may(device)
        ):
            addr = format_socket_addr(ip, message.port)
            reached = await dial(ip, message.port, message.proof)
            _log.info(
                "dialled back", extra={"fields": {"peer": device[:16], "addr": addr, "reached": reached}}
            )
            reply = wire.Dialled(tried=True, reached=reached, addr=addr)
        await stream.write_frame(reply, limits.WRITE_TIMEOUT_S)
        await stream.finish()

    def _may(self, device: DeviceId) -> bool:
        now = self._monotonic()
        while self._lately and next(iter(self._lately.values())) <= now - limits.DIAL_BACK_EVERY_S:
            self._lately.popitem(last=False)
        # The bucket bounds how many there can be in the book, too.
        if device in self._lately or not self._bucket.take(1.0, now):
            return False
        self._lately[device] = now
        return True


def seen_from_outside(peer: OverlayPeer) -> IpAddress | None:
    """The address of a device on a direct path that is not its own network's, nor a relay's."""
    path = peer.link.connection.path()
    parsed = parse_socket_addr(path.remote_addr) if path.kind == "direct" else None
    return None if parsed is None else parsed[0]


async def dial(ip: IpAddress, port: int, proof: str) -> bool:
    """Connect to a TCP port, from a fresh socket, and ask whether a relay is there.

    Args:
        ip: of whoever asked for it.
        port: likewise.
        proof: told there; hexadecimal.
    """
    writer = None
    try:
        async with asyncio.timeout(limits.DIAL_BACK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(str(ip), port, limit=_ANSWER_BYTES)
            host = format_socket_addr(ip, port)
            writer.write(f"GET /ping?{proof} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return await reader.readexactly(_ANSWER_BYTES) in _OK
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return False
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(limits.STREAM_RESET_TIMEOUT_S):
                    await writer.wait_closed()
