"""Installs that go wrong on a whole fleet: nothing stays half-done, and everybody can see why."""

from __future__ import annotations

from pathlib import Path

import pytest

from driftseed.agent.config import AgentConfig, ConfigStore
from driftseed.agent.control import Control
from driftseed.agent.daemon import Agent
from driftseed.core.lifecycle import State
from driftseed.core.model import HealthCheck
from driftseed.hub.daemon import Hub
from driftseed.hub.views import DeviceView
from support_fleet import Fleet, fleet_in, settled, state_of, until
from support_fleet_process import alive

PAYLOADS = {version: f"good {version}\n".encode() * 5000 for version in ("1.0", "3.0")} | {
    "2.0": b"bad\n" * 5000
}
HEALTH = HealthCheck(command=["grep", "-q", "good", "app.bin"], timeout_s=10)


def release(fleet: Fleet, version: str) -> str:
    """Release and deploy one of ``PAYLOADS``; returns the deployment's id."""
    path = fleet.directory / f"app-{version}.bin"
    path.write_bytes(PAYLOADS[version])
    return fleet.release("app", version, [str(path)], meta={"path": "app.bin"}, health=HEALTH)


def on_disk(agent: Agent) -> dict[str, bytes]:
    """Every file under the install root."""
    root = agent.install_root
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def device_at(hub: Hub, agent: Agent) -> DeviceView | None:
    """What the hub says of an agent."""
    rows = await hub.observer.devices({})
    return next((row for row in rows if row.device == agent.identity.device), None)


async def test_a_failing_health_check_rolls_every_agent_back_byte_for_byte(tmp_path: Path) -> None:
    """Back to the version before, not tried again, not even after a restart; a newer deployment is."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        agents = await fleet.new_agents("one", "two")
        first = release(fleet, "1.0")
        await fleet.publish()
        assert await settled(agents, first) == [State.SUCCEEDED] * 2
        before = [on_disk(agent) for agent in agents]

        bad = release(fleet, "2.0")
        await fleet.publish()
        assert await settled(agents, bad) == [State.ROLLED_BACK] * 2
        assert [on_disk(agent) for agent in agents] == before
        assert before[0]["app.bin"] == PAYLOADS["1.0"]
        for agent in agents:
            row = agent.journal.update(bad)
            assert row is not None
            assert (row.reason, row.attempts) == ("health-check-failed", 1)
            assert agent.journal.installed()["app"].version == "1.0"
            await until(lambda: bad in agent.updates.held_back, "held back")  # noqa: B023 - awaited in the loop
            assert agent.updates.held_back[bad].reason == "attempts-exhausted"

        async def reported() -> bool:
            row = await device_at(hub, agents[0])
            return row is not None and row.failed is not None and row.failed.reason == "health-check-failed"

        await until(reported, "the hub knows why")

        await fleet.stop(agents[0])
        again = await fleet.start_agent("one")
        await until(lambda: bad in again.updates.held_back, "held back after a restart")
        row = again.journal.update(bad)
        assert row is not None
        assert row.attempts == 1

        good = release(fleet, "3.0")
        await fleet.publish()
        agents = [again, agents[1]]
        assert await settled(agents, good) == [State.SUCCEEDED] * 2
        assert [on_disk(agent)["app.bin"] for agent in agents] == [PAYLOADS["3.0"]] * 2


HANGS = """#!/bin/sh
case "$1" in
{state})
    sleep 1000 &
    echo $! >> {pids}
    setsid sleep 1000 &
    echo $! >> {pids}
    setsid sh -c 'sleep 1000 & echo $! >> {pids}' &
    echo $$ >> {pids}
    sleep 1000
    ;;
