"""Limits that one member meets in another: each at its bound, and one past it, over real connections."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from driftseed.core import limits, wire
from driftseed.core.reports import Report, encode_report
from driftseed.net.identity import Identity
from driftseed.net.stream import Stream
from driftseed.node import requests
from driftseed.trust.membership import Membership, issue_certificate
from driftseed.trust.report import sign_report, verify_report
from support_fleet import Fleet, fleet_in, until
from support_fleet_peer import MadeUpPeer, closed, made_up_peer


def reports(fleet: Fleet, count: int) -> list[bytes]:
    """Reports of as many devices, each signed by a member's own key."""
    key = fleet.repository.enrolment_key()
    made = []
    for _ in range(count):
        identity = Identity.generate()
        now = time.time()
        certificate = issue_certificate(
            key,
            fleet=fleet.repository.fleet_id,
            device=identity.device,
            role="agent",
            labels={},
            now=now - 60,
            lifetime=3600.0,
        )
        body = Report(
            device=identity.device, sequence=1, time=now, agent_version="0", inventory={}, updates=[]
        )
        made.append(
            sign_report(identity.secret, certificate=certificate, sequence=1, body=encode_report(body))
        )
    return made


async def test_a_hub_gives_as_many_reports_in_one_answer_and_the_rest_in_the_next(tmp_path: Path) -> None:
    """One more than fit is there: the first answer is full, and says where the second begins."""
    async with fleet_in(tmp_path) as fleet, made_up_peer(fleet, role="hub") as other:
        hub = await fleet.start_hub()
        public = fleet.repository.enrolment_key().public_key().public_bytes_raw().hex()
        membership = Membership(fleet.repository.fleet_id, {public}, time.time)
        signed = reports(fleet, limits.REPORTS_PER_REQUEST_MAX + 1)
        await hub.observer.add_from_hub([verify_report(each, membership) for each in signed])
        link = await other.link(hub)

        async def ask(epoch: str, since: int) -> tuple[list[bytes], wire.ReportsLogged]:
            given = []
            request = wire.GetReports(epoch=epoch, since=since)
            async with requests.request(link.connection, request) as stream:
                while isinstance(frame := await stream.read_frame(), wire.ReportCarried):
                    given.append(frame.envelope)
                assert isinstance(frame, wire.ReportsLogged)
                return given, frame

        first, end = await ask("", 0)
        assert len(first) == limits.REPORTS_PER_REQUEST_MAX
        second, _ = await ask(end.epoch, end.last)
        assert len(second) == 1
        assert sorted(first + second) == sorted(signed)


@pytest.mark.parametrize("past", [0, 1])
async def test_a_hub_takes_as_many_reports_in_one_answer_and_no_more(tmp_path: Path, past: int) -> None:
    """A hub that answers without end, by a member's real key: its link ends, and nothing of it is stored."""
    async with fleet_in(tmp_path) as fleet, made_up_peer(fleet, role="hub") as liar:
        hub = await fleet.start_hub()
        (envelope,) = reports(fleet, 1)
        count = limits.REPORTS_PER_REQUEST_MAX + past

        async def answer(message: wire.Message, stream: Stream) -> None:
            if not isinstance(message, wire.GetReports):
                await stream.reset(1)
                return
            done = message.since > 0
            frame = wire.ReportCarried(envelope=envelope)
            await stream.write_raw(wire.encode(frame) * (0 if done else count))
            await stream.write_frame(wire.ReportsLogged(epoch="e", last=count))
            await stream.finish()

        link = await liar.link(hub)
        liar.serve(link, answer)
        await link.control.write_frame(wire.ReportsLogged(epoch="e", last=count))
        if past:
            assert "answer-unexpected" in await closed(link.connection)
            assert hub.node.ledger.drops["answer-unexpected"] == 1
            assert await hub.observer.sequences() == {}
            return

        async def stored() -> bool:
            return len(await hub.observer.sequences()) == 1

        await until(stored, "the report is stored")
        assert hub.node.ledger.drops.total() == 0
        assert not link.connection.closed


@contextlib.asynccontextmanager
async def neighbours(fleet: Fleet, count: int) -> AsyncIterator[list[MadeUpPeer]]:
    """Members of the fleet."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(made_up_peer(fleet)) for _ in range(count)]


@pytest.mark.parametrize("past", [0, 1])
async def test_relays_that_neighbours_offer(tmp_path: Path, past: int) -> None:
    """A device without its hub listens on so many of them, however many members say that they have one."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        await fleet.join("agent")
        await fleet.stop(hub)
        agent = await fleet.start_agent("agent")
        async with neighbours(fleet, limits.RELAYS_OFFERED_MAX + past) as members:
            urls = [f"http://127.0.0.1:{port}" for port in range(9, 9 + len(members))]
            for member, url in zip(members, reversed(urls), strict=True):
                link = await member.link(agent)
                await link.control.write_frame(wire.State(offers_relay=url))

            def offered() -> int:
                return sum(1 for peer in agent.node.overlay.peers() if peer.state.offers_relay)

            await until(lambda: offered() == len(members), "every offer was heard")
            expected = set(sorted(urls)[: limits.RELAYS_OFFERED_MAX])
            await until(lambda: agent.node.endpoint.relays == expected, "listens on its relays")
