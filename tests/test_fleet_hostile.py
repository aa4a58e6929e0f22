"""Hostile members and strangers against a running fleet: each is counted and cut off, the others go on."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from driftseed.agent.daemon import Agent
from driftseed.core import limits, wire
from driftseed.core.errors import LinkClosed, MembershipExpired, NotAMember, PeerUnreachable, WrongFleet
from driftseed.core.ids import DeviceId
from driftseed.core.lifecycle import State
from driftseed.core.model import NodeAddress
from driftseed.hub.daemon import Hub
from driftseed.net.identity import Identity
from driftseed.net.stream import Stream
from driftseed.node.node import Node
from driftseed.node.peer import OUTBOX_MAX
from driftseed.trust.report import sign_report
from driftseed.trust.repository import FleetRepository
from support_fleet import Fleet, fleet_in, settled, until
from support_fleet_peer import OVERSIZED, closed, frame, made_up_peer

NOBODY = "ab" * 32
"""A SHA-256 that no content of the fleet has."""


@contextlib.asynccontextmanager
async def small_fleet(directory: Path) -> AsyncIterator[tuple[Fleet, Hub, Agent]]:
    """A hub and one agent that is linked to it."""
    async with fleet_in(directory) as fleet:
        hub = await fleet.start_hub()
        (agent,) = await fleet.new_agents("agent")
        yield fleet, hub, agent


async def still_updates(fleet: Fleet, agents: list[Agent], version: str = "1.0") -> None:
    """An update goes all the way, byte for byte: whatever happened before did no harm."""
    payload = fleet.directory / f"app-{version}.bin"
    payload.write_bytes(version.encode() * 20_000)
    deployment = fleet.release("app", version, [str(payload)], meta={"path": "app.bin"})
    await fleet.publish()
    assert await settled(agents, deployment) == [State.SUCCEEDED] * len(agents)
    for agent in agents:
        assert (agent.install_root / "app.bin").read_bytes() == payload.read_bytes()
        assert not agent.node.failed.done()


def _members(*members: Agent | Hub) -> tuple[Agent | Hub, ...]:
    return members


def _counted(counts: Counter[str], reason: str, before: int) -> bool:
    return counts[reason] == before + 1


def _unlinked(node: Node, device: DeviceId) -> bool:
    return node.overlay.peer(device) is None


MALFORMED = {
    "frame-too-large": OVERSIZED,
    "frame-empty": wire.HEADER.pack(0, 0x10),
    "frame-malformed": frame(0x10, b"\xc1\xff no MessagePack at all"),
}
WRONG_VALUES = {
    "a version below nothing": frame(0x10, msgspec.msgpack.encode({"timestamp_version": -1})),
    "a list without end": frame(
        0x10, msgspec.msgpack.encode({"has": [NOBODY] * (limits.CONTENT_IDS_MAX + 1)})
    ),
    "a notice one byte too long": frame(
        0x11, msgspec.msgpack.encode({"timestamp": bytes(limits.TIMESTAMP_BYTES_MAX + 1)})
    ),
    "a directory one entry too long": frame(
        0x13,
        msgspec.msgpack.encode(
            {"entries": [{"address": {"device": NOBODY}}] * (limits.DIRECTORY_ENTRIES_MAX + 1)}
        ),
    ),
    "a relay that others would choke on": frame(0x10, msgspec.msgpack.encode({"relay": "no URL"})),
    "nesting without end": frame(0x10, b"\x81\xa3has" + b"\x91" * 60_000),
}


async def test_frames_that_are_none_end_their_link_and_are_counted_by_kind(tmp_path: Path) -> None:
    """Garbage, one byte past the bound, wrong values: each ends the sender's link, for its own reason."""
    async with small_fleet(tmp_path) as (fleet, hub, agent), made_up_peer(fleet) as peer:
        cases = [*MALFORMED.items(), *(("frame-malformed", each) for each in WRONG_VALUES.values())]
        for (kind, data), member in itertools.product(cases, _members(agent, hub)):
            node, before = member.node, member.node.ledger.drops[kind]
            link = await peer.link(member)
            await link.control.write_raw(data)
            assert kind in await closed(link.connection)
            await until(partial(_counted, node.ledger.drops, kind, before), f"counted: {kind}")
            await until(partial(_unlinked, node, peer.identity.device), "the link is gone")
        assert agent.node.overlay.hubs()
        await still_updates(fleet, [agent])


