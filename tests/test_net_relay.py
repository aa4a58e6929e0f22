"""The relay server, with endpoints that know nothing else, and with clients that behave badly."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import aiohttp
import pytest

from driftseed.core import limits, wire
from driftseed.core.errors import PeerUnreachable, PortTaken
from driftseed.core.ids import DeviceId
from driftseed.core.limits import MIB
from driftseed.core.model import NodeAddress
from driftseed.net.identity import Identity
from driftseed.net.relay import RelayServer
from support_net import WAIT_S, accepted, endpoint, until
from support_relay import admitted, dialled, relay

ELSEWHERE = b"\x0d\x01"
HEALTHY = b"\x0d\x00"
RATE_LIMITED = b"\x0d\x02"


async def test_two_endpoints_that_know_only_the_relay_exchange_a_mebibyte() -> None:
    blob = os.urandom(2 * MIB)
    async with (
        relay() as (server, url),
        endpoint(relays=[url]) as one,
        endpoint(relays=[url]) as two,
        asyncio.timeout(WAIT_S * 2),
    ):
        address = NodeAddress(device=two.device, addrs=[], relay=url)
        out, into = await asyncio.gather(one.dial(address, wire.ALPN_OVERLAY), accepted(two))
        first_kind = out.path().kind
        stream = await out.open_stream()

        async def send() -> None:
            await stream.write_raw(blob)
            await stream.finish()

        async def receive() -> bytes:
            incoming = await into.accept_stream()
            got = bytearray()
            while data := await incoming.read_raw(MIB):
                got += data
            return bytes(got)

        _, got = await asyncio.gather(send(), receive())
        assert got == blob
        assert into.remote == one.device
        # On one machine the two soon find a direct path; what came before went through the relay.
        assert first_kind in {"relayed", "lan"}
        stats = server.stats()
        assert stats["clients"] == 2
        assert stats["frames"] > 0
        assert one.relay is not None
        assert one.relay.rstrip("/") == url


async def test_a_key_that_is_not_admitted_is_told_so_and_reaches_nobody() -> None:
    member = Identity.generate()
    async with relay(lambda device: device == member.device) as (server, url):
        async with admitted(url, member), dialled(url) as stranger:
            assert await stranger.authenticate() == b"\x03\x1anot a member of this fleet"
            assert await stranger.read() is None
            assert server.stats()["clients"] == 1
        assert server.stats()["closed:not-admitted"] == 1


async def test_an_endpoint_that_is_not_admitted_cannot_be_reached_through_the_relay() -> None:
    async with (
        relay(lambda _: False) as (server, url),
        endpoint(relays=[url]) as one,
        endpoint(relays=[url]) as two,
    ):
        with pytest.raises(PeerUnreachable):
            await one.dial(
                NodeAddress(device=two.device, addrs=[], relay=url), wire.ALPN_OVERLAY, timeout=1.5
            )
        assert server.stats()["clients"] == 0
        assert server.stats()["closed:not-admitted"] >= 1


async def test_admission_may_ask_somebody_and_take_a_while() -> None:
    async def ask(_device: DeviceId) -> bool:
        await asyncio.sleep(0)
        return True

    async with relay(ask) as (_, url), admitted(url) as client:
        await client.ping()


async def test_datagrams_arrive_with_their_source_and_both_protocol_versions_are_spoken() -> None:
    async with (
        relay() as (server, url),
        admitted(url) as one,
        admitted(url, protocols=("iroh-relay-v1",)) as two,
    ):
        assert one.socket.protocol == "iroh-relay-v2"
        assert two.socket.protocol == "iroh-relay-v1"
        await one.send(one.datagram(two, b"hello"))
        assert await two.read() == b"\x06" + one.key + b"\0hello"
        await two.send(b"\x05" + one.key + b"\0\0\x02abcd")
        assert await one.read() == b"\x07" + two.key + b"\0\0\x02abcd"
        stats = server.stats()
        assert (stats["frames"], stats["clients"]) == (2, 2)
        assert stats["bytes"] == 34 + 5 + 36 + 4


async def test_a_browser_or_scanner_gets_an_answer_and_no_connection() -> None:
    async with relay() as (_, url), aiohttp.ClientSession() as session:
        async with session.get(f"{url}/ping") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/relay") as answer:
            assert answer.status == 400
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(f"{url}/relay", protocols=("chat",))


async def test_datagrams_to_nobody_and_to_oneself_are_dropped_and_counted() -> None:
    async with relay() as (server, url), admitted(url) as one:
        await one.send(b"\x04" + bytes(32) + b"\0x")
        await one.send(one.datagram(one, b"x"))
        await one.send(b"\x30 a frame of the future")
        await one.ping()
        stats = server.stats()
    assert stats["drop:not-connected"] == 1
    assert stats["drop:to-itself"] == 1
    assert stats["drop:unknown-type"] == 1
    assert stats["frames"] == 0


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (b"\x04short", "frame-truncated"),
        (b"\x04" + bytes(33 + 64 * 1024 + 1), "frame-too-large"),
        (b"\x01" + bytes(97), "handshake-out-of-order"),
        (b"", "frame-truncated"),
        (bytes([0x30]) * (MIB + 1), "frame-too-large"),
    ],
)
async def test_hostile_frames_cost_their_sender_the_connection_and_nobody_else(bad: bytes, kind: str) -> None:
    async with relay() as (server, url), admitted(url) as one, admitted(url) as two, admitted(url) as hostile:
        await hostile.send(bad)
        assert await hostile.read() is None
        await one.send(one.datagram(two, b"still here"))
        assert await two.read() == b"\x06" + one.key + b"\0still here"
        await until(lambda: server.stats()["clients"] == 2)
        assert server.stats()[f"closed:{kind}"] == 1


async def test_text_costs_its_sender_the_connection() -> None:
    async with relay() as (server, url), admitted(url) as hostile:
        await hostile.socket.send_str("hello")
        assert await hostile.read() is None
        await until(lambda: server.stats()["clients"] == 0)
        assert server.stats()["closed:text-frame"] == 1


async def test_a_proof_that_does_not_hold_lets_nobody_in() -> None:
    async with relay() as (server, url), dialled(url) as forger:
        await forger.read()
        await forger.send(b"\x01" + forger.key + b"\x40" + bytes(64))
        answer = await forger.read()
        assert answer is not None
        assert answer[0] == 0x03
        assert await forger.read() is None
        assert server.stats()["closed:auth-signature"] == 1


async def test_a_client_that_never_proves_its_key_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.2)
    async with relay() as (server, url), dialled(url) as silent:
        assert await silent.read() is not None
        assert await silent.read() is None
        assert server.stats()["closed:auth-timeout"] == 1


async def test_a_client_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RELAY_IDLE_S", 0.2)
    async with relay() as (server, url), admitted(url) as silent:
        assert await silent.read() is None
        await until(lambda: server.stats()["clients"] == 0)
        assert server.stats()["closed:peer-stalled"] == 1


async def test_connections_without_proof_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PENDING_HANDSHAKES_MAX", 3)
    async with relay() as (server, url), AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(dialled(url))
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await stack.enter_async_context(dialled(url))
        assert caught.value.status == 503
        assert server.stats()["closed:busy"] == 1


async def test_a_client_that_takes_nothing_blocks_nobody_and_loses_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "RELAY_WRITE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(limits, "RELAY_QUEUE_FRAMES", 32)
    async with relay() as (server, url), admitted(url) as one, admitted(url) as two, admitted(url) as stuck:
        transport = stuck.socket._response.connection
        assert transport is not None
        assert transport.transport is not None
        transport.transport.pause_reading()
        payload = bytes(60_000)
        while server.stats().get("drop:queue-full", 0) == 0:
            await one.send(one.datagram(stuck, payload))
            await one.ping()
        await one.send(one.datagram(two, b"prompt"))
        assert await two.read() == b"\x06" + one.key + b"\0prompt"
        await until(lambda: server.stats()["clients"] == 2)
        assert server.stats()["closed:peer-stalled"] == 1


async def test_what_waits_for_a_client_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RELAY_QUEUE_FRAMES", 4)
    async with relay() as (server, url), admitted(url) as one, admitted(url) as stuck:
        transport = stuck.socket._response.connection
        assert transport is not None
        assert transport.transport is not None
        transport.transport.pause_reading()
        for _ in range(250):
            await one.send(one.datagram(stuck, bytes(60_000)))
        await one.ping()
        assert server.stats()["drop:queue-full"] > 50


async def test_the_newest_connection_of_a_key_wins_and_the_older_one_takes_over_again() -> None:
    """Two copies of one device image must not throw each other out for ever."""
    identity = Identity.generate()
    async with relay() as (server, url), admitted(url) as other, admitted(url, identity) as older:
        async with admitted(url, identity) as newer:
            assert await older.read() == ELSEWHERE
            await other.send(other.datagram(newer, b"1"))
            assert await newer.read() == b"\x06" + other.key + b"\x001"
            assert server.stats()["clients"] == 2
        assert await older.read() == HEALTHY
        await other.send(other.datagram(older, b"2"))
        assert await older.read() == b"\x06" + other.key + b"\x002"


async def test_spare_connections_of_a_key_are_bounded() -> None:
    identity = Identity.generate()
    async with relay() as (server, url), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(admitted(url, identity)) for _ in range(5)]
        for old in clients[:2]:
            assert await old.read() == ELSEWHERE
            assert await old.read() is None
        await clients[-1].ping()
        assert server.stats()["clients"] == 1


async def test_those_it_spoke_to_are_told_when_a_client_goes() -> None:
    async with relay() as (_, url), admitted(url) as one, admitted(url) as bystander:
        async with admitted(url) as leaving:
            await leaving.send(leaving.datagram(one, b"x"))
            assert await one.read() == b"\x06" + leaving.key + b"\0x"
        assert await one.read() == b"\x08" + leaving.key
        await bystander.ping()


async def test_a_client_cannot_send_faster_than_its_rate() -> None:
    """A second's worth and no less than 1 MiB may come at once; then TCP holds it back, and it is told."""
    rate = 4 * MIB
    async with relay(bytes_per_second=rate) as (server, url), admitted(url) as one, admitted(url) as two:
        frame = one.datagram(two, bytes(60_000))
        loop = asyncio.get_running_loop()
        start = loop.time()
        total = 0

        async def drain() -> None:
            while True:
                await two.read()

        draining = asyncio.create_task(drain())
        while total < 6 * MIB:
            await one.send(frame)
            total += len(frame)
        assert await one.read() == RATE_LIMITED
        await one.ping()
        elapsed = loop.time() - start
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
    assert elapsed > (total - rate) / rate * 0.9
    assert server.stats()["bytes"] == total


