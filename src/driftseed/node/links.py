"""Authenticated links: accepting, dialling, one per device and purpose."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from driftseed.core import limits
from driftseed.core.connection import ConnectionBook, Event
from driftseed.core.errors import DriftseedError, NotAMember, PeerMisbehaved, TransportError
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import NodeAddress
from driftseed.core.wire import ALPN_OVERLAY
from driftseed.net.connection import Connection
from driftseed.net.endpoint import Endpoint
from driftseed.net.link import CLOSE_REFUSED, Link, MemberChecker, greet_in, greet_out
from driftseed.node.ledger import Ledger
from driftseed.node.tasks import TaskOwner

_log = logging.getLogger(__name__)

CLOSE_DUPLICATE: Final = 2
"""QUIC application error code: both sides had dialled at once, the other link stays."""
CLOSE_SHUTDOWN: Final = 3
"""QUIC application error code: this node ends."""
CLOSE_BUSY: Final = 4
"""QUIC application error code: this node has all the links that it takes."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a node shows and demands when it meets another."""

    fleet: FleetId
    certificate: bytes
    checker: MemberChecker


class LinkTable:
    """At most one link per device for one purpose (ALPN).

    When both sides dial at once there are two; both sides keep the one whose dialler has the smaller id, so
    that they agree without a word. A second link that the same side dialled replaces the first: the
    dialler restarted, or lost it without our noticing.
    """

    def __init__(self, own: DeviceId) -> None:
        self._own = own
        self._links: dict[DeviceId, tuple[Link, bool]] = {}

    def get(self, device: DeviceId) -> Link | None:
        """The living link to a device."""
        entry = self._links.get(device)
        return None if entry is None or entry[0].connection.closed else entry[0]

    def __len__(self) -> int:
        return len(self._links)

    def links(self) -> list[Link]:
        """All living links."""
        return [link for link, _ in self._links.values() if not link.connection.closed]

    def add(self, link: Link, *, outgoing: bool) -> Link | None:
        """Take a link in; returns the one that has to go, which may be the new one."""
        device = link.member.device
        entry = self._links.get(device)
        if entry is None or entry[0].connection.closed or entry[1] == outgoing:
            self._links[device] = (link, outgoing)
            return None if entry is None else entry[0]
        keep_outgoing = self._own < device
        if outgoing == keep_outgoing:
            self._links[device] = (link, outgoing)
            return entry[0]
        return link

    def discard(self, link: Link) -> bool:
        """Forget a link that ended; False if it had been replaced."""
        entry = self._links.get(link.member.device)
        if entry is not None and entry[0] is link:
            del self._links[link.member.device]
            return True
        return False


