"""Starting and joining with what does not fit: each its own exit code, a hint, and nothing changed."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import msgspec

from driftseed.core import limits
from driftseed.core.tickets import decode_ticket, encode_ticket
from driftseed.store.files import write_secret
from driftseed.trust.hubkit import export_hub_kit
from driftseed.trust.repository import FleetRepository
from support_fleet import Fleet, fleet_in
from support_fleet_process import agent_process, run_driftseed

LOCAL = ("--listen", "127.0.0.1:0")


def other_fleet(directory: Path) -> FleetRepository:
    return FleetRepository.create(
        directory, name="other", root_keys=1, threshold=1, passphrase=None, clock=time.time
    )


async def test_an_agent_that_never_joined_is_told_how_to(tmp_path: Path) -> None:
    status, said = await run_driftseed("agent", "run", "--data", str(tmp_path / "new"), *LOCAL)
    assert status == 19
    assert "belongs to no fleet yet" in said
    assert "driftseed agent join" in said
    assert "Traceback" not in said


async def test_a_second_agent_on_the_same_directory_or_port_does_not_start(short_path: Path) -> None:
    """The first one is not disturbed; a clean end lets the next one start."""
    async with fleet_in(short_path) as fleet:
        await fleet.start_hub()
        home = await fleet.join("agent")
        other = await fleet.join("other")
        async with agent_process(home.directory) as agent:
            await agent.start()
            await agent.ready()
            status, said = await run_driftseed("agent", "run", "--data", str(home.directory), *LOCAL)
            assert (status, "Traceback" in said) == (79, False)
            assert str(home.directory) in said
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
                taken.bind(("127.0.0.1", 0))
                listen = f"127.0.0.1:{taken.getsockname()[1]}"
                status, said = await run_driftseed(
                    "agent", "run", "--data", str(other.directory), "--listen", listen
                )
            assert (status, "Traceback" in said) == (71, False)
            assert listen in said
            assert "--listen" in said
            await agent.ready()
            began = time.monotonic()
            assert await agent.terminate() == 0
            assert time.monotonic() - began < limits.SHUTDOWN_S + 1.0
            await agent.start()
            await agent.ready()


async def test_tickets_that_do_not_let_one_in_say_why(short_path: Path) -> None:
    """Used up, expired, damaged, of another fleet: the directory is nobody's afterwards."""
    async with fleet_in(short_path) as fleet:
        await fleet.start_hub()
        once = fleet.ticket(uses=1)
        data = short_path / "device"
        join = ("agent", "join", "--data")
        assert (await run_driftseed(*join, str(short_path / "first"), once))[0] == 0
        cases = {
            "used up": (once, 20, "ticket"),
            "expired": (fleet.ticket(lifetime_s=-60), 14, "expired"),
            "damaged": (once[:-3], 13, "ticket"),
            "of another fleet": (foreign_ticket(fleet, short_path / "foreign"), 20, "fleet"),
        }
        for name, (ticket, code, word) in cases.items():
            status, said = await run_driftseed(*join, str(data), ticket)
            assert (name, status) == (name, code), said
            assert word in said, name
            assert "Traceback" not in said, name
            assert not (data / "membership.json").exists(), name
        assert (await run_driftseed(*join, str(data), fleet.ticket()))[0] == 0


def foreign_ticket(fleet: Fleet, directory: Path) -> str:
    """A ticket of another fleet that leads to a hub of this one."""
    foreign = Fleet(directory.parent, other_fleet(directory))
    ticket = decode_ticket(foreign.ticket(), time.time())
    ours = decode_ticket(fleet.ticket(), time.time())
    return encode_ticket(msgspec.structs.replace(ticket, hubs=ours.hubs))


async def test_a_data_directory_of_another_fleet_is_not_used(short_path: Path) -> None:
    """Neither for an agent nor for a hub; what is in it stays as it is."""
    async with fleet_in(short_path) as fleet:
        await fleet.start_hub()
        home = await fleet.join("agent")
        before = (home.directory / "membership.json").read_bytes()
        ticket = foreign_ticket(fleet, short_path / "foreign")
        status, said = await run_driftseed("agent", "join", "--data", str(home.directory), ticket)
        assert status == 18
        assert "belongs to fleet 'test'" in said
        assert "another data directory" in said
        status, said = await run_driftseed("agent", "join", "--data", str(home.directory), fleet.ticket())
        assert status == 17
        kit = short_path / "kit"
        write_secret(kit, export_hub_kit(other_fleet(short_path / "foreign-2")))
        status, said = await run_driftseed(
            "hub", "run", "--kit", str(kit), "--data", str(home.directory), *LOCAL
        )
        assert status == 18
        assert "Traceback" not in said
        assert (home.directory / "membership.json").read_bytes() == before
