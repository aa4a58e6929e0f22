"""Trading a ticket for membership."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from driftseed.core import limits, wire
from driftseed.core.errors import (
    ClockWrong,
    DriftseedError,
    NotAMember,
    PeerUnreachable,
    TicketDamaged,
    TransportError,
    WouldOverwrite,
)
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import NodeAddress
from driftseed.core.tickets import Ticket, decode_ticket
from driftseed.net.endpoint import Endpoint
from driftseed.net.join import join_out
from driftseed.node.home import Home, MembershipRecord
from driftseed.trust.admission import apply_for, invitation_signer
from driftseed.trust.membership import Membership

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of joining."""

    device: DeviceId
    fleet: FleetId
    name: str
    labels: dict[str, str]
    hub: DeviceId


async def join(text: str, directory: Path, *, clock: Callable[[], float] = time.time) -> Joined:
    """Become a member of a ticket's fleet, through the first of its hubs that answers.

    Args:
        text: the ticket.
        directory: the device's data directory.
        clock: seconds since 1970.

    Raises:
        TicketDamaged, TicketExpired, TicketRefused: the ticket is not, no longer, or not there good.
        WouldOverwrite: the device is a member already.
        ClockWrong: by this clock, what the hub has just signed is not valid.
        NotAMember: what the hub gave is no certificate of this fleet.
        WrongFleet: the directory is another fleet's.
        PeerUnreachable: no hub answers.
    """
    ticket = decode_ticket(text, clock())
    fleet = FleetId(ticket.fleet)
    home = Home(directory)
    home.create()
    home.check_fleet(fleet)
    if home.record() is not None:
        raise WouldOverwrite(
            f"{home.directory} is a member of fleet {ticket.name!r} already",
            hint="start it: driftseed agent run --data " + str(home.directory),
        )
    identity = home.identity()
    relays = sorted({hub.relay for hub in ticket.hubs if hub.relay})
    endpoint = await Endpoint.open(identity, alpns=[wire.ALPN_JOIN], relays=relays)
    try:
        hub, reply = await _ask(endpoint, ticket, clock)
    finally:
        await endpoint.close()
    signer = invitation_signer(ticket.invitation)
    checker = Membership(fleet, {signer}, clock)
    try:
        member = checker.check(reply.certificate, identity.device)
        checker.check(reply.hub_certificate, hub)
    except NotAMember as error:
        # Both are good while the ticket is: then nothing is wrong with them but the time by which they are judged.
        later = Membership(fleet, {signer}, lambda: ticket.expires)
        later.check(reply.certificate, identity.device)
        later.check(reply.hub_certificate, hub)
        raise ClockWrong(
            f"this device's clock is wrong: {error.message}",
            hint="set it, then join again with the same ticket",
        ) from None
    home.keep(
        MembershipRecord(
            fleet=fleet,
            name=ticket.name,
            root=ticket.root,
            certificate=reply.certificate,
            enrolment_key=signer,
            hubs=ticket.hubs,
            labels=dict(member.labels),
            joined=clock(),
        )
    )
    return Joined(identity.device, fleet, ticket.name, dict(member.labels), hub)


async def _ask(
    endpoint: Endpoint, ticket: Ticket, clock: Callable[[], float]
) -> tuple[DeviceId, wire.JoinReply]:
    if not ticket.hubs:
        raise TicketDamaged("the ticket names no hub", hint="ask for a new one: driftseed fleet invite")
    failures: list[DriftseedError] = []
    for hub in ticket.hubs:
        try:
            return DeviceId(hub.device), await _ask_one(endpoint, hub, ticket, clock)
        except TransportError as error:
            _log.info("hub does not answer", extra={"fields": {"hub": hub.device[:16], "why": error.message}})
            failures.append(error)
    raise PeerUnreachable(
        "no hub of the ticket answers: " + "; ".join(error.message for error in failures),
        hint="check that a hub is running and can be reached from here (UDP, or its relay over TCP)",
    )


async def _ask_one(
    endpoint: Endpoint, hub: NodeAddress, ticket: Ticket, clock: Callable[[], float]
) -> wire.JoinReply:
    connection = await endpoint.dial(hub, wire.ALPN_JOIN, limits.DIAL_TIMEOUT_S)
    application = apply_for(ticket.invitation, endpoint.device)
    request = wire.JoinRequest(fleet=ticket.fleet, invitation=application, clock=clock())
    return await join_out(connection, request)