async def test_a_frame_of_exactly_the_bound_is_read_and_unknown_types_are_skipped(tmp_path: Path) -> None:
    """Newer nodes may say more: unknown frames are counted, and what follows them is understood."""
    async with small_fleet(tmp_path) as (fleet, _hub, agent), made_up_peer(fleet) as peer:
        link = await peer.link(agent)
        await link.control.write_raw(frame(0x7F, bytes(limits.FRAME_BYTES_MAX - 1)))
        await link.control.write_raw(frame(0xFE, b""))
        await link.control.write_frame(wire.State(has=[NOBODY]))
        await until(lambda: agent.node.ledger.drops["frame-unknown"] == 2, "both counted")
        said = agent.node.overlay.peer(peer.identity.device)
        assert said is not None
        await until(lambda: said.state.has == [NOBODY], "understood")
        assert not link.connection.closed


async def test_a_flood_of_frames_ends_the_link(tmp_path: Path) -> None:
    """More frames than the burst allows: the link goes, the hub's link and the update do not."""
    async with small_fleet(tmp_path) as (fleet, _hub, agent), made_up_peer(fleet) as peer:
        link = await peer.link(agent)
        data = wire.encode(wire.Observed(addr="192.0.2.1:1")) * (2 * limits.FRAMES_BURST_MAX)
        with contextlib.suppress(LinkClosed):
            await link.control.write_raw(data)
        assert "frames-flood" in await closed(link.connection)
        await until(lambda: agent.node.ledger.drops["frames-flood"] == 1, "counted")
        await still_updates(fleet, [agent])


async def test_who_does_not_read_loses_its_link_and_holds_no_memory(tmp_path: Path) -> None:
    """Frames for a peer that takes none of them are bounded: one too many ends its link."""
    async with small_fleet(tmp_path) as (fleet, _hub, agent), made_up_peer(fleet) as peer:
        link = await peer.link(agent)
        await until(lambda: agent.node.overlay.peer(peer.identity.device) is not None, "linked")
        said = agent.node.overlay.peer(peer.identity.device)
        assert said is not None
        for _ in range(OUTBOX_MAX + 1):
            said.send(wire.Directory(entries=[]))
        await closed(link.connection)
        assert agent.node.ledger.drops["outbox-full"] >= 1
        assert agent.node.overlay.hubs()


