"""No hub at all: devices remember each other, introduce each other, and one of them does a hub's work."""

from __future__ import annotations

import builtins
import contextlib
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from driftseed.agent.config import AgentConfig
from driftseed.agent.daemon import Agent
from driftseed.agent.relay import AgentRelay
from driftseed.core.errors import ConfigInvalid, DeviceError, DriftseedError, PortTaken
from driftseed.core.ids import DeviceId
from driftseed.core.lifecycle import State
from driftseed.core.wire import DirectoryEntry
from driftseed.hub.daemon import Hub, HubSettings
from driftseed.net.identity import Identity
from driftseed.node.contacts import CONTACTS_FILE
from driftseed.node.home import Home
from driftseed.node.transfer import ContentSettings
from driftseed.publish.devices import revoke
from driftseed.trust.hubkit import export_hub_kit, parse_hub_kit
from support_fleet import Fleet, fleet_in, settled, until
from support_relay import admitted, dialled


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def linked(one: Agent, other: Agent) -> bool:
    return one.node.overlay.peer(other.identity.device) is not None


def remember_only(fleet: Fleet, name: str, other: Agent) -> None:
    """Have an agent know one device and no other, as if that had been its only neighbour."""
    path = fleet.directory / name / CONTACTS_FILE
    address = msgspec.structs.replace(
        other.node.own_address(), addrs=[f"127.0.0.1:{other.node.endpoint.port}"]
    )
    path.write_bytes(msgspec.json.encode([DirectoryEntry(address=address)]))


async def without_hub(fleet: Fleet, *names: str) -> None:
    """Have agents joined; the hub that admitted them is gone for good."""
    hub = await fleet.start_hub()
    for name in names:
        await fleet.join(name)
    await fleet.stop(hub)


async def test_neighbours_are_remembered_over_a_restart_and_update_each_other(tmp_path: Path) -> None:
    """The hub dies, then every agent restarts at once: what one of them has reaches the others."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        first = await fleet.new_agent("first")
        second = await fleet.new_agent("second")
        await until(lambda: linked(first, second), "neighbours")
        await fleet.stop(second)
        payload = tmp_path / "app.bin"
        payload.write_bytes(bytes(range(256)) * 2048)
        deployment = fleet.release("app", "1.0", [str(payload)], meta={"path": "app.bin"})
        await fleet.publish()
        await settled([first], deployment)
        await fleet.stop(hub)
        port = first.node.endpoint.port
        second = await fleet.start_agent("second")
        assert first.node.endpoint.port == port
        assert await settled([second], deployment, 40.0) == [State.SUCCEEDED]
        assert not second.node.overlay.hubs()


async def test_contacts_are_saved_while_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut does not ask first."""
    monkeypatch.setattr("driftseed.node.contacts.SAVE_EVERY_S", 0.2)
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        await fleet.new_agents("agent")
        path = tmp_path / "agent" / CONTACTS_FILE
        await until(path.exists, "contacts on the disk of a running agent")
        entries = msgspec.json.decode(path.read_bytes(), type=list[DirectoryEntry])
        assert [entry.address.device for entry in entries] == [hub.identity.device]


