"""Membership first: what happens on a new connection before anything else is read.

The dialling side opens the first stream and sends a ``Hello``; the accepting side answers with its own, or with
a ``Refused`` that says why not::

    dialling                      accepting
    --------                      ---------
    Hello(certificate)  ------>   check
    check               <------   Hello(certificate) | Refused(reason)
    ready, or Refused   ------>   ready

TLS has proved that either side holds its key; the certificate proves that the enrolment key made that device a
member. Either side may refuse; the refused one learns the reason, so that an honest device with an expired
certificate can report it. On any failure the connection is closed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from driftseed.core import limits, wire
from driftseed.core.errors import (
    DriftseedError,
    LinkClosed,
    MemberRevoked,
    MembershipExpired,
    NotAMember,
    PeerMisbehaved,
    PeerStalled,
    TransportError,
    WrongFleet,
)
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.verified import VerifiedMember
from driftseed.net.connection import Connection
from driftseed.net.stream import Stream

CLOSE_REFUSED: Final = 0x10
"""Close code: the other side is not accepted as a member, or broke the handshake."""

_REFUSALS: Final[dict[str, type[DriftseedError]]] = {
    kind.reason: kind for kind in (NotAMember, MembershipExpired, MemberRevoked, WrongFleet)
}
_MESSAGE_CHARS: Final = 512


class MemberChecker(Protocol):
    """Checks membership certificates; ``trust.membership.Membership`` is one."""

    def check(self, certificate: bytes, device: DeviceId) -> VerifiedMember:
        """Verify that ``certificate`` makes ``device`` a member now.

        Raises:
            NotAMember: it does not (MembershipExpired: it did).
        """


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between two devices that have proved membership to each other."""

    member: VerifiedMember
    """The other side."""
    connection: Connection
    control: Stream
    """The stream of the handshake, from here on free for control frames in both directions."""
    clock_offset_s: float
    """Seconds that the other side's clock is ahead of ours, to within a round trip."""
    certificate: bytes = b""
    """What the other side showed, to be judged again when the signed metadata changes."""


async def greet_out(
    connection: Connection,
    fleet: FleetId,
    certificate: bytes,
    checker: MemberChecker,
    clock: Callable[[], float],
) -> Link:
    """Prove membership to the device that we dialled, and have it prove its own.

    Args:
        connection: just dialled; closed when this fails.
        fleet: ours.
        certificate: ours.
        checker: for theirs.
        clock: seconds since 1970.

    Raises:
        NotAMember, MembershipExpired, WrongFleet: one side refuses the other; the message says which.
        PeerMisbehaved: it does not speak the protocol.
        PeerStalled: it did not answer within ``HANDSHAKE_TIMEOUT_S``.
        LinkClosed: the connection is gone.
    """
    async with handshake(connection):
        stream = await connection.open_stream()
        sent_at = clock()
        await stream.write_frame(wire.Hello(fleet=fleet, certificate=certificate, clock=sent_at))
        hello = await _read_hello(connection, stream)
        now = clock()
        member = await _check(connection, stream, hello, fleet, checker)
        return Link(member, connection, stream, hello.clock - (sent_at + now) / 2, hello.certificate)


async def greet_in(
    connection: Connection,
    fleet: FleetId,
    certificate: bytes,
    checker: MemberChecker,
    clock: Callable[[], float],
) -> Link:
    """Have a device that dialled us prove membership, then prove ours. Nothing else is read before.

    Args and Raises: as ``greet_out``.
    """
    async with handshake(connection):
        stream = await connection.accept_stream()
        hello = await _read_hello(connection, stream)
        offset = hello.clock + connection.path().rtt_ms / 2000 - clock()
        member = await _check(connection, stream, hello, fleet, checker)
        await stream.write_frame(wire.Hello(fleet=fleet, certificate=certificate, clock=clock()))
        return Link(member, connection, stream, offset, hello.certificate)


