"""The way of an update, from publish to report, with every part real and in one process."""

from __future__ import annotations

from pathlib import Path

from driftseed.core.lifecycle import State
from support_fleet import fleet_in, settled, until


async def test_a_release_reaches_every_agent_and_the_hub_hears_of_it(tmp_path: Path) -> None:
    """Published through the hub, installed by all, byte for byte, and reported."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        agents = [await fleet.new_agent(f"agent-{number}") for number in range(3)]
        payload = tmp_path / "app.bin"
        payload.write_bytes(bytes(range(256)) * 4096)
        deployment = fleet.release("app", "1.0", [str(payload)], meta={"path": "app.bin"})
        result = await fleet.publish()
        assert result.content_bytes == payload.stat().st_size
        assert await settled(agents, deployment) == [State.SUCCEEDED] * 3
        for agent in agents:
            installed = list(agent.install_root.rglob("app.bin"))
            assert [path.read_bytes() == payload.read_bytes() for path in installed] == [True]
        rows = []

        async def heard() -> bool:
            nonlocal rows
            rows = await hub.observer.devices({})
            return sum(row.installed.get("app") == "1.0" for row in rows) == 3

        for _ in range(200):
            if await heard():
                break
            await until(lambda: True, "")
        assert len(rows) == 3