class Links:
    """All connections of a node, each membership-checked before it is anything else's business.

    Args:
        endpoint: our iroh endpoint.
        credentials: ours; asked for at each greeting, as certificates get renewed.
        ledger: where refused peers are counted.
        clock: seconds since 1970.
        on_failure: told when accepting fails for good.
        accept_max: incoming links, over all purposes.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Callable[[], Credentials],
        ledger: Ledger,
        clock: Callable[[], float],
        on_failure: Callable[[BaseException], None],
        *,
        accept_max: int,
    ) -> None:
        self.endpoint = endpoint
        self.device = endpoint.device
        self._credentials = credentials
        self._ledger = ledger
        self._clock = clock
        self._accept_max = accept_max
        self._incoming = 0
        self._tasks = TaskOwner("links")
        self._vital = TaskOwner("links", on_failure)
        self._tables: dict[bytes, LinkTable] = {}
        self._handlers: dict[bytes, Callable[[Link, bool], Awaitable[None]]] = {}
        self._raw_handlers: dict[bytes, Callable[[Connection], Awaitable[None]]] = {}
        self.connections = ConnectionBook()
        """The state of the overlay link to each device."""
        self._dialling: dict[tuple[DeviceId, bytes], asyncio.Future[Link]] = {}

    def handle(self, alpn: bytes, handler: Callable[[Link, bool], Awaitable[None]]) -> LinkTable:
        """Have a handler run for the life of each link of an ALPN; called with (link, we dialled it)."""
        self._handlers[alpn] = handler
        self._tables[alpn] = LinkTable(self.device)
        return self._tables[alpn]

    def handle_raw(self, alpn: bytes, handler: Callable[[Connection], Awaitable[None]]) -> None:
        """Have a handler run for each connection of an ALPN which has a greeting of its own (joining)."""
        self._raw_handlers[alpn] = handler

    def table(self, alpn: bytes) -> LinkTable:
        """The links of an ALPN."""
        return self._tables[alpn]

    def start(self) -> None:
        """Begin to accept."""
        self._vital.spawn(self._accept(), "accept")

    async def dial(self, address: NodeAddress, alpn: bytes, timeout_s: float = limits.DIAL_TIMEOUT_S) -> Link:
        """The link to a device for a purpose: the one there is, or a new one.

        Raises:
            TransportError: it cannot be reached.
            NotAMember: one side refuses the other.
        """
        device = DeviceId(address.device)
        existing = self._tables[alpn].get(device)
        if existing is not None:
            return existing
        pending = self._dialling.get((device, alpn))
        if pending is None:
            pending = asyncio.get_running_loop().create_future()
            self._dialling[device, alpn] = pending
            # Whoever else waits for the same link gets the same outcome; nobody may be waiting at all.
            pending.add_done_callback(lambda done: done.cancelled() or done.exception())
            if self._tasks.spawn(self._dial(address, alpn, timeout_s, pending), f"dial {device[:8]}") is None:
                del self._dialling[device, alpn]
                raise TransportError("this node is shutting down")
        return await asyncio.shield(pending)

    async def _dial(
        self, address: NodeAddress, alpn: bytes, timeout_s: float, done: asyncio.Future[Link]
    ) -> None:
        device = DeviceId(address.device)
        self._note(device, alpn, Event.DIAL)
        try:
            connection = await self.endpoint.dial(address, alpn, timeout_s)
            self._note(device, alpn, Event.CONNECTED)
            link = await self._greet(connection, outgoing=True)
        except DriftseedError as error:
            self._note(device, alpn, Event.FAILED, error.reason)
            if isinstance(error, NotAMember):
                self._ledger.refuse_error(error, device)
            if not done.done():
                done.set_exception(error)
        else:
            link = self._take(link, alpn, outgoing=True)
            if not done.done():
                done.set_result(link)
        finally:
            self._dialling.pop((device, alpn), None)
            if not done.done():
                done.cancel()

    async def _accept(self) -> None:
        while (connection := await self.endpoint.accept()) is not None:
            if self._incoming >= self._accept_max:
                self._ledger.drop("links-full", connection.remote)
                connection.close(CLOSE_BUSY, "too many links")
                continue
            self._incoming += 1
            if self._tasks.spawn(self._incoming_connection(connection), "incoming") is None:
                return

    async def _incoming_connection(self, connection: Connection) -> None:
        try:
            if (raw := self._raw_handlers.get(connection.alpn)) is not None:
                await raw(connection)
                return
            link = await self._greet(connection, outgoing=False)
            handler = self._handlers[connection.alpn]
            if self._register(link, connection.alpn, outgoing=False) is link:
                await self._run(link, connection.alpn, handler, outgoing=False)
        except NotAMember as error:
            self._ledger.refuse_error(error, connection.remote)
        except PeerMisbehaved as error:
            self._ledger.drop(error.kind, connection.remote, error.message)
        except DriftseedError as error:
            self._ledger.drop(error.reason, connection.remote, error.message)
        finally:
            self._incoming -= 1
            if not connection.closed:
                connection.close(0, "ended")

    def recheck(self) -> int:
        """Judge every link again by what is signed now, and cut those that would not come about any more.

        Returns:
            Links that were cut.
        """
        checker = self._credentials().checker
        cut = 0
        for link in [link for table in self._tables.values() for link in table.links()]:
            try:
                checker.check(link.certificate, link.member.device)
            except NotAMember as error:
                self._ledger.refuse_error(error, link.member.device)
                link.connection.close(CLOSE_REFUSED, error.reason)
                cut += 1
        return cut

    async def _greet(self, connection: Connection, *, outgoing: bool) -> Link:
        credentials = self._credentials()
        greet = greet_out if outgoing else greet_in
        return await greet(
            connection, credentials.fleet, credentials.certificate, credentials.checker, self._clock
        )

    def _note(self, device: DeviceId, alpn: bytes, event: Event, reason: str = "") -> None:
        """Keep the state of overlay links; tunnels come and go with what is to be carried."""
        if alpn == ALPN_OVERLAY:
            now = self.connections.note(device, event, time.monotonic(), reason)
            _log.debug(
                "connection",
                extra={"fields": {"peer": device[:16], "event": event, "state": now.state, "reason": reason}},
            )

    def _register(self, link: Link, alpn: bytes, *, outgoing: bool) -> Link:
        """Put a link into its table; returns the one that is in force afterwards."""
        table = self._tables[alpn]
        loser = table.add(link, outgoing=outgoing)
        if loser is not None and not loser.connection.closed:
            loser.connection.close(CLOSE_DUPLICATE, "another link stays")
        winner = table.get(link.member.device)
        if loser is not link:
            self._note(link.member.device, alpn, Event.PROVED)
        return winner if winner is not None else link

    def _take(self, link: Link, alpn: bytes, *, outgoing: bool) -> Link:
        winner = self._register(link, alpn, outgoing=outgoing)
        if winner is link:
            self._tasks.spawn(self._run(link, alpn, self._handlers[alpn], outgoing=outgoing), "link")
        return winner

    async def _run(
        self, link: Link, alpn: bytes, handler: Callable[[Link, bool], Awaitable[None]], *, outgoing: bool
    ) -> None:
        try:
            await handler(link, outgoing)
        finally:
            if self._tables[alpn].discard(link):
                self._note(link.member.device, alpn, Event.CLOSED)
            if not link.connection.closed:
                link.connection.close(0, "ended")

    async def close(self) -> None:
        """End all links, telling the peers that this node ends."""
        for table in self._tables.values():
            for link in table.links():
                link.connection.close(CLOSE_SHUTDOWN, "shutting down")
        await self._vital.close()
        await self._tasks.close()
