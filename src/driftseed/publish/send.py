"""Publishing: hands what a fleet directory holds to one node, which tells the others.

Through a ticket, the publisher is a member for as long as it takes: it announces its timestamp.json, lets the
hub fetch the rest, seeds the content until the hub has all of it, and leaves. Through an agent's local socket, files
are handed over as they are. Either way the receiver verifies everything by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from msgspec import Struct

from driftseed.core import limits, wire
from driftseed.core.errors import (
    DriftseedError,
    MetadataReplayed,
    NotAMember,
    PeerStalled,
    PeerUnreachable,
    RolesDisagree,
    TicketDamaged,
    TransportError,
    WrongFleet,
)
from driftseed.core.ids import Digest
from driftseed.core.model import NodeAddress
from driftseed.core.tickets import PREFIX, decode_ticket
from driftseed.core.verified import VerifiedFleet
from driftseed.net.identity import Identity
from driftseed.node.node import Node, NodeOptions
from driftseed.node.peer import OverlayPeer
from driftseed.node.requests import ask_held
from driftseed.node.transfer import ContentSettings
from driftseed.trust.device import FleetTrust
from driftseed.trust.membership import issue_certificate
from driftseed.trust.repository import FleetRepository
from driftseed.trust.source import FilesSource

CERTIFICATE_LIFETIME_S: Final = 6 * 3600.0
"""Seconds that a publisher's certificate lasts: longer than any publication."""
CLOCK_ALLOWANCE_S: Final = 600.0
"""Seconds by which a publisher's certificate is dated back, for hubs whose clock is behind."""
WATCH_S: Final = 0.5
"""Seconds between looks at how much was sent, for the progress bar."""


class PublishResult(Struct, frozen=True, kw_only=True):
    """What came of publishing."""

    node: str
    """Device id of the node that has everything now."""
    timestamp_version: int
    files: int
    """Metadata files and small targets."""
    content_bytes: int
    """Bytes of all artifacts in force."""
    seconds: float


class Progress(Protocol):
    """Told how far it is."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Bytes sent, bytes to send, and what is being waited for."""


class LocalApi(Protocol):
    """The local API of a running agent; blocking, called in a worker thread."""

    def request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """One request with a JSON body. Raises DriftseedError."""

    def send_file(self, path: str, data: bytes | Path) -> dict[str, Any]:
        """One PUT of raw bytes. Raises DriftseedError."""


class _Publisher:
    """Owner of the publisher's node: it wants to hear of nothing."""

    async def on_fleet(self, fleet: VerifiedFleet) -> None:
        """Our own metadata."""

    def on_report(self, envelope: bytes, peer: OverlayPeer) -> None:
        """Reports are for hubs; a publisher is gone before it could carry one."""

    def on_report_stored(self, message: wire.ReportStored, peer: OverlayPeer) -> None:
        """A publisher sends no reports."""

    def on_peer(self, peer: OverlayPeer) -> None:
        """Waited for where it is dialled."""

    def on_peer_gone(self, peer: OverlayPeer) -> None:
        """Noticed where it is waited for."""


async def publish_to_hub(
    repository: FleetRepository, ticket_text: str, *, timeout_s: float, progress: Progress
) -> PublishResult:
    """Publish through the first of a ticket's hubs that answers.

    Args:
        repository: signed and complete.
        ticket_text: any ticket of the fleet; its secret is not used, nor its expiry a hindrance to those who
            hold the enrolment key.
        timeout_s: seconds for all of it.
        progress: told what happens.

    Raises:
        TicketDamaged, TicketExpired, WrongFleet: the ticket cannot be used.
        PeerUnreachable: no hub answers.
        PeerStalled: the hub did not take everything in time; publishing again goes on where this ended.
        MetadataReplayed: the fleet has newer metadata than this directory.
        WrongPassphrase: the enrolment key does not open.
    """
    ticket = decode_ticket(ticket_text, time.time())
    if ticket.fleet != repository.fleet_id:
        raise WrongFleet(
            f"the ticket is of fleet {ticket.name!r} ({ticket.fleet[:16]}), "
            f"the directory of {repository.name!r} ({repository.fleet_id[:16]})"
        )
    return await publish_to_nodes(repository, ticket.hubs, timeout_s=timeout_s, progress=progress)