SupportsRollback) echo Yes ;;
ArtifactRollback) echo rolled >> {pids}.rollback ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "end", "rollbacks"),
    [("Download", State.FAILED, 0), ("ArtifactInstall", State.ROLLED_BACK, 1)],
)
async def test_a_module_that_hangs_is_killed_with_all_that_it_started(
    tmp_path: Path, state: str, end: State, rollbacks: int
) -> None:
    """Children, and those in sessions of their own, go with it; the reason is the timeout."""
    modules = tmp_path / "modules"
    modules.mkdir(mode=0o755)
    pids = tmp_path / "pids"
    module = modules / "hangs"
    module.write_text(HANGS.format(state=state, pids=pids))
    module.chmod(0o755)
    async with fleet_in(tmp_path) as fleet:
        await fleet.start_hub()
        agent = await fleet.new_agent("agent", config=AgentConfig(modules_dirs=[str(modules)]))
        payload = tmp_path / "payload"
        payload.write_bytes(b"x" * 1000)
        deployment = fleet.release("app", "1.0", [str(payload)], module="hangs", module_timeout_s=1.5)
        await fleet.publish()
        assert await settled([agent], deployment) == [end]
        row = agent.journal.update(deployment)
        assert row is not None
        assert row.reason == "module-timeout"
        assert state in row.detail
        started = [int(line) for line in pids.read_text().split()]
        assert len(started) == 4
        assert [pid for pid in started if alive(pid)] == []
        rolled = pids.with_suffix(".rollback")
        assert (rolled.read_text().count("rolled") if rolled.exists() else 0) == rollbacks
        assert agent.journal.installed() == {}
        assert list(agent.run_dir.glob(f"*{deployment}*")) == []


async def test_a_device_that_no_variant_fits_says_so_everywhere(tmp_path: Path) -> None:
    """Refused, not failed: in its updates, its problems, its report, and at the hub. Others install."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        fits = await fleet.new_agent("fits", inventory={"arch": "arm64"})
        stranger = await fleet.new_agent("stranger", inventory={"arch": "riscv64"})
        payload = tmp_path / "app.bin"
        payload.write_bytes(b"arm" * 1000)
        deployment = fleet.release("app", "1.0", [f"{payload}:arch=arm64"], meta={"path": "app.bin"})
        await fleet.publish()
        assert await settled([fits], deployment) == [State.SUCCEEDED]
        await refused_everywhere(hub, stranger, deployment, "no-variant", "arch=riscv64")


async def test_a_device_that_two_variants_fit_equally_says_so_everywhere(tmp_path: Path) -> None:
    """It does not choose by chance."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        agent = await fleet.new_agent("agent", inventory={"arch": "arm64", "board": "rpi4"})
        for name in ("one", "two"):
            (tmp_path / name).write_bytes(name.encode() * 1000)
        deployment = fleet.release(
            "app",
            "1.0",
            [f"{tmp_path}/one:arch=arm64", f"{tmp_path}/two:board=rpi4"],
            meta={"path": "app.bin"},
        )
        await fleet.publish()
        await refused_everywhere(
            hub, agent, deployment, "ambiguous-variant", "one (arch=arm64) and two (board=rpi4)"
        )


async def refused_everywhere(hub: Hub, agent: Agent, deployment: str, reason: str, said: str) -> None:
    """The API, the report, and the hub's list of devices name the reason; nothing is on the disk."""
    await until(lambda: deployment in agent.updates.held_back, "refused")
    control = Control(agent, ConfigStore(agent.home.directory))
    (update,) = await control.updates()
    assert (update.state, update.reason) == ("refused", reason)
    assert said in update.detail
    (problem,) = [each for each in (await control.status()).problems if each.reason == reason]
    assert said in problem.message

    async def known() -> bool:
        row = await device_at(hub, agent)
        return row is not None and row.failed is not None

    await until(known, "the hub knows")
    row = await device_at(hub, agent)
    assert row is not None
    assert row.failed is not None
    assert (row.failed.state, row.failed.reason) == ("refused", reason)
    assert row.stuck is not None
    assert row.stuck.why == "refused"
    assert state_of(agent, deployment) is None
    assert on_disk(agent) == {}
    assert agent.node.contents.store.digests() == []