async def test_who_never_says_hello_or_stalls_in_the_middle_of_a_frame_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-open connections and half frames end in their time; others are not held up by them."""
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 1.0)
    async with small_fleet(tmp_path) as (fleet, _hub, agent), contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(made_up_peer(fleet)) for _ in range(4)]
        silent = await peers[0].connect(agent)
        half_hello = await peers[1].connect(agent)
        stream = await half_hello.open_stream()
        await stream.write_raw(wire.HEADER.pack(100, 0x01) + b"half")
        half_frame = await peers[2].link(agent)
        await half_frame.control.write_raw(wire.HEADER.pack(1000, 0x10) + b"half")
        half_request = await peers[3].link(agent)
        asking = await half_request.connection.open_stream()
        await asking.write_raw(wire.HEADER.pack(1000, 0x21) + b"half")
        for connection in (silent, half_hello, half_frame.connection):
            await closed(connection)
        with pytest.raises(LinkClosed):
            await asking.read_raw(1, 10.0)
        await until(lambda: agent.node.ledger.drops["peer-stalled"] == 4, "all four counted")
        assert agent.node.ledger.drops.total() == 4
        await still_updates(fleet, [agent])


async def test_more_requests_than_streams_are_allowed_wait_and_others_are_served(tmp_path: Path) -> None:
    """Slow-loris: a peer that opens all streams and asks nothing on them keeps nobody else from files."""
    async with (
        small_fleet(tmp_path) as (fleet, hub, agent),
        made_up_peer(fleet) as slow,
        made_up_peer(fleet) as other,
    ):
        link = await slow.link(hub)
        streams = []
        for _ in range(limits.STREAMS_PER_LINK_MAX):
            stream = await link.connection.open_stream()
            await stream.write_raw(b"\0")
            streams.append(stream)
        honest = await other.link(hub)
        stream = await honest.connection.open_stream()
        await stream.write_frame(wire.GetFile(name="metadata/timestamp.json"))
        head = await stream.read_frame()
        assert isinstance(head, wire.FileHead)
        assert head.length > 0
        await still_updates(fleet, [agent])


OUTSIDE = [
    "../../etc/passwd",
    "metadata/../membership.json",
    "metadata/../../identity.key",
    "/etc/passwd",
    "metadata/timestamp.json\x00.png",
    "targets/releases/../../agent.sqlite",
    "metadata/%2e%2e/identity.key",
    "membership.json",
    "identity.key",
    "x" * 512,
]


async def test_files_outside_of_the_repository_are_not_given(tmp_path: Path) -> None:
    """Names that lead out, or to secrets, are answered with: not here."""
    async with small_fleet(tmp_path) as (fleet, hub, agent), made_up_peer(fleet) as peer:
        await until(lambda: agent.node.keeper.ready > 0, "metadata is here")
        for member in (agent, hub):
            link = await peer.link(member)
            for name in OUTSIDE:
                stream = await link.connection.open_stream()
                await stream.write_frame(wire.GetFile(name=name))
                await stream.finish()
                assert await stream.read_frame() == wire.FileHead(length=-1), name
                assert await stream.read_raw(1) == b""
            assert not link.connection.closed


async def test_a_liar_delays_an_update_and_cannot_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It claims the newest versions and all content, sends too much, refuses tunnels: others are asked."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 2.0)

    async def lie(message: wire.Message, stream: Stream) -> None:
        match message:
            case wire.GetFile():
                await stream.write_frame(wire.FileHead(length=limits.TORRENT_BYTES_MAX))
                await stream.write_raw(bytes(1_000_000))
            case wire.TunnelOpen():
                await stream.write_frame(wire.TunnelAccept(accepted=False))
            case wire.FindContent():
                entries = [
                    wire.DirectoryEntry(
                        address=NodeAddress(
                            device=Identity.generate().device, addrs=["not an address", "127.0.0.1:9"]
                        )
                    )
                    for _ in range(32)
                ]
                await stream.write_frame(wire.Directory(entries=entries))
                await stream.finish()
            case _:
                await stream.reset(1)

    async with small_fleet(tmp_path) as (fleet, _hub, agent), made_up_peer(fleet) as peer:
        peer.listen(lie, wire.ALPN_TUNNEL)
        payload = tmp_path / "app.bin"
        payload.write_bytes(bytes(range(256)) * 3000)
        deployment = fleet.release("app", "1.0", [str(payload)], meta={"path": "app.bin"})
        sha256 = fleet.repository.releases()[0].manifest.artifacts[0].sha256
        link = await peer.link(agent)
        peer.serve(link, lie)
        await link.control.write_frame(
            wire.State(
                timestamp_version=2**63 - 1,
                snapshot_version=2**63 - 1,
                ready=2**63 - 1,
                has=[sha256],
                addrs=[f"127.0.0.1:{peer.endpoint.port}"],
            )
        )
        await until(lambda: agent.node.ledger.drops["file-too-large"] > 0, "the lie about a file is counted")
        known = agent.node.keeper.known
        assert known < 100, "a claimed version is not believed"
        await fleet.publish()
        assert await settled([agent], deployment) == [State.SUCCEEDED]
        assert (agent.install_root / "app.bin").read_bytes() == payload.read_bytes()
        assert any(isinstance(each, wire.FindContent) for each in peer.asked)


async def test_a_directory_of_garbage_is_bounded_and_costs_only_dials(tmp_path: Path) -> None:
    """Made-up devices and unusable addresses fill no more than the book, and push out nobody whom we met."""
    async with small_fleet(tmp_path) as (fleet, hub, agent), made_up_peer(fleet) as peer:
        link = await peer.link(agent)
        await link.control.write_frame(wire.State())
        addrs = ["", "localhost:80", "0.0.0.0:1", "255.255.255.255:1", "[::]:0", "1.2.3.4:99999", "\x00" * 64]
        for start in range(0, limits.DIRECTORY_KEPT_MAX + 256, limits.DIRECTORY_ENTRIES_MAX):
            entries = [
                wire.DirectoryEntry(
                    address=NodeAddress(device=f"{start + number:064x}", addrs=addrs), role="hub", age_ms=0
                )
                for number in range(limits.DIRECTORY_ENTRIES_MAX)
            ]
            await link.control.write_frame(wire.Directory(entries=entries))
        await until(lambda: len(agent.node.book) == limits.DIRECTORY_KEPT_MAX, "the book is full")
        assert agent.node.book.contact(hub.identity.device) is not None
        assert not link.connection.closed
        await still_updates(fleet, [agent])


async def test_forged_and_replayed_notices_are_refused_by_reason_and_not_passed_on(tmp_path: Path) -> None:
    """A notice whose signature is not the role's; one from before: the metadata stays what it was."""
    async with small_fleet(tmp_path) as (fleet, hub, agent), made_up_peer(fleet) as peer:
        await until(lambda: agent.node.keeper.ready > 0, "metadata is here")
        old = agent.node.newest_notice()
        assert old is not None
        await still_updates(fleet, [agent])
        ready = agent.node.keeper.ready
        newest = agent.node.newest_notice()
        assert newest is not None
        document = msgspec.json.decode(newest)
        document["signed"]["version"] = 999
        forged = msgspec.json.encode(document)

        link = await peer.link(agent)
        await link.control.write_frame(wire.Notice(timestamp=forged))
        await until(lambda: agent.node.ledger.refusal_counts["metadata-unsigned"] >= 1, "forged: refused")
        await link.control.write_frame(wire.Notice(timestamp=old))
        await until(lambda: agent.node.ledger.refusal_counts["metadata-replayed"] == 1, "replayed: refused")
        await link.control.write_frame(wire.Notice(timestamp=b"{}"))
        await until(lambda: len(agent.node.ledger.refusals) >= 3, "empty: refused")
        refusal = next(each for each in agent.node.ledger.refusals if each.reason == "metadata-replayed")
        assert refusal.peer == peer.identity.device
        assert str(ready) in refusal.detail
        assert agent.node.keeper.ready == agent.node.keeper.known == ready
        assert (tmp_path / "agent" / "trust").exists()
        assert agent.node.newest_notice() == newest
        assert hub.node.ledger.refusal_counts.total() == 0, "nothing of it was passed on"