async def publish_to_nodes(
    repository: FleetRepository, nodes: list[NodeAddress], *, timeout_s: float, progress: Progress
) -> PublishResult:
    """Publish through the first of these nodes that answers; see ``publish_to_hub``."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s), _joined(repository, nodes) as node:
            peer = await _reach(node, nodes)
            fleet = await _catch_up(repository, node, peer)
            total = sum(
                artifact.length
                for deployment in fleet.deployments
                for artifact in deployment.release.manifest.artifacts
            )
            await _hand_over(node, peer, fleet, total, progress)
            return PublishResult(
                node=peer.device,
                timestamp_version=fleet.timestamp_version,
                files=len(repository.files()),
                content_bytes=total,
                seconds=time.monotonic() - began,
            )
    except TimeoutError:
        raise PeerStalled(
            f"the hub had not taken everything after {timeout_s:.0f} s",
            hint="publish again: what it has already is not sent twice",
        ) from None


@asynccontextmanager
async def _joined(repository: FleetRepository, nodes: list[NodeAddress]) -> AsyncIterator[Node]:
    """A node of our own, for as long as it takes."""
    identity = Identity.generate()
    certificate = issue_certificate(
        repository.enrolment_key(),
        fleet=repository.fleet_id,
        device=identity.device,
        role="publisher",
        labels={},
        now=time.time() - CLOCK_ALLOWANCE_S,
        lifetime=CERTIFICATE_LIFETIME_S,
    )
    with tempfile.TemporaryDirectory(prefix="driftseed-publish-") as scratch:
        options = NodeOptions(
            data=Path(scratch),
            content_directory=repository.content_directory,
            role="publisher",
            fleet=repository.fleet_id,
            first_root=repository.first_root,
            certificate=certificate,
            relays=sorted({each.relay for each in nodes if each.relay}),
            # Its content is the directory's own: nothing is ever evicted from there.
            content=ContentSettings(quota_bytes=2**62),
        )
        node = await Node.open(options, identity, _Publisher())
        try:
            await _trust_own(repository, node)
            node.start()
            yield node
        finally:
            await node.close()


async def _trust_own(repository: FleetRepository, node: Node) -> VerifiedFleet:
    """Look at our own repository as a device will, before anybody else does."""
    fleet = await node.keeper.refresh(FilesSource(repository.files().get))
    if fleet.disagreements:
        raise RolesDisagree(
            "the fleet directory does not agree with itself: " + "; ".join(fleet.disagreements),
            hint="deploy again what these deployments name",
        )
    return fleet


async def _reach(node: Node, nodes: list[NodeAddress]) -> OverlayPeer:
    if not nodes:
        raise TicketDamaged("the ticket names no hub", hint="ask for a new one: driftseed fleet invite")
    failures: list[DriftseedError] = []
    for address in nodes:
        try:
            return await node.overlay.reach(address, limits.DIAL_TIMEOUT_S)
        except (TransportError, NotAMember) as error:
            # A hub that was expelled is as good as gone: the next one may take it.
            failures.append(error)
    raise PeerUnreachable(
        "no hub of the ticket answers: " + "; ".join(error.message for error in failures),
        hint="check that the hub is running and can be reached from here",
    )


async def _catch_up(repository: FleetRepository, node: Node, peer: OverlayPeer) -> VerifiedFleet:
    """Make sure that what we announce is newer than what the node has."""
    await peer.first_state.wait()
    fleet = node.fleet
    if fleet is None:
        raise RuntimeError("a publisher whose own metadata is not loaded")
    theirs = peer.state
    if theirs.snapshot_version > fleet.snapshot_version:
        raise MetadataReplayed(
            f"the fleet has snapshot {theirs.snapshot_version}, this directory only {fleet.snapshot_version}",
            hint="publish from the directory in which the newest release or deployment was signed",
        )
    if theirs.timestamp_version >= fleet.timestamp_version and (
        theirs.snapshot_version < fleet.snapshot_version or theirs.timestamp_version > fleet.timestamp_version
    ):
        # A hub has renewed its timestamp meanwhile: ours must be newer still.
        repository.bump_timestamp(theirs.timestamp_version)
        fleet = await _trust_own(repository, node)
    return fleet


async def _hand_over(
    node: Node, peer: OverlayPeer, fleet: VerifiedFleet, total: int, progress: Progress
) -> None:
    """Wait until the node says that it has everything."""
    wanted = {
        Digest(artifact.sha256)
        for deployment in fleet.deployments
        for artifact in deployment.release.manifest.artifacts
    }
    while True:
        peer.state_changed.clear()
        if peer.state.ready >= fleet.timestamp_version and await _holds_all(peer, wanted):
            progress(total, total, "done")
            return
        if not peer.alive:
            raise PeerUnreachable("the hub went away in the middle", hint="publish again")
        what = "metadata" if peer.state.ready < fleet.timestamp_version else "content"
        sent = sum(node.contents.swarming.sinks(digest).total() for digest in wanted)
        progress(min(sent, total), total, what)
        try:
            async with asyncio.timeout(WATCH_S):
                await peer.state_changed.wait()
        except TimeoutError:
            continue


async def _holds_all(peer: OverlayPeer, wanted: set[Digest]) -> bool:
    """Whether a node has all of the content: a state that is full may not name everything, so it is asked."""
    if len(peer.state.has) < limits.CONTENT_IDS_MAX:
        return wanted <= set(peer.state.has)
    return wanted == await ask_held(peer.link.connection, wanted)


def publish_to_agent(repository: FleetRepository, api: LocalApi, *, progress: Progress) -> PublishResult:
    """Publish through a running agent's local socket.

    Args:
        repository: signed and complete.
        api: the agent's.
        progress: told what happens.

    Raises:
        WrongFleet: the agent is another fleet's.
        MetadataReplayed: the fleet has newer metadata than this directory.
        DriftseedError: the agent refused something, for its reason.
    """
    began = time.monotonic()
    status = api.request("GET", "/v1/status")
    if status["fleet"] != repository.fleet_id:
        raise WrongFleet(
            f"the agent is of fleet {status['fleet'][:16]}, the directory of {repository.fleet_id[:16]}"
        )
    with tempfile.TemporaryDirectory(prefix="driftseed-publish-") as scratch:
        trust = FleetTrust(Path(scratch), repository.first_root, time.time)
        fleet = trust.refresh(FilesSource(repository.files().get))
    if status["snapshot_version"] > fleet.snapshot_version:
        raise MetadataReplayed(
            f"the fleet has snapshot {status['snapshot_version']}, this directory only {fleet.snapshot_version}",
            hint="publish from the directory in which the newest release or deployment was signed",
        )
    if status["timestamp_version"] >= fleet.timestamp_version:
        repository.bump_timestamp(int(status["timestamp_version"]))
    files = repository.files()
    contents = {
        artifact.sha256: artifact
        for deployment in fleet.deployments
        for artifact in deployment.release.manifest.artifacts
    }
    total = sum(artifact.length for artifact in contents.values())
    submission = str(api.request("POST", "/v1/submit")["submission"])
    try:
        for name, data in files.items():
            progress(0, total, "metadata")
            api.send_file(f"/v1/submit/{submission}/files/{name}", data)
        missing = api.request("GET", f"/v1/submit/{submission}")["missing"]
        done = sum(artifact.length for sha256, artifact in contents.items() if sha256 not in missing)
        for sha256 in missing:
            progress(done, total, "content")
            api.send_file(f"/v1/submit/{submission}/content/{sha256}", repository.content(contents[sha256]))
            done += contents[sha256].length
        answer = api.request("POST", f"/v1/submit/{submission}/commit")
    except BaseException:
        # The agent takes one submission at a time: this one must not keep the next one out. It may be gone already.
        with contextlib.suppress(DriftseedError):
            api.request("DELETE", f"/v1/submit/{submission}")
        raise
    progress(total, total, "done")
    return PublishResult(
        node=str(status["device"]),
        timestamp_version=int(answer["timestamp_version"]),
        files=len(files),
        content_bytes=total,
        seconds=time.monotonic() - began,
    )


def is_ticket(via: str) -> bool:
    """Whether ``--via`` names a ticket rather than a socket."""
    return "".join(via.split()).startswith(PREFIX)