async def test_a_guest_reaches_the_hub_and_nobody_else() -> None:
    """A device that is about to join is no member yet, and has perhaps no other way to the hub."""
    hub, member = Identity.generate(), Identity.generate()
    known = {hub.device, member.device}
    async with (
        relay(lambda device: device in known, guests_reach=[hub.device]) as (server, url),
        admitted(url, hub) as at_hub,
        admitted(url, member) as at_member,
        admitted(url) as guest,
    ):
        await guest.send(guest.datagram(at_hub, b"let me join"))
        assert await at_hub.read() == b"\x06" + guest.key + b"\0let me join"
        await at_hub.send(at_hub.datagram(guest, b"welcome"))
        assert await guest.read() == b"\x06" + at_hub.key + b"\0welcome"
        await guest.send(guest.datagram(at_member, b"psst"))
        await guest.ping()
        await at_member.send(at_member.datagram(guest, b"who are you"))
        await at_member.ping()
        assert server.stats()["drop:guest"] == 2
        assert (server.stats()["clients"], server.stats()["guests"]) == (3, 1)
        server.promote(guest.device)
        await guest.send(guest.datagram(at_member, b"hello"))
        assert await at_member.read() == b"\x06" + guest.key + b"\0hello"
        assert server.stats()["guests"] == 0


