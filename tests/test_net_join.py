"""The join link's frames; who may join is decided elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from driftseed.core import wire
from driftseed.core.errors import (
    DriftseedError,
    LinkClosed,
    NotAMember,
    PeerMisbehaved,
    TicketExpired,
    TicketRefused,
)
from driftseed.net.join import join_in, join_out
from support_net import FLEET, WAIT_S, connected, two_endpoints

REQUEST = wire.JoinRequest(fleet=FLEET, invitation=b"secret", clock=5.0)
REPLY = wire.JoinReply(certificate=b"c" * 4096, hub_certificate=b"h" * 4096)


async def test_a_request_and_its_answer_pass_and_the_connection_ends() -> None:
    async with two_endpoints() as (device, hub), asyncio.timeout(WAIT_S):
        out, into = await connected(device, hub, wire.ALPN_JOIN)
        joining = asyncio.create_task(join_out(out, REQUEST))
        asked = await join_in(into)
        assert asked.request == REQUEST
        assert asked.connection.remote == device.device
        await asked.admit(REPLY)
        assert await joining == REPLY
        await into.wait_closed()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TicketRefused("used up"), TicketRefused),
        (TicketExpired("too old"), TicketExpired),
        (NotAMember("no"), NotAMember),
        (LinkClosed("odd"), TicketRefused),
    ],
)
async def test_a_refusal_arrives_with_its_reason(error: DriftseedError, kind: type[DriftseedError]) -> None:
    async with two_endpoints() as (device, hub), asyncio.timeout(WAIT_S):
        out, into = await connected(device, hub, wire.ALPN_JOIN)
        joining = asyncio.create_task(join_out(out, REQUEST))
        asked = await join_in(into)
        await asked.turn_away(error)
        with pytest.raises(kind, match=error.message):
            await joining
        assert out.closed
        assert into.closed


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (wire.encode(wire.State()), "handshake-out-of-order"),
        (b"\0\0\xff\xff\x03", "frame-too-large"),
        (b"\0\0\0\x02\x03\xc1", "frame-malformed"),
    ],
)
async def test_something_else_than_a_request_closes_the_connection(first: bytes, kind: str) -> None:
    async with two_endpoints() as (device, hub), asyncio.timeout(WAIT_S):
        out, into = await connected(device, hub, wire.ALPN_JOIN)
        stream = await out.open_stream()
        await stream.write_raw(first)
        with pytest.raises(PeerMisbehaved) as caught:
            await join_in(into)
        assert caught.value.kind == kind
        await out.wait_closed()


@pytest.mark.parametrize("answer", [wire.encode(wire.State()), b"\0\0\x80\0\x04"])
async def test_a_hub_that_answers_something_else_misbehaves(answer: bytes) -> None:
    async with two_endpoints() as (device, hub), asyncio.timeout(WAIT_S):
        out, into = await connected(device, hub, wire.ALPN_JOIN)
        joining = asyncio.create_task(join_out(out, REQUEST))
        asked = await join_in(into)
        await asked.stream.write_raw(answer)
        with pytest.raises(PeerMisbehaved):
            await joining
        await into.wait_closed()
