"""The join link: a device without a certificate trades a ticket's invitation for one.

::

    device                              hub
    ------                              ---
    JoinRequest(invitation)  ------>    check (the caller's business)
    certificates             <------    JoinReply(certificate, hub_certificate) | Refused(reason)

This module only moves the frames, within their limits and times; who may join is decided by its callers.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from driftseed.core import limits, wire
from driftseed.core.errors import (
    DriftseedError,
    LinkClosed,
    MemberRevoked,
    NotAMember,
    PeerMisbehaved,
    TicketExpired,
    TicketRefused,
    WrongFleet,
)
from driftseed.net.connection import Connection
from driftseed.net.link import handshake, refuse
from driftseed.net.stream import Stream

JOIN_REPLY_BYTES_MAX: Final = 2 * limits.CERTIFICATE_BYTES_MAX + limits.KIB
"""Bytes of a join reply: two certificates and their keys."""
CLOSE_DONE: Final = 0
"""Close code: nothing more to say."""

_REFUSALS: Final[dict[str, type[DriftseedError]]] = {
    kind.reason: kind for kind in (TicketRefused, TicketExpired, WrongFleet, NotAMember, MemberRevoked)
}


@dataclass(frozen=True, slots=True)
class JoinAsked:
    """A device at the door: answer with ``admit`` or ``turn_away``, once, which also ends the connection."""

    connection: Connection
    stream: Stream
    request: wire.JoinRequest

    async def admit(self, reply: wire.JoinReply) -> None:
        """Hand the certificates over, and wait until the device has closed the connection, or should have.

        Raises:
            PeerStalled, LinkClosed: it went away before the reply was on its way.
        """
        try:
            await self.stream.write_frame(reply)
            await self.stream.finish()
            async with asyncio.timeout(limits.REFUSAL_LINGER_S):
                await self.connection.wait_closed()
        except TimeoutError:
            # It has the reply; that it keeps the connection open is no reason to.
            return
        finally:
            self.connection.close(CLOSE_DONE)

    async def turn_away(self, error: DriftseedError) -> None:
        """Tell the device why not."""
        await refuse(self.connection, self.stream, error)


async def join_out(connection: Connection, request: wire.JoinRequest) -> wire.JoinReply:
    """Ask a hub for membership. The connection is closed afterwards, whatever came of it.

    Raises:
        TicketRefused, TicketExpired, WrongFleet, NotAMember: the hub says no; the message says why.
        PeerMisbehaved: it does not speak the protocol.
        PeerStalled: it did not answer within ``HANDSHAKE_TIMEOUT_S``.
        LinkClosed: the connection is gone.
    """
    try:
        async with handshake(connection):
            stream = await connection.open_stream()
            await stream.write_frame(request)
            await stream.finish()
            reply = await stream.read_frame(JOIN_REPLY_BYTES_MAX, timeout=None)
    finally:
        connection.close(CLOSE_DONE)
    match reply:
        case wire.JoinReply():
            return reply
        case wire.Refused():
            kind = _REFUSALS.get(reply.reason, TicketRefused)
            raise kind(
                f"hub {connection.remote[:10]} refuses the ticket: {reply.message or reply.reason}",
                hint="ask for a new ticket (driftseed fleet invite)",
            )
        case None:
            raise LinkClosed(f"hub {connection.remote[:10]} ended the connection without an answer")
        case _:
            raise PeerMisbehaved(
                f"{type(reply).__name__} where a join reply was due", kind="handshake-out-of-order"
            )


async def join_in(connection: Connection) -> JoinAsked:
    """Read what a device that dialled the join protocol asks; the connection is closed when this fails.

    Raises:
        PeerMisbehaved: it sends something else.
        PeerStalled: it did not ask within ``HANDSHAKE_TIMEOUT_S``.
        LinkClosed: the connection is gone.
    """
    async with handshake(connection):
        stream = await connection.accept_stream()
        request = await stream.read_frame(limits.HELLO_BYTES_MAX, timeout=None)
        if request is None:
            raise LinkClosed(f"{connection.remote[:10]} ended the connection without asking anything")
        if not isinstance(request, wire.JoinRequest):
            raise PeerMisbehaved(
                f"{type(request).__name__} where a join request was due", kind="handshake-out-of-order"
            )
        return JoinAsked(connection, stream, request)
