"""One overlay link to one member: its control stream, its requests, what it last said of itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from driftseed.core import limits, wire
from driftseed.core.errors import LinkClosed, PeerMisbehaved, PeerStalled, TransportError
from driftseed.core.ids import DeviceId
from driftseed.core.model import NodeAddress
from driftseed.core.rate import TokenBucket
from driftseed.net.link import Link
from driftseed.net.paths import Path
from driftseed.net.stream import Stream
from driftseed.node import requests
from driftseed.node.ledger import Ledger
from driftseed.node.tasks import TaskOwner

_log = logging.getLogger(__name__)

OUTBOX_MAX: Final = 256
"""Frames that may wait for a peer that does not read; one more ends the link."""
SILENCE_MAX_S: Final = 3 * limits.COMPARE_INTERVAL_S
"""Seconds without a frame after which a link is given up: a live peer compares versions every 30 s."""


class OverlayPeer:
    """A member that we have an overlay link with.

    Args:
        link: both sides have proved membership.
        outgoing: we dialled it.
        ledger: where its faults are counted.
        monotonic: seconds, for rates and ages.
    """

    def __init__(self, link: Link, *, outgoing: bool, ledger: Ledger, monotonic: Callable[[], float]) -> None:
        self.link = link
        self.outgoing = outgoing
        self.device: DeviceId = link.member.device
        self.role = link.member.role
        self.state = wire.State()
        """What it last said of itself."""
        self.first_state = asyncio.Event()
        self.state_changed = asyncio.Event()
        self.since = monotonic()
        self.observed_us: str | None = None
        """The address at which it sees us."""
        self._told_seen: str | None = None
        self._ledger = ledger
        self._monotonic = monotonic
        self._outbox: asyncio.Queue[wire.Message] = asyncio.Queue(OUTBOX_MAX)
        self._bucket = TokenBucket(limits.FRAMES_PER_SECOND_MAX, float(limits.FRAMES_BURST_MAX))
        self._tasks = TaskOwner(f"peer {self.device[:8]}")
        self._serving = asyncio.Semaphore(limits.STREAMS_PER_LINK_MAX)
        self._ended = asyncio.Event()

    @property
    def address(self) -> NodeAddress:
        """How others may dial it: what it says, and where we see it."""
        addrs = list(self.state.addrs)
        seen = self.link.connection.remote_socket_addr()
        if seen is not None and seen not in addrs:
            addrs.insert(0, seen)
        relay = self.state.relay
        return NodeAddress(
            device=self.device, addrs=addrs[: limits.ADDRESSES_PER_DEVICE_MAX], relay=relay or None
        )

    @property
    def alive(self) -> bool:
        """The link is up."""
        return not self._ended.is_set() and not self.link.connection.closed

    def take_state(self, state: wire.State) -> None:
        """Note what it says of itself."""
        self.state = state
        self.first_state.set()
        self.state_changed.set()

    def tell_where_seen(self, seen: str | None) -> None:
        """Tell it at which address it is seen, if that is new: it has roamed, or its NAT has forgotten it."""
        if seen is not None and seen != self._told_seen and self.alive:
            self._told_seen = seen
            self.send(wire.Observed(addr=seen))

    def send(self, message: wire.Message) -> None:
        """Queue a frame for the control stream; a peer that lets too many wait loses its link."""
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:
            self._ledger.drop("outbox-full", self.device)
            self.close("you do not read")

    async def run(
        self,
        on_message: Callable[[OverlayPeer, wire.Message], Awaitable[None]],
        on_request: Callable[[OverlayPeer, Stream], Awaitable[None]],
    ) -> None:
        """Read, write and serve until the link ends; a peer's fault ends its link and nothing else."""
        self.tell_where_seen(self.link.connection.remote_socket_addr())
        # A link may begin on a relay, and its path may change at any time.
        watch = self.link.connection.watch_path(self._path_changed)
        try:
            self._tasks.spawn(self._write(), "write")
            self._tasks.spawn(self._accept(on_request), "accept")
            await self._read(on_message)
        except PeerMisbehaved as error:
            self._ledger.drop(error.kind, self.device, error.message)
            self.close(error.kind)
        except PeerStalled as error:
            self._ledger.drop(error.reason, self.device, error.message)
            self.close("stalled")
        except LinkClosed as error:
            _log.debug("link ended", extra={"fields": {"peer": self.device[:16], "why": error.message}})
        finally:
            self._ended.set()
            self.close("ended")
            await self._tasks.close()
            await watch.stop()

    def _path_changed(self, path: Path) -> None:
        if path.kind != "relayed":
            self.tell_where_seen(path.remote_addr)

    def close(self, reason: str) -> None:
        """End the link, telling the peer why."""
        self._ended.set()
        self.state_changed.set()
        if not self.link.connection.closed:
            self.link.connection.close(0, reason)

    async def _read(self, on_message: Callable[[OverlayPeer, wire.Message], Awaitable[None]]) -> None:
        while True:
            message = await self.link.control.read_frame(limits.FRAME_BYTES_MAX, SILENCE_MAX_S)
            if message is None:
                return
            if not self._bucket.take(1.0, self._monotonic()):
                raise PeerMisbehaved("more frames than are allowed", kind="frames-flood")
            if isinstance(message, wire.UnknownFrame):
                self._ledger.drop("frame-unknown", self.device)
                continue
            await on_message(self, message)

    async def _write(self) -> None:
        try:
            while True:
                message = await self._outbox.get()
                await self.link.control.write_frame(message, limits.WRITE_TIMEOUT_S)
        except TransportError as error:
            _log.debug("cannot write", extra={"fields": {"peer": self.device[:16], "why": error.message}})
            self.close("cannot write")

    async def _accept(self, on_request: Callable[[OverlayPeer, Stream], Awaitable[None]]) -> None:
        while True:
            await self._serving.acquire()
            try:
                stream = await self.link.connection.accept_stream()
            except LinkClosed:
                self._serving.release()
                return
            self._tasks.spawn(self._serve(on_request, stream), "request")

    async def _serve(
        self, on_request: Callable[[OverlayPeer, Stream], Awaitable[None]], stream: Stream
    ) -> None:
        try:
            await on_request(self, stream)
        except PeerMisbehaved as error:
            self._ledger.drop(error.kind, self.device, error.message)
            self.close(error.kind)
        except TransportError as error:
            self._ledger.drop(error.reason, self.device, error.message)
            await stream.reset(requests.RESET_GONE)
        finally:
            self._serving.release()
