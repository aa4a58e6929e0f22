"""An agent that relays when it is found to be reachable, by members that may lie and are not to be misused."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from driftseed.agent.autorelay import AutoRelay
from driftseed.agent.config import AgentConfig
from driftseed.agent.daemon import Agent
from driftseed.core import limits, wire
from driftseed.core.ids import DeviceId
from driftseed.hub.daemon import Hub
from driftseed.net.paths import IpAddress
from driftseed.net.stream import Stream
from driftseed.node import requests
from driftseed.node.node import Node
from driftseed.node.peer import OverlayPeer
from support_fleet import Fleet, fleet_in, until
from support_net import endpoint

AUTO = AgentConfig(relay="auto", relay_listen="127.0.0.1:0")


def outside(*nodes: Node, ip: str = "127.0.0.1") -> None:
    """Have these take the loopback addresses at which they see each other for ones on the internet."""

    def seen_at(_peer: OverlayPeer) -> IpAddress | None:
        return ipaddress.ip_address(ip)

    for node in nodes:
        node.dial_back.seen_at = seen_at


def relay_of(agent: Agent) -> AutoRelay:
    assert isinstance(agent.relay, AutoRelay)
    return agent.relay


async def one_agent(fleet: Fleet, url: str = "") -> tuple[Hub, Agent, AutoRelay]:
    hub = await fleet.start_hub()
    await fleet.join("agent")
    agent = await fleet.start_agent("agent", config=msgspec.structs.replace(AUTO, relay_url=url))
    await until(lambda: bool(agent.node.overlay.hubs()), "linked to the hub")
    outside(agent.node)
    return hub, agent, relay_of(agent)


def again(node: Node) -> None:
    """Have a node forget whom it dialled back lately."""
    node.dial_back._lately.clear()


@contextlib.asynccontextmanager
async def service(answer: bytes = b"") -> AsyncIterator[tuple[int, list[bytes]]]:
    """Something that listens; its port, and what it was sent."""
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1]), came
    finally:
        server.close()
        await server.wait_closed()


async def test_an_agent_that_a_hub_reaches_offers_its_relay_until_it_is_reached_no_more(
    tmp_path: Path,
) -> None:
    async with fleet_in(tmp_path) as fleet:
        hub, agent, relay = await one_agent(fleet)
        outside(hub.node)
        refused = f"http://127.0.0.1:{relay.port}"
        async with endpoint(relays=[refused]):
            await until(
                lambda: relay.stats().get("closed:not-admitted", 0) > 0,
                "nobody is let in before it is proved",
            )
        assert await relay.prove(agent.node)
        assert relay.url == refused

        def offered() -> str | None:
            peer = hub.node.overlay.peer(agent.identity.device)
            return None if peer is None else peer.state.offers_relay

        await until(lambda: offered() == refused, "the hub hears of it")
        async with endpoint(relays=[refused]):
            await until(lambda: relay.stats()["clients"] == 1, "now it lets others in")
            again(hub.node)
            outside(hub.node, ip="127.0.0.2")  # where the relay does not listen: it has moved
            assert await relay.prove(agent.node)
            await until(lambda: relay.url is None, "it is reached no more")
            await until(lambda: relay.stats()["clients"] == 0, "its clients have to look elsewhere")
        await until(lambda: offered() is None, "and the hub hears of that")


async def test_a_name_that_the_operator_gave_is_offered_once_it_is_proved(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        hub, agent, relay = await one_agent(fleet, "http://relay.example.org")
        assert not await relay.prove(agent.node) or relay.url is None
        again(hub.node)
        outside(hub.node)
        await relay.prove(agent.node)
        assert relay.url == "http://relay.example.org"


async def test_a_member_that_lies_does_not_make_an_agent_offer_what_nobody_reaches(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        hub, agent, relay = await one_agent(fleet)

        async def lie(_message: wire.Message, stream: Stream, _device: DeviceId) -> None:
            said = wire.Dialled(tried=True, reached=True, addr=f"127.0.0.1:{relay.port}")
            await stream.write_frame(said, 5.0)
            await stream.finish()

        hub.node.requests[wire.AskDial] = lie
        assert await relay.prove(agent.node)
        assert relay.url is None


async def test_a_single_neighbour_is_not_enough_and_two_are(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        hub, agent, relay = await one_agent(fleet)
        for expected, name in ((None, "one"), (f"http://127.0.0.1:{relay.port}", "two")):
            other = await fleet.new_agent(name)
            outside(other.node)
            await neighbours(agent, other)
            hub.node.requests[wire.AskDial] = decline

            async def asked() -> bool:
                # Two that dial each other at once give up one of their links, and what is asked on it.
                for each in fleet.agents:
                    again(each.node)
                return await relay.prove(agent.node) and relay.url == expected  # noqa: B023 - bound now

            await until(asked, f"with {name} the relay is {expected}", 40.0)


async def neighbours(one: Agent, other: Agent) -> None:
    def linked() -> bool:
        peers = (one.node.overlay.peer(other.identity.device), other.node.overlay.peer(one.identity.device))
        return all(peer is not None and peer.first_state.is_set() for peer in peers)

    await until(linked, "both know that they are neighbours", 40.0)


async def decline(_message: wire.Message, stream: Stream, _device: DeviceId) -> None:
    await stream.write_frame(wire.Dialled(tried=False), 5.0)
    await stream.finish()


async def ask(agent: Agent, port: int) -> wire.Dialled:
    (hub,) = agent.node.overlay.hubs()
    return await requests.ask_dial(hub.link.connection, port, secrets.token_hex(16))


async def test_nobody_is_dialled_whom_we_do_not_see_from_outside(tmp_path: Path) -> None:
    """As these two, on one machine: only the address of a direct path that leaves the site is ever dialled."""
    async with fleet_in(tmp_path) as fleet, service() as (port, came):
        _, agent, _ = await one_agent(fleet)
        assert await ask(agent, port) == wire.Dialled(tried=False)
        assert came == []


async def test_a_member_cannot_use_a_hub_to_knock_at_ports(tmp_path: Path) -> None:
    """One connection each DIAL_BACK_EVERY_S, one short request on it, and no service of the system."""
    async with fleet_in(tmp_path) as fleet, service(b"220 mail.example.org ESMTP\r\n") as (port, came):
        hub, agent, _ = await one_agent(fleet)
        outside(hub.node)
        assert await ask(agent, 25) == wire.Dialled(tried=False)
        said = await ask(agent, port)
        assert said == wire.Dialled(tried=True, reached=False, addr=f"127.0.0.1:{port}")
        assert len(came) == 1
        assert len(came[0]) < 128
        assert came[0].startswith(b"GET /ping?")
        for _ in range(5):
            assert await ask(agent, port) == wire.Dialled(tried=False), limits.DIAL_BACK_EVERY_S
        assert len(came) == 1


async def test_a_port_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DIAL_BACK_TIMEOUT_S", 0.2)
    silent = asyncio.Event()

    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    async with fleet_in(tmp_path) as fleet:
        hub, agent, _ = await one_agent(fleet)
        outside(hub.node)
        async with asyncio.timeout(5.0):
            said = await ask(agent, server.sockets[0].getsockname()[1])
        assert (said.tried, said.reached) == (True, False)
    silent.set()
    server.close()
    await server.wait_closed()


async def test_no_more_devices_are_asked_than_are_needed(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        _, agent, relay = await one_agent(fleet)
        count = limits.DIAL_BACK_ASKED_MAX + 1
        for number in range(count - 1):
            await fleet.new_agent(f"other-{number}")
        await until(lambda: len(agent.node.overlay.peers()) >= count, "more neighbours than are asked")
        before = sum(node.dial_back.asked for node in nodes(fleet))
        await relay.prove(agent.node)
        assert sum(node.dial_back.asked for node in nodes(fleet)) - before == limits.DIAL_BACK_ASKED_MAX


def nodes(fleet: Fleet) -> list[Node]:
    return [*(each.node for each in fleet.hubs), *(each.node for each in fleet.agents)]