async def test_who_goes_on_with_invalid_notices_loses_its_link(tmp_path: Path) -> None:
    """Each costs a verification: after a few the sender is cut off."""
    async with small_fleet(tmp_path) as (fleet, _hub, agent), made_up_peer(fleet) as peer:
        link = await peer.link(agent)
        with contextlib.suppress(LinkClosed):
            for number in range(50):
                await link.control.write_frame(wire.Notice(timestamp=b"%d" % number))
        assert "do not verify" in await closed(link.connection)
        await still_updates(fleet, [agent])


async def test_reports_forged_or_of_others_are_refused_and_nothing_of_them_is_stored(tmp_path: Path) -> None:
    """A report counts only when a member's own key signed it, in its own name."""
    async with small_fleet(tmp_path) as (fleet, hub, agent), made_up_peer(fleet) as peer:
        victim = agent.identity.device
        before = await hub.observer.sequences()
        link = await peer.link(hub)

        async def refused(envelope: bytes, reason: str) -> None:
            count = hub.node.ledger.refusal_counts[reason]
            await link.control.write_frame(wire.ReportCarried(envelope=envelope))
            await until(lambda: hub.node.ledger.refusal_counts[reason] == count + 1, f"refused: {reason}")

        await refused(b"garbage", "report-invalid")
        # Signed by the attacker, with the victim's certificate.
        mixed = sign_report(
            peer.identity.secret, certificate=agent.record.certificate, sequence=2**40, body=b""
        )
        await refused(mixed, "not-a-member")
        # Its own certificate, but the body speaks for the victim.
        report = msgspec.structs.replace(agent.describe(2**40), device=victim)
        stolen = sign_report(
            peer.identity.secret,
            certificate=peer.certificate,
            sequence=2**40,
            body=msgspec.msgpack.encode(report),
        )
        await refused(stolen, "report-invalid")
        after = await hub.observer.sequences()
        assert after.get(victim, 0) < 2**40
        assert peer.identity.device not in after
        assert not link.connection.closed
        assert set(before) <= set(after)


