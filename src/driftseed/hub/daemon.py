"""The hub: a node that serves everything and installs nothing, admits devices, and collects reports."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftseed.core import limits, wire
from driftseed.core.errors import (
    DiskFull,
    DriftseedError,
    MetadataInvalid,
    Misuse,
    NotAMember,
    ReportInvalid,
    TicketRefused,
    TrustError,
)
from driftseed.core.ids import DeviceId, Digest
from driftseed.core.model import NodeAddress
from driftseed.core.verified import VerifiedFleet
from driftseed.hub.admission import Admissions
from driftseed.hub.exchange import ReportExchange
from driftseed.hub.observer import FleetObserver
from driftseed.net.connection import Connection
from driftseed.net.identity import Identity
from driftseed.net.join import join_in
from driftseed.net.stream import Stream
from driftseed.node.home import Home, MembershipRecord
from driftseed.node.node import Node, NodeOptions
from driftseed.node.peer import OverlayPeer
from driftseed.node.tasks import TaskOwner
from driftseed.node.transfer import ContentSettings
from driftseed.trust.chain import TIMESTAMP_NAME
from driftseed.trust.device import FleetTrust
from driftseed.trust.hubkit import HubKit
from driftseed.trust.membership import Applicant, Membership, countersign
from driftseed.trust.renewal import TimestampRenewer
from driftseed.trust.report import verify_report
from driftseed.trust.source import FilesSource

_log = logging.getLogger(__name__)

DATABASE_FILE: Final = "hub.sqlite"
ADMISSIONS_FILE: Final = "admissions.sqlite"
RENEWAL_LOOK_S: Final = 3600.0
"""Seconds between looks at whether the timestamp is to be renewed."""


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """How a hub is set up, parsed and resolved.

    Args:
        bind: UDP address.
        public: addresses at which devices reach it.
        relay: URL of the relay that it is reachable through and names to others; None for none.
    """

    bind: str
    public: Sequence[str]
    relay: str | None
    content: ContentSettings


class Hub:
    """A running hub. Make it with ``open``, begin with ``start``, end with ``close``.

    Args:
        kit: its keys, and what was signed when it was made.
        home: its data directory, whose lock the caller holds.
    """

    def __init__(
        self,
        kit: HubKit,
        identity: Identity,
        observer: FleetObserver,
        admissions: Admissions,
        settings: HubSettings,
        clock: Callable[[], float],
    ) -> None:
        self.kit = kit
        self.settings = settings
        self.observer = observer
        self.identity = identity
        self.clock = clock
        self.started = time.monotonic()
        self.bootstrap_keys = frozenset({kit.enrolment_key})
        self.membership = Membership(kit.fleet_id, self.bootstrap_keys, clock)
        self._admissions = admissions
        self._tasks = TaskOwner("hub")
        self._known: set[DeviceId] = set()
        """Devices that have proved membership to this hub."""
        self.on_member: Callable[[DeviceId], None] = lambda _device: None
        """Called when a device has proved its membership."""
        self._keeping: dict[Digest, asyncio.Task[None]] = {}
        self.on_fleet_changed: Callable[[], None] = lambda: None
        """Called when other devices may be expelled than before."""
        self.certificate = kit.certificate
        self._key = Ed25519PrivateKey.from_private_bytes(identity.secret)
        self.node: Node
        self._exchange: ReportExchange
        self._renewer: TimestampRenewer

    @classmethod
    async def open(
        cls,
        kit: HubKit,
        home: Home,
        settings: HubSettings,
        clock: Callable[[], float] = time.time,
    ) -> Hub:
        """Load everything and bind the UDP port.

        Raises:
            WrongFleet: the directory is another fleet's.
            PortTaken: the port is taken.
            StoreDamaged, DiskFull, UnsafePermissions: the data directory cannot be used.
            WouldOverwrite, Misuse: the kit is another hub's, or has expired.
        """
        home.check_fleet(kit.fleet_id)
        identity = home.identity() if kit.secret is None else home.adopt_identity(kit.secret)
        try:
            Membership(kit.fleet_id, {kit.enrolment_key}, clock).check(kit.certificate, identity.device)
        except NotAMember as error:
            raise Misuse(
                f"the kit does not make this machine a hub: {error.message}",
                hint=f"make one that does: driftseed fleet hub-kit DIR FILE --for {identity.device}",
            ) from None
        async with AsyncExitStack() as undo:
            hub = await cls._open(kit, home, settings, identity, clock, undo)
            undo.pop_all()
        return hub

    @classmethod
    async def _open(
        cls,
        kit: HubKit,
        home: Home,
        settings: HubSettings,
        identity: Identity,
        clock: Callable[[], float],
        undo: AsyncExitStack,
    ) -> Hub:
        """``open``, with what is to be closed again if it fails: no port, no database stays open then."""
        observer = await FleetObserver.open(home.directory / DATABASE_FILE, clock)
        undo.push_async_callback(observer.close)
        admissions = Admissions(home.directory / ADMISSIONS_FILE)
        undo.callback(admissions.close)
        hub = cls(kit, identity, observer, admissions, settings, clock)
        hub._known.update(await observer.sequences())
        home.keep(
            MembershipRecord(
                fleet=kit.fleet,
                name=kit.name,
                root=kit.first_root,
                certificate=hub.certificate,
                enrolment_key=kit.enrolment_key,
                joined=clock(),
            )
        )
        trust = FleetTrust(home.directory / "trust", kit.first_root, clock)
        if trust.load() is None:
            await asyncio.to_thread(hub.found, trust)
        options = NodeOptions(
            data=home.directory,
            role="hub",
            fleet=kit.fleet_id,
            first_root=kit.first_root,
            certificate=hub.certificate,
            bind=settings.bind,
            relays=[settings.relay] if settings.relay else [],
            enrolment_keys=hub.bootstrap_keys,
            accept_max=2 * limits.HUB_LINKS_MAX,
            content=settings.content,
        )
        hub.node = await Node.open(options, identity, hub, clock)
        undo.push_async_callback(hub.node.endpoint.close)
        hub._exchange = ReportExchange(hub.node, observer, hub.membership, hub._tasks)
        for address in settings.public:
            await hub.node.endpoint.add_external(address)
        hub._renewer = TimestampRenewer(hub.node.keeper.trust, kit.timestamp_key(), clock)
        hub.node.keeper.reconcile = hub.reconcile
        hub.node.links.handle_raw(wire.ALPN_JOIN, hub.admit)
        hub.node.requests[wire.RenewRequest] = hub.extend
        return hub

    def found(self, trust: FleetTrust) -> None:
        """Trust what the kit brings, renewed if it lay about for long."""
        renewer = TimestampRenewer(trust, self.kit.timestamp_key(), self.clock)
        timestamp = self.kit.files[TIMESTAMP_NAME]
        renewed = renewer.renew(timestamp) or timestamp
        trust.refresh(FilesSource({TIMESTAMP_NAME: renewed}.get, self.kit.files.get))

    def start(self) -> None:
        """Begin to serve."""
        self.node.start()
        self._exchange.start()
        self._tasks.spawn(self._renew_forever(), "renew")

    async def close(self) -> None:
        """End everything."""
        await self._tasks.close()
        await self.node.close()
        await self.observer.close()
        self._admissions.close()

    def public_address(self) -> NodeAddress:
        """How devices reach it."""
        return NodeAddress(
            device=self.identity.device, addrs=list(self.settings.public), relay=self.settings.relay
        )

    # --- what the node brings (node.node.Owner) -------------------------------------------------

    async def on_fleet(self, fleet: VerifiedFleet) -> None:
        """Fetch everything that is deployed, so that publishers may leave; let go of what is not."""
        self.membership.follow(fleet)
        self._known = {device for device in self._known if not self.membership.is_revoked(device)}
        self.on_fleet_changed()
        await self._relabel()
        wanted: set[Digest] = set()
        for deployment in fleet.deployments:
            for artifact in deployment.release.manifest.artifacts:
                digest = Digest(artifact.sha256)
                wanted.add(digest)
                self.node.contents.store.pin(digest)
                if digest not in self._keeping:
                    task = self._tasks.spawn(
                        self.node.contents.keep(deployment.release, artifact), f"keep {digest[:8]}"
                    )
                    if task is not None:
                        self._keeping[digest] = task
        for digest in self._keeping.keys() - wanted:
            self._keeping.pop(digest).cancel()
            self.node.contents.store.unpin(digest)
            await self.node.contents.abandon(digest)

    def on_report(self, envelope: bytes, peer: OverlayPeer) -> None:
        """Store a report and say so."""
        try:
            report = verify_report(envelope, self.membership)
        except (ReportInvalid, NotAMember) as error:
            self.node.ledger.refuse_error(error, peer.device)
            return

        async def store() -> None:
            try:
                await self.observer.add(report)
            except (ReportInvalid, DiskFull) as error:
                self.node.ledger.refuse_error(error, peer.device)
                return
            peer.send(wire.ReportStored(device=report.device, sequence=report.sequence))

        self._tasks.spawn(store(), "report")

    def on_report_stored(self, message: wire.ReportStored, peer: OverlayPeer) -> None:  # noqa: ARG002 - protocol
        """A hub hands no reports on, so nobody confirms one to it."""
        self.node.ledger.drop("frame-out-of-place", peer.device, "ReportStored")

    def on_peer(self, peer: OverlayPeer) -> None:
        """Note who it is."""
        self._known.add(peer.device)
        self.on_member(peer.device)
        self._exchange.peer_came(peer)
        if peer.role == "agent":
            self._tasks.spawn(self.observer.member(peer.link.member), "member")

    def on_peer_gone(self, peer: OverlayPeer) -> None:
        """From now on it is silent."""
        if peer.role == "agent":
            self.observer.heard(peer.device)

    # --- admission ------------------------------------------------------------------------------

    async def admit(self, connection: Connection) -> None:
        """Count a ticket's use and countersign, or extend a membership that may have expired."""
        asked = await join_in(connection)
        try:
            applicant = self.membership.applicant(asked.request.invitation, connection.remote)
            if not applicant.renewal:
                self._admissions.admit(applicant.invitation, applicant.device, self.clock())
        except (Misuse, TrustError, DiskFull) as error:
            self.node.ledger.refuse_error(error, connection.remote)
            await asked.turn_away(error)
            return
        certificate = self._countersign(applicant)
        await self.observer.member(self.membership.check(certificate, connection.remote))
        self._known.add(connection.remote)
        _log.info(
            "admitted",
            extra={"fields": {"device": connection.remote[:16], "by": applicant.invitation.id[:8]}},
        )
        await asked.admit(wire.JoinReply(certificate=certificate, hub_certificate=self.certificate))

    async def extend(self, message: wire.Message, stream: Stream, device: DeviceId) -> None:
        """Extend the membership of a device that is linked."""
        shown = message.certificate if isinstance(message, wire.RenewRequest) else b""
        answer: wire.Message
        try:
            applicant = self.membership.applicant(shown, device)
            if not applicant.renewal:
                raise TicketRefused("a ticket where a membership is to be extended")
            answer = wire.RenewReply(certificate=self._countersign(applicant))
        except (Misuse, TrustError) as error:
            self.node.ledger.refuse_error(error, device)
            answer = wire.Refused(reason=error.reason, message=error.message[:512])
        await stream.write_frame(answer, limits.WRITE_TIMEOUT_S)
        await stream.finish()

    def _countersign(self, applicant: Applicant) -> bytes:
        return countersign(
            self._key,
            self.certificate,
            applicant.invitation,
            applicant.application,
            device=applicant.device,
            now=self.clock(),
        )

    async def _relabel(self) -> None:
        """Have the fleet's view follow the labels that signed metadata gives to devices that are here."""
        for peer in self.node.overlay.peers():
            if peer.role != "agent":
                continue
            try:
                member = self.membership.check(peer.link.certificate, peer.device)
            except NotAMember:
                continue  # its link has just been cut, and its refusal counted
            await self.observer.member(member)

    def is_member(self, device: DeviceId) -> bool:
        """Whether a device has proved its membership here, now or before: whom the relay serves fully."""
        if self.membership.is_revoked(device):
            return False
        return device == self.identity.device or device in self._known

    # --- freshness ------------------------------------------------------------------------------

    def reconcile(self, ours: bytes, theirs: bytes) -> bytes | None:
        """Settle two timestamps of one version."""
        try:
            return self._renewer.reconcile(ours, theirs)
        except (MetadataInvalid, Misuse) as error:
            self.node.ledger.refuse_error(error)
            return None

    async def _renew_forever(self) -> None:
        while True:
            try:
                await self.renew()
            except DriftseedError as error:
                _log.error(
                    "cannot renew", extra={"fields": {"reason": error.reason, "detail": error.message}}
                )
            await asyncio.sleep(RENEWAL_LOOK_S)

    async def renew(self, *, force: bool = False) -> int | None:
        """Sign a new timestamp if it is time to; returns its version.

        Raises:
            Misuse: the kit's key is not the fleet's any more.
        """
        current = self.node.keeper.trust.serve(TIMESTAMP_NAME)
        renewed = self._renewer.renew(current, force=force) if current is not None else None
        if renewed is None:
            return None
        trust = self.node.keeper.trust
        fleet = await self.node.keeper.refresh(FilesSource({TIMESTAMP_NAME: renewed}.get, trust.serve))
        _log.info("timestamp renewed", extra={"fields": {"version": fleet.timestamp_version}})
        return fleet.timestamp_version