async def refuse(connection: Connection, stream: Stream, error: DriftseedError) -> None:
    """Tell the other side why not, give it a moment to read it, and close.

    Closing at once would throw the reason away with everything else that is under way.
    """
    message = wire.Refused(reason=error.reason, message=error.message[:_MESSAGE_CHARS])
    try:
        async with asyncio.timeout(limits.REFUSAL_LINGER_S):
            await stream.write_frame(message)
            await stream.finish()
            await connection.wait_closed()
    except (TimeoutError, TransportError):
        # It did not want to know.
        return
    finally:
        connection.close(CLOSE_REFUSED, error.reason)


def refusal(connection: Connection, refused: wire.Refused) -> DriftseedError:
    """What a ``Refused`` frame means for the side that receives it."""
    kind = _REFUSALS.get(refused.reason, NotAMember)
    return kind(
        f"{connection.remote[:10]} refuses us ({refused.reason}): {refused.message or 'it does not say why'}",
        hint="check the clock and the certificate of this device; join again with a new ticket if need be",
    )


@asynccontextmanager
async def handshake(connection: Connection) -> AsyncIterator[None]:
    """Bound a handshake in time and bytes, and close the connection whenever it fails.

    The engine lets a peer send about a megabyte on each of a hundred streams that nobody reads, and offers no way to
    say less beforehand; so what a stranger sends is watched, or a few of them would fill a hub's memory.

    Raises:
        PeerStalled: not done within ``HANDSHAKE_TIMEOUT_S``.
        PeerMisbehaved: ``handshake-flood``: more than ``HANDSHAKE_BYTES_MAX`` came before it was done.
    """
    guard = asyncio.create_task(_close_when_flooded(connection), name="handshake-guard")
    done = False
    try:
        async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT_S):
            yield
        done = True
    except TimeoutError:
        raise PeerStalled(
            f"{connection.remote[:10]} did not end the handshake in {limits.HANDSHAKE_TIMEOUT_S:g} s"
        ) from None
    except LinkClosed:
        if guard.done():
            guard.result()
        raise
    finally:
        guard.cancel()
        await asyncio.gather(guard, return_exceptions=True)
        if not done:
            connection.close(CLOSE_REFUSED, "handshake failed")


async def _close_when_flooded(connection: Connection) -> None:
    # The engine counts, and tells nobody.
    while (received := connection.bytes_received()) <= limits.HANDSHAKE_BYTES_MAX:  # noqa: ASYNC110
        await asyncio.sleep(limits.HANDSHAKE_CHECK_S)
    connection.close(CLOSE_REFUSED, "flood")
    raise PeerMisbehaved(
        f"{connection.remote[:10]} sent {received} bytes before it proved anything", kind="handshake-flood"
    )


async def _read_hello(connection: Connection, stream: Stream) -> wire.Hello:
    message = await stream.read_frame(limits.HELLO_BYTES_MAX, timeout=None)
    match message:
        case wire.Hello():
            if not math.isfinite(message.clock):
                raise PeerMisbehaved("a hello whose clock is no number", kind="frame-malformed")
            return message
        case wire.Refused():
            raise refusal(connection, message)
        case None:
            raise LinkClosed(f"{connection.remote[:10]} ended the handshake without a word")
        case _:
            raise PeerMisbehaved(
                f"{type(message).__name__} where a hello was due", kind="handshake-out-of-order"
            )


async def _check(
    connection: Connection, stream: Stream, hello: wire.Hello, fleet: FleetId, checker: MemberChecker
) -> VerifiedMember:
    refused: DriftseedError
    if hello.fleet == fleet:
        try:
            return checker.check(hello.certificate, connection.remote)
        except NotAMember as error:
            refused = error
    else:
        who = connection.remote[:10]
        refused = WrongFleet(f"{who} belongs to fleet {hello.fleet[:10]}, this is {fleet[:10]}")
    await refuse(connection, stream, refused)
    raise refused