async def test_an_agent_carries_a_bounded_number_of_reports(tmp_path: Path) -> None:
    """A word of being stored counts only from a hub; a flood of reports is a flood of frames."""
    async with small_fleet(tmp_path) as (fleet, _hub, agent), made_up_peer(fleet) as peer:
        link = await peer.link(agent)
        await link.control.write_frame(wire.ReportStored(device=agent.identity.device, sequence=2**60))
        await until(lambda: agent.node.ledger.drops["frame-out-of-place"] == 1, "only hubs store reports")
        envelope = sign_report(peer.identity.secret, certificate=peer.certificate, sequence=1, body=b"x")
        data = wire.encode(wire.ReportCarried(envelope=envelope)) * (limits.FRAMES_BURST_MAX + 100)
        with contextlib.suppress(LinkClosed):
            await link.control.write_raw(data)
        assert "frames-flood" in await closed(link.connection)


async def test_strangers_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    """No certificate, another's, a foreign fleet's, an expired one: refused, each for its reason, and counted."""
    async with small_fleet(tmp_path / "ours") as (fleet, hub, agent), contextlib.AsyncExitStack() as stack:
        other = FleetRepository.create(
            tmp_path / "other", name="other", root_keys=1, threshold=1, passphrase=None, clock=time.time
        )
        stranger = await stack.enter_async_context(made_up_peer(fleet))
        stranger.certificate = b""
        thief = await stack.enter_async_context(made_up_peer(fleet))
        thief.certificate = agent.record.certificate
        foreign = await stack.enter_async_context(made_up_peer(fleet, of=other))
        disguised = await stack.enter_async_context(made_up_peer(fleet, of=other))
        disguised.fleet = agent.membership.fleet
        disguised.membership = stranger.membership
        late = await stack.enter_async_context(
            made_up_peer(fleet, issued=time.time() - 7200, lifetime_s=3600)
        )
        expected = [
            (stranger, NotAMember, "not-a-member"),
            (thief, NotAMember, "not-a-member"),
            (foreign, WrongFleet, "wrong-fleet"),
            (disguised, NotAMember, "not-a-member"),
            (late, MembershipExpired, "membership-expired"),
        ]
        for (peer, error, reason), member in itertools.product(expected, _members(agent, hub)):
            ledger = member.node.ledger
            counts = ledger.drops if error is WrongFleet else ledger.refusal_counts
            before = counts[reason]
            with pytest.raises(error, match="refuses us"):
                await peer.link(member)
            await until(partial(_counted, counts, reason, before), f"counted: {reason}")
            assert member.node.overlay.peer(peer.identity.device) is None
        await still_updates(fleet, [agent])


async def test_an_impostor_at_the_hubs_address_is_not_taken_for_it(tmp_path: Path) -> None:
    """The key is the address: whoever else answers there proves another one."""
    async with small_fleet(tmp_path) as (fleet, hub, agent), made_up_peer(fleet, role="hub") as peer:
        claimed = NodeAddress(device=hub.identity.device, addrs=[f"127.0.0.1:{peer.endpoint.port}"])
        link = await peer.link(agent)
        await link.control.write_frame(
            wire.Directory(entries=[wire.DirectoryEntry(address=claimed, role="hub")])
        )
        await fleet.stop(hub)
        await until(
            lambda: not any(each.device == hub.identity.device for each in agent.node.overlay.hubs()), "gone"
        )
        with pytest.raises(PeerUnreachable):
            await agent.node.links.dial(claimed, wire.ALPN_TUNNEL, 2.0)
        assert agent.node.overlay.peer(hub.identity.device) is None
