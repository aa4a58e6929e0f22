"""Members and strangers that speak the real protocol over a real endpoint, and say whatever a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from driftseed.agent.daemon import Agent
from driftseed.core import limits, wire
from driftseed.core.errors import LinkClosed, PeerStalled
from driftseed.core.ids import FleetId
from driftseed.core.model import NodeAddress
from driftseed.hub.daemon import Hub
from driftseed.net.connection import Connection
from driftseed.net.endpoint import Endpoint
from driftseed.net.identity import Identity
from driftseed.net.link import Link, greet_in, greet_out
from driftseed.net.stream import Stream
from driftseed.trust.membership import Membership, issue_certificate
from driftseed.trust.repository import FleetRepository
from support_fleet import Fleet

Answer = Callable[[wire.Message, Stream], Awaitable[None]]


@dataclass
class MadeUpPeer:
    """A peer whose every byte is the test's."""

    endpoint: Endpoint
    identity: Identity
    fleet: FleetId
    certificate: bytes
    membership: Membership
    links: list[Link] = field(default_factory=list)
    asked: list[wire.Message] = field(default_factory=list)
    """Requests that came on streams of their own."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def address(self) -> NodeAddress:
        """Where it listens."""
        return NodeAddress(device=self.identity.device, addrs=[f"127.0.0.1:{self.endpoint.port}"])

    async def connect(self, member: Agent | Hub, alpn: bytes = wire.ALPN_OVERLAY) -> Connection:
        """A connection on which nothing was said."""
        return await self.endpoint.dial(address_of(member), alpn)

    async def link(self, member: Agent | Hub, alpn: bytes = wire.ALPN_OVERLAY) -> Link:
        """A connection with the handshake done."""
        connection = await self.connect(member, alpn)
        link = await greet_out(connection, self.fleet, self.certificate, self.membership, time.time)
        self.links.append(link)
        return link

    def listen(self, answer: Answer, alpn: bytes = wire.ALPN_OVERLAY) -> None:
        """Accept who dials, greet it, and answer every stream that it opens."""

        async def accept() -> None:
            while (connection := await self.endpoint.accept()) is not None:
                link = await greet_in(connection, self.fleet, self.certificate, self.membership, time.time)
                self.links.append(link)
                if connection.alpn == alpn:
                    self.serve(link, answer)

        self.tasks.append(asyncio.create_task(accept()))

    def serve(self, link: Link, answer: Answer) -> None:
        """Answer every stream that is opened on a link."""

        async def serve() -> None:
            with contextlib.suppress(LinkClosed):
                while True:
                    stream = await link.connection.accept_stream()
                    self.tasks.append(asyncio.create_task(one(stream)))

        async def one(stream: Stream) -> None:
            with contextlib.suppress(LinkClosed, PeerStalled):
                message = await stream.read_frame()
                if message is not None and not isinstance(message, wire.UnknownFrame):
                    self.asked.append(message)
                    await answer(message, stream)

        self.tasks.append(asyncio.create_task(serve()))

    async def close(self) -> None:
        """Gone."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.endpoint.close()


def address_of(member: Agent | Hub) -> NodeAddress:
    """How to dial a member on this machine."""
    node = member.node
    return NodeAddress(device=node.device, addrs=[f"127.0.0.1:{node.endpoint.port}"])


@contextlib.asynccontextmanager
async def made_up_peer(
    fleet: Fleet,
    *,
    role: Literal["agent", "hub", "publisher"] = "agent",
    issued: float | None = None,
    lifetime_s: float = 3600.0,
    of: FleetRepository | None = None,
) -> AsyncIterator[MadeUpPeer]:
    """A peer with a certificate that the fleet's key has really signed (or that of another fleet)."""
    repository = of or fleet.repository
    key = repository.enrolment_key()
    identity = Identity.generate()
    certificate = issue_certificate(
        key,
        fleet=repository.fleet_id,
        device=identity.device,
        role=role,
        labels={},
        now=time.time() - 60 if issued is None else issued,
        lifetime=lifetime_s,
    )
    public = key.public_key().public_bytes_raw().hex()
    endpoint = await Endpoint.open(identity, bind="127.0.0.1:0", alpns=[wire.ALPN_OVERLAY, wire.ALPN_TUNNEL])
    peer = MadeUpPeer(
        endpoint,
        identity,
        FleetId(repository.fleet_id),
        certificate,
        Membership(repository.fleet_id, {public}, time.time),
    )
    try:
        yield peer
    finally:
        await peer.close()


async def closed(connection: Connection, timeout_s: float = 10.0) -> str:
    """Wait until the other side has closed a connection; returns the reason that it gave."""
    async with asyncio.timeout(timeout_s):
        return await connection.wait_closed()


def frame(number: int, body: bytes, *, length: int | None = None) -> bytes:
    """Bytes of a frame, with any number and any length in its header."""
    return wire.HEADER.pack(len(body) + 1 if length is None else length, number) + body


OVERSIZED = wire.HEADER.pack(limits.FRAME_BYTES_MAX + 1, 0x10)
"""The header of a frame that is one byte too long."""
