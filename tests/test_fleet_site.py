"""A site behind one uplink: the payload comes through it once, also when the device that fetches it dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from driftseed.agent.config import AgentConfig
from driftseed.agent.daemon import Agent
from driftseed.core.ids import DeviceId
from driftseed.core.lifecycle import State
from driftseed.core.neighbours import PathKind
from driftseed.node.transfer import ContentSettings
from support_fleet import Fleet, fleet_in, settled, until

SIZE = 4 << 20


def site(*agents: Agent) -> None:
    """Have these be on one network, and everybody else outside."""
    members = {agent.identity.device for agent in agents}

    def is_local(device: DeviceId, path: PathKind) -> bool:
        return device in members

    for agent in agents:
        agent.node.contents.swarming.site.is_local = is_local


def through_the_uplink(agents: Collection[Agent], members: Collection[DeviceId]) -> Counter[str]:
    """Bytes that came from outside, by who took them; a handshake that led to nothing is not counted."""
    total: Counter[str] = Counter()
    for agent in agents:
        for flow, size in agent.node.contents.swarming.tunnels.carried.items():
            if flow.direction == "in" and flow.device not in members:
                total[agent.identity.device] += size
    return Counter({device: size for device, size in total.items() if size > SIZE // 100})


async def make_site(fleet: Fleet, count: int, *, uplink_bytes_s: int = 1 << 20) -> list[Agent]:
    await fleet.start_hub(content=ContentSettings(upload_limit=uplink_bytes_s))
    for number in range(count):
        await fleet.join(f"agent-{number}")
    agents = [
        await fleet.start_agent(f"agent-{number}", config=AgentConfig(neighbours_max=16))
        for number in range(count)
    ]
    site(*agents)
    first = min(agent.identity.device for agent in agents)
    await until(
        lambda: all(
            bool(agent.node.overlay.hubs())
            and (agent.identity.device == first or bool(agent.node.overlay.peer(first)))
            for agent in agents
        ),
        "everybody on the site is linked with the hub and with the one that will fetch",
        40.0,
    )
    return agents


def release(fleet: Fleet, directory: Path) -> str:
    path = directory / "app.bin"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return fleet.release("app", "1.0", [str(path)], meta={"path": "app.bin"})


async def test_the_payload_comes_through_the_uplink_once(tmp_path: Path) -> None:
    """The aim is 1.15 copies for the site, 1.0 being perfect."""
    async with fleet_in(tmp_path) as fleet:
        agents = await make_site(fleet, 4)
        members = {agent.identity.device for agent in agents}
        deployment = release(fleet, tmp_path)
        await fleet.publish()
        assert await settled(agents, deployment, 60.0) == [State.SUCCEEDED] * 4
        taken = through_the_uplink(agents, members)
        assert taken.total() < 1.15 * SIZE
        assert len(taken) == 1


async def test_another_takes_over_when_the_one_that_fetches_dies(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        agents = await make_site(fleet, 3, uplink_bytes_s=512 << 10)
        members = {agent.identity.device for agent in agents}
        deployment = release(fleet, tmp_path)
        await fleet.publish()
        await until(lambda: through_the_uplink(agents, members).total() > SIZE // 8, "somebody fetches", 40.0)
        (leader,) = [agent for agent in agents if through_the_uplink([agent], members)]
        assert leader.identity.device == min(members)
        others = [agent for agent in agents if agent is not leader]
        await fleet.stop(leader)
        await until(
            lambda: through_the_uplink(others, members).total() > 0, "another fetches from outside", 10.0
        )
        assert await settled(others, deployment, 60.0) == [State.SUCCEEDED] * 2
        assert len(through_the_uplink(others, members)) == 1
