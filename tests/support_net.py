"""Endpoints on loopback, and a membership checker that reads made-up certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from driftseed.core import wire
from driftseed.core.errors import MembershipExpired, NotAMember
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.verified import VerifiedMember
from driftseed.net.endpoint import Connection, Endpoint
from driftseed.net.identity import Identity

ALPNS = (wire.ALPN_OVERLAY, wire.ALPN_TUNNEL, wire.ALPN_JOIN)
FLEET = FleetId("f1" * 32)
OTHER_FLEET = FleetId("0e" * 32)
WAIT_S = 15.0
"""Bound of every wait in these tests; nothing takes that long unless it is broken."""


@dataclass
class NamedMembers:
    """Implements ``MemberChecker``: a certificate is the word ``member`` or ``expired`` and the device's id."""

    asked: list[DeviceId] = field(default_factory=list)

    def check(self, certificate: bytes, device: DeviceId) -> VerifiedMember:
        self.asked.append(device)
        word, _, name = certificate.partition(b":")
        if name.decode(errors="replace") != device:
            raise NotAMember(f"the certificate is not of {device[:10]}")
        if word == b"expired":
            raise MembershipExpired(f"the membership of {device[:10]} ended")
        if word != b"member":
            raise NotAMember(f"the certificate of {device[:10]} is not signed by the enrolment key")
        return VerifiedMember(device=device, role="agent", labels={}, expires=2e9)


def certificate(endpoint: Endpoint, word: str = "member") -> bytes:
    return f"{word}:{endpoint.device}".encode()


@asynccontextmanager
async def endpoint(
    identity: Identity | None = None,
    *,
    bind: str = "127.0.0.1:0",
    relays: Iterable[str] = (),
    pending_max: int = 64,
) -> AsyncIterator[Endpoint]:
    opened = await Endpoint.open(
        identity or Identity.generate(),
        bind=bind,
        alpns=ALPNS,
        relays=tuple(relays),
        pending_max=pending_max,
    )
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def two_endpoints() -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    async with endpoint() as one, endpoint() as two:
        yield one, two


async def accepted(at: Endpoint) -> Connection:
    async with asyncio.timeout(WAIT_S):
        connection = await at.accept()
    assert connection is not None
    return connection


async def connected(
    dialler: Endpoint, acceptor: Endpoint, alpn: bytes = wire.ALPN_OVERLAY
) -> tuple[Connection, Connection]:
    """A connection, seen from the dialling and from the accepting side."""
    async with asyncio.timeout(WAIT_S):
        return await asyncio.gather(dialler.dial(acceptor.address(), alpn), accepted(acceptor))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has no event of its own."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - counters have no events
            await asyncio.sleep(0.01)
