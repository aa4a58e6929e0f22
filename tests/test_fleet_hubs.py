"""Several hubs: what one learns the others know, and any one of them may die."""

from __future__ import annotations

from pathlib import Path

import pytest

from driftseed.agent.config import AgentConfig
from driftseed.agent.daemon import Agent
from driftseed.core import limits, wire
from driftseed.core.errors import LinkClosed
from driftseed.core.ids import Digest
from driftseed.core.lifecycle import State
from driftseed.hub.daemon import Hub
from driftseed.node import requests
from driftseed.node.views import peers_view
from support_fleet import Fleet, fleet_in, settled, until


async def hubs(fleet: Fleet, count: int) -> list[Hub]:
    """Start hubs that are signed, and linked to each other."""
    started = [await fleet.start_hub(f"hub-{number}") for number in range(count)]
    fleet.repository.set_hubs([fleet.hub_address(hub) for hub in started])
    await fleet.publish()
    await until(
        lambda: all(len(hub.node.overlay.hubs()) == count - 1 for hub in started),
        "every hub is linked to every other",
    )
    return started


async def reports_of(hub: Hub) -> dict[str, int]:
    return {str(device): number for device, number in (await hub.observer.sequences()).items()}


def payload(directory: Path, size: int = 1 << 20) -> Path:
    path = directory / "app.bin"
    path.write_bytes(bytes(range(256)) * (size // 256))
    return path


async def test_an_agent_keeps_links_to_three_hubs_and_no_more(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        await hubs(fleet, 4)
        agent = await fleet.new_agent("agent")
        await until(lambda: len(agent.node.overlay.hubs()) == limits.HUBS_ACTIVE_MAX, "linked to three hubs")
        await until(lambda: agent.node.keeper.ready > 0, "metadata")
        assert len(agent.node.overlay.hubs()) == limits.HUBS_ACTIVE_MAX


async def test_a_hub_that_no_device_reports_to_knows_the_fleet_from_the_others(tmp_path: Path) -> None:
    """Also what was reported before it was there: it starts last, with an empty database."""
    async with fleet_in(tmp_path) as fleet:
        first = await fleet.start_hub("hub-first")
        agents = await fleet.new_agents("one", "two")
        known = {agent.identity.device for agent in agents}

        async def reported(hub: Hub) -> bool:
            return known <= (await reports_of(hub)).keys()

        await until(lambda: reported(first), "the first hub has reports")
        for agent in agents:
            await fleet.stop(agent)
        newest = await reports_of(first)
        late = await fleet.start_hub("hub-late")
        fleet.repository.set_hubs([fleet.hub_address(hub) for hub in (first, late)])
        await fleet.publish()
        await until(lambda: reported(late), "the late hub has the reports too")
        assert await reports_of(late) == newest
        rows = await late.observer.devices({})
        assert {row.device for row in rows} == known


async def test_what_comes_back_from_another_hub_is_no_news(tmp_path: Path) -> None:
    """Two hubs that read each other's logs come to rest; otherwise they would send the same reports for ever."""
    async with fleet_in(tmp_path) as fleet:
        one, two = await hubs(fleet, 2)
        agents = await fleet.new_agents("one", "two")
        expected = {agent.identity.device for agent in agents}

        async def both() -> bool:
            known = [await reports_of(hub) for hub in (one, two)]
            return known[0] == known[1] and known[0].keys() == expected

        await until(both, "both hubs know the same")
        for agent in list(fleet.agents):
            await fleet.stop(agent)
        await until(both, "both hubs know the same at the end")
        ends = [await hub.observer.log_end() for hub in (one, two)]
        for hub in (one, two):
            for other in hub.node.overlay.hubs():
                other.send(wire.ReportsLogged(epoch="another", last=1))
        await until(both, "both hubs still know the same")
        assert [await hub.observer.log_end() for hub in (one, two)] == ends


async def test_an_agent_cannot_read_the_reports_of_others(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        (agent,) = await fleet.new_agents("agent")
        (peer,) = agent.node.overlay.hubs()
        async with requests.request(peer.link.connection, wire.GetReports()) as stream:
            with pytest.raises(LinkClosed, match="Reset"):
                await stream.read_frame(limits.FRAME_BYTES_MAX, 10.0)
        assert hub.node.ledger.drops["frame-out-of-place"] == 1
        peer.send(wire.ReportsLogged(epoch="x", last=9))
        await until(lambda: hub.node.ledger.drops["frame-out-of-place"] == 2, "the false word is counted")


async def test_a_device_of_one_hub_is_found_through_another(tmp_path: Path) -> None:
    """Fleets with more hubs than an agent has links to: a hub asks the others who has a content."""
    async with fleet_in(tmp_path) as fleet:
        one, two = await hubs(fleet, 2)
        fleet.hubs = [one]
        holder = await fleet.new_agent("holder")
        deployment = fleet.release("app", "1.0", [str(payload(tmp_path))], meta={"path": "app.bin"})
        await fleet.publish()
        await settled([holder], deployment)
        fleet.hubs = [one, two]
        asker = await fleet.new_agent("asker")
        await until(lambda: len(asker.node.overlay.hubs()) == 2, "linked to both hubs")
        artifact = next(iter(holder.node.contents.store.digests()))
        for link in two.node.overlay.peers():
            if link.device == holder.identity.device:
                link.close("this hub shall know it by hearsay only")
        peer = next(each for each in asker.node.overlay.hubs() if each.device == two.identity.device)
        found = await requests.find_content(peer.link.connection, artifact)
        assert holder.identity.device in {entry.address.device for entry in found.entries}


def from_whom(agent: Agent, digest: Digest) -> set[str]:
    swarming = agent.node.contents.swarming
    return {flow.device for flow in swarming.tunnels.carried if flow.sha256 == digest}


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_transfer_outlives_either_hub(tmp_path: Path, victim: int) -> None:
    """Killed in the middle of a download: the rest comes from the other, and nothing is begun anew."""
    async with fleet_in(tmp_path) as fleet:
        both = await hubs(fleet, 2)
        app = payload(tmp_path, 6 << 20)
        await fleet.join("agent")
        deployment = fleet.release("app", "1.0", [str(app)], meta={"path": "app.bin"})
        await fleet.publish()
        await until(
            lambda: all(hub.node.contents.store.digests() for hub in both), "both hubs have the content", 40.0
        )
        agent = await fleet.start_agent("agent", config=AgentConfig(download_limit_bytes_s=1 << 20))

        def under_way() -> bool:
            return any(0.1 < each.progress < 0.9 for each in agent.node.contents.transfers())

        await until(under_way, "the download is under way")
        await fleet.stop(both[victim])
        assert await settled([agent], deployment, 60.0) == [State.SUCCEEDED]
        received = sum(
            size
            for flow, size in agent.node.contents.swarming.tunnels.carried.items()
            if flow.direction == "in"
        )
        assert received < 1.15 * app.stat().st_size
        survivor = both[1 - victim]

        async def heard() -> bool:
            rows = await survivor.observer.devices({})
            return any(row.installed.get("app") == "1.0" for row in rows)

        await until(heard, "the surviving hub hears of it")


async def test_a_lost_hub_is_shown_with_its_state_and_what_stands_in_the_way(tmp_path: Path) -> None:
    """An operator who asks a device for its peers sees which hub is missing, and why."""
    async with fleet_in(tmp_path) as fleet:
        one, two = await hubs(fleet, 2)
        agent = await fleet.new_agent("agent")
        await until(lambda: len(agent.node.overlay.hubs()) == 2, "linked to both hubs")
        assert {view.state for view in peers_view(agent.node)} == {"linked"}
        await fleet.stop(one)

        def missing() -> dict[str, str]:
            return {view.device: view.state for view in peers_view(agent.node) if view.state != "linked"}

        await until(lambda: missing().get(one.identity.device) in {"lost", "dialling"}, "the loss is seen")
        await until(lambda: missing().get(one.identity.device) == "backing-off", "dialling it failed", 40.0)
        (view,) = [view for view in peers_view(agent.node) if view.device == one.identity.device]
        assert view.reason == "peer-unreachable"
        assert two.identity.device not in missing()