async def test_a_neighbour_introduces_neighbours_when_there_is_no_hub(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        await without_hub(fleet, "one", "two", "middle")
        middle = await fleet.start_agent("middle")
        for name in ("one", "two"):
            remember_only(fleet, name, middle)
        one, two = await fleet.start_agent("one"), await fleet.start_agent("two")
        await until(lambda: linked(one, middle) and linked(two, middle), "both know the one in the middle")
        await until(lambda: linked(one, two), "which has introduced them")


async def test_an_agent_that_is_told_to_relays_for_those_without_a_hub(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        await without_hub(fleet, "one", "two", "relay")
        address = f"127.0.0.1:{free_port()}"
        url = f"http://{address}/"
        relay = await fleet.start_agent("relay", config=AgentConfig(relay_listen=address))
        for name in ("one", "two"):
            remember_only(fleet, name, relay)
        one, two = await fleet.start_agent("one"), await fleet.start_agent("two")
        assert relay.relay is not None
        await until(
            lambda: one.node.endpoint.relay == url and two.node.endpoint.relay == url,
            "both can be reached through the relay",
        )
        server = relay.relay
        await until(lambda: server.stats()["clients"] == 3, "all three are its clients")
        await until(lambda: server.stats()["guests"] == 0, "and proved members")
        await until(
            lambda: url in {peer.state.relay for peer in one.node.overlay.peers()},
            "others are told to dial through it",
        )


async def test_an_expelled_member_is_cut_off_from_an_agents_relay_as_from_a_hubs(tmp_path: Path) -> None:
    """It is thrown out while connected, and is not let in again, not even as a stranger that is about to join."""
    async with fleet_in(tmp_path) as fleet:
        await fleet.start_hub()
        address = f"127.0.0.1:{free_port()}"
        await fleet.join("relay")
        relay = await fleet.start_agent("relay", config=AgentConfig(relay_listen=address))
        good, bad = await fleet.new_agents("good", "bad")
        server = relay.relay
        assert server is not None
        await until(lambda: linked(relay, bad) and linked(relay, good), "members that the relay has met")
        url = f"http://{address}"
        async with admitted(url, Identity(good.identity.secret)) as staying:
            async with admitted(url, Identity(bad.identity.secret)) as thief:
                await thief.send(thief.datagram(staying, b"as a member"))
                assert await staying.read() == b"\x06" + thief.key + b"\0as a member"
                revoke(fleet.repository, [bad.identity.device], now=time.time(), since=0.0, reason="stolen")
                await fleet.publish()
                while await thief.read() is not None:
                    continue
            assert await staying.read() == b"\x08" + thief.key
            async with dialled(url, Identity(bad.identity.secret)) as again:
                assert await again.authenticate() == b"\x03\x1anot a member of this fleet"
                assert await again.read() is None
            await staying.ping()
        assert server.stats()["closed:expelled"] >= 1
        assert server.stats()["closed:not-admitted"] >= 1
        assert not linked(relay, bad)


async def test_relaying_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_aiohttp(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "aiohttp":
            raise ModuleNotFoundError("No module named 'aiohttp'", name="aiohttp")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_aiohttp)
    monkeypatch.delitem(__import__("sys").modules, "driftseed.net.relay", raising=False)
    with pytest.raises(DeviceError) as caught:
        AgentRelay(DeviceId("aa" * 32), "127.0.0.1:0", "http://127.0.0.1:1", lambda _: False)
    assert "aiohttp" in caught.value.message
    assert "driftseed[hub]" in str(caught.value.hint)


@pytest.mark.parametrize("listen", ["0.0.0.0:7700", "[::]:7700", "127.0.0.1:0"])
def test_a_relay_whose_address_nobody_can_know_is_refused(listen: str) -> None:
    with pytest.raises(ConfigInvalid, match="relay_url"):
        AgentRelay(DeviceId("aa" * 32), listen, "", lambda _: False)


async def test_a_taken_relay_port_keeps_the_agent_from_starting_and_is_named(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        await without_hub(fleet, "agent")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(DriftseedError) as caught:
                await fleet.start_agent("agent", config=AgentConfig(relay_listen=f"127.0.0.1:{port}"))
        assert isinstance(caught.value, PortTaken)
        assert str(port) in caught.value.message
        assert open_below(tmp_path / "agent") == []
        await fleet.start_agent("agent")


def open_below(directory: Path) -> list[str]:
    """Files of a directory that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(descriptor.readlink()))
    return sorted({each for each in found if each.startswith(str(directory))})


async def test_a_taken_port_leaves_nothing_open_and_the_next_try_succeeds(tmp_path: Path) -> None:
    """UDP, at an agent that relays already, and at a hub: databases, relay and endpoint are closed again."""
    async with fleet_in(tmp_path) as fleet:
        await without_hub(fleet, "agent")
        home = Home(tmp_path / "agent")
        relayed = free_port()
        with socket.socket(type=socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            there = f"127.0.0.1:{taken.getsockname()[1]}"
            config = AgentConfig(listen=there, relay_listen=f"127.0.0.1:{relayed}")
            with pytest.raises(PortTaken):
                await Agent.open(home, config, inventory={})
            assert open_below(tmp_path / "agent") == []
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", relayed))
            kit = parse_hub_kit(export_hub_kit(fleet.repository))
            settings = HubSettings(bind=there, public=(), relay=None, content=ContentSettings())
            Home(tmp_path / "other").create()
            with pytest.raises(PortTaken):
                await Hub.open(kit, Home(tmp_path / "other"), settings)
            assert open_below(tmp_path / "other") == []
        await fleet.start_agent("agent")
        settings = HubSettings(bind="127.0.0.1:0", public=(), relay=None, content=ContentSettings())
        fleet.hubs.append(await Hub.open(kit, Home(tmp_path / "other"), settings))