async def test_who_is_expelled_is_thrown_out_and_not_even_a_guest() -> None:
    hub, bad, expelled = Identity.generate(), Identity.generate(), set[DeviceId]()
    options = {"guests_reach": [hub.device], "expelled": expelled.__contains__}
    async with relay(lambda _: True, **options) as (server, url), admitted(url) as good:
        async with admitted(url, bad) as client:
            expelled.add(bad.device)
            server.expel()
            assert await client.read() is None
        await good.ping()
        assert (server.stats()["clients"], server.stats()["closed:expelled"]) == (1, 1)
        async with dialled(url, bad) as client:
            assert await client.authenticate() != b"\x02"
        assert server.stats()["closed:not-admitted"] == 1


async def test_clients_are_told_when_the_relay_goes_down() -> None:
    async with relay() as (server, url), admitted(url) as client:
        closing = asyncio.create_task(server.close())
        assert await client.read() == bytes.fromhex("0c000003e80000ea60")
        assert await client.read() is None
        async with asyncio.timeout(limits.SHUTDOWN_S):
            await closing


async def test_a_taken_port_is_said_to_be_taken() -> None:
    async with relay() as (_, url):
        with pytest.raises(PortTaken, match="TCP port is taken"):
            await RelayServer(lambda _: True).start("127.0.0.1", int(url.rpartition(":")[2]))
