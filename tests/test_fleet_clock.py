"""Clocks that are far off, on real members: said in words, harmful to nothing, and over when they are right."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from driftseed.agent.config import ConfigStore
from driftseed.agent.control import Control
from driftseed.agent.daemon import Agent
from driftseed.agent.join import join
from driftseed.core import wire
from driftseed.core.errors import ClockWrong, DriftseedError, TicketExpired
from driftseed.core.lifecycle import State
from support_fleet import Fleet, fleet_in, settled, until
from support_fleet_peer import made_up_peer

DAY_S = 86400.0
TWENTY_YEARS_S = 20 * 365 * DAY_S


class Wall:
    """The system's clock of one device, off by as much as a test says."""

    def __init__(self, off_s: float = 0.0) -> None:
        self.off_s = off_s
        self.stands_at: float | None = None

    def __call__(self) -> float:
        return time.time() + self.off_s if self.stands_at is None else self.stands_at


async def problems(agent: Agent) -> dict[str, str]:
    """What ``driftseed agent status`` complains of: reason and words with the hint."""
    status = await Control(agent, ConfigStore(agent.home.directory)).status()
    return {each.reason: f"{each.message} ({each.hint})" for each in status.problems}


def release(fleet: Fleet, version: str) -> str:
    path = fleet.directory / f"app-{version}.bin"
    path.write_bytes(version.encode() * 10_000)
    return fleet.release("app", version, [str(path)], meta={"path": "app.bin"})


def installed(agent: Agent) -> bytes:
    return (agent.install_root / "app.bin").read_bytes()


@pytest.mark.parametrize(
    ("clock", "error", "said"),
    [(lambda: 10.0, ClockWrong, "1970"), (lambda: time.time() + TWENTY_YEARS_S, TicketExpired, "expired")],
    ids=["1970", "in twenty years"],
)
async def test_joining_with_a_wrong_clock_says_so_and_costs_nothing(
    tmp_path: Path, clock: Callable[[], float], error: type[DriftseedError], said: str
) -> None:
    """The message names the clock, the directory is no member's, and the ticket is good afterwards."""
    async with fleet_in(tmp_path) as fleet:
        await fleet.start_hub()
        ticket = fleet.ticket(uses=1)
        with pytest.raises(error, match=said) as caught:
            await join(ticket, tmp_path / "device", clock=clock)
        assert "clock" in caught.value.message + caught.value.hint
        assert not (tmp_path / "device" / "membership.json").exists()
        joined = await join(ticket, tmp_path / "device")
        assert joined.fleet == fleet.repository.fleet_id


async def test_a_clock_in_the_far_future_is_reported_and_recovered_from_without_a_restart(
    tmp_path: Path,
) -> None:
    """By its clock everything has expired: it does nothing and says why; once it is right, it goes on."""
    async with fleet_in(tmp_path) as fleet:
        await fleet.start_hub()
        agent = await fleet.new_agent("agent")
        first = release(fleet, "1.0")
        await fleet.publish()
        assert await settled([agent], first) == [State.SUCCEEDED]
        version = agent.node.keeper.ready
        await fleet.stop(agent)

        wall = Wall(TWENTY_YEARS_S)
        agent = await fleet.start_agent("agent", wall=wall)
        second = release(fleet, "2.0")
        await fleet.publish()
        await until(lambda: agent.node.ledger.refusal_counts["membership-expired"] > 0, "the hub is refused")
        (refusal, *_) = agent.node.ledger.refusals
        assert "expired at" in refusal.detail
        assert "here it is" in refusal.detail
        said = await problems(agent)
        assert "check the clock" in said["metadata-expired"]
        assert agent.node.keeper.ready == version
        assert agent.journal.update(second) is None
        assert installed(agent) == b"1.0" * 10_000

        wall.off_s = 0.0
        assert await settled([agent], second) == [State.SUCCEEDED]
        assert installed(agent) == b"2.0" * 10_000
        assert agent.node.keeper.ready > version
        assert await problems(agent) == {}

        # Nothing of the wrong time was kept: the next start is an ordinary one.
        await fleet.stop(agent)
        agent = await fleet.start_agent("agent")
        assert abs(agent.clock() - time.time()) < 60
        await until(lambda: bool(agent.node.overlay.hubs()), "linked again")


async def test_a_clock_that_jumps_ahead_while_running_installs_nothing_and_says_why(tmp_path: Path) -> None:
    """Links that stand go on standing; what is announced over them has expired by this clock."""
    async with fleet_in(tmp_path) as fleet:
        await fleet.start_hub()
        wall = Wall()
        agent = await fleet.new_agent("agent", wall=wall)
        await until(lambda: agent.node.keeper.ready > 0, "metadata is here")
        version = agent.node.keeper.ready
        wall.off_s = TWENTY_YEARS_S
        deployment = release(fleet, "1.0")
        await fleet.publish()
        await until(lambda: agent.node.ledger.refusal_counts["metadata-expired"] > 0, "refused")
        assert agent.node.overlay.hubs()
        assert "check the clock" in (await problems(agent))["metadata-expired"]
        assert agent.node.keeper.ready == version
        assert agent.journal.update(deployment) is None


async def test_a_device_whose_clock_starts_in_1970_goes_on_from_the_time_it_knows(tmp_path: Path) -> None:
    """A board without a battery updates all the same, complains, and takes no older metadata."""
    async with fleet_in(tmp_path) as fleet, made_up_peer(fleet) as peer:
        hub = await fleet.start_hub()
        agent = await fleet.new_agent("agent")
        old = hub.node.newest_notice()
        assert old is not None
        first = release(fleet, "1.0")
        await fleet.publish()
        assert await settled([agent], first) == [State.SUCCEEDED]
        await fleet.stop(agent)

        wall = Wall()
        wall.stands_at = 100.0
        agent = await fleet.start_agent("agent", wall=wall)
        await until(lambda: bool(agent.node.overlay.hubs()), "linked")
        said = await problems(agent)
        assert "set the clock" in said["clock-wrong"]
        assert "behind" in said["clock-wrong"]
        version = agent.node.keeper.ready
        link = await peer.link(agent)
        await link.control.write_frame(wire.Notice(timestamp=old))
        await until(lambda: agent.node.ledger.refusal_counts["metadata-replayed"] == 1, "replay refused")
        assert agent.node.keeper.ready == version
        second = release(fleet, "2.0")
        await fleet.publish()
        assert await settled([agent], second) == [State.SUCCEEDED]
        assert installed(agent) == b"2.0" * 10_000
        wall.stands_at = None
        assert await problems(agent) == {}


async def test_a_clock_that_is_hours_off_is_a_problem_and_reaches_the_hub(tmp_path: Path) -> None:
    """Not enough to break anything: measured against the hub's, shown, and reported."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        agent = await fleet.new_agent("agent", wall=Wall(DAY_S))
        await until(lambda: agent.node.clock_skew_s is not None, "compared with the hub's clock")
        assert "ahead of a hub's" in (await problems(agent))["clock-wrong"]

        async def known() -> bool:
            rows = await hub.observer.devices({})
            return any(row.clock_skew_s is not None and abs(row.clock_skew_s - DAY_S) < 60 for row in rows)

        await until(known, "the hub knows")
