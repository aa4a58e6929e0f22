"""A member of a fleet, whole: what agents, hubs and publishers have in common.

The parts, in the order in which an update passes them: ``Overlay`` hears a notice, ``MetadataKeeper`` fetches
and trusts what it announces, the owner (agent, hub or publisher) decides, ``Contents`` fetches content.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from driftseed.core import limits, wire
from driftseed.core.errors import TransportError
from driftseed.core.ids import DeviceId, Digest, FleetId
from driftseed.core.model import NodeAddress
from driftseed.core.neighbours import DirectoryBook
from driftseed.core.verified import VerifiedFleet
from driftseed.net.endpoint import Endpoint
from driftseed.net.identity import Identity
from driftseed.net.link import MemberChecker
from driftseed.net.stream import Stream
from driftseed.node import requests
from driftseed.node.contacts import CONTACTS_FILE, keep_contacts, load_contacts, save_contacts
from driftseed.node.content import Contents
from driftseed.node.dialback import DialBack
from driftseed.node.files import serve_file
from driftseed.node.ledger import Ledger
from driftseed.node.links import Credentials, Links
from driftseed.node.metadata import MetadataKeeper
from driftseed.node.overlay import Overlay
from driftseed.node.peer import OverlayPeer
from driftseed.node.tasks import TaskOwner
from driftseed.node.transfer import ContentSettings
from driftseed.node.whereabouts import Whereabouts
from driftseed.swarm.content import ContentStore
from driftseed.trust.device import FleetTrust
from driftseed.trust.membership import Membership

_log = logging.getLogger(__name__)

INTRODUCED_FOR_CONTENT_MAX = 32
"""Devices named in one answer to FindContent."""
ASK_HUBS_BELOW: Final = 8
"""Devices that a hub knows to have or want a content, below which it asks the other hubs."""
ASK_HUBS_S: Final = 2.0
"""Seconds for that: the asker is waiting."""


class Owner(Protocol):
    """What an agent, hub or publisher makes of the node that it owns."""

    async def on_fleet(self, fleet: VerifiedFleet) -> None:
        """The trusted metadata changed, or the node has just started with what it had."""

    def on_report(self, envelope: bytes, peer: OverlayPeer) -> None:
        """A member hands on a report."""

    def on_report_stored(self, message: wire.ReportStored, peer: OverlayPeer) -> None:
        """A hub has stored a report."""

    def on_peer(self, peer: OverlayPeer) -> None:
        """An overlay link came up."""

    def on_peer_gone(self, peer: OverlayPeer) -> None:
        """An overlay link ended."""


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """How a node is set up.

    Args:
        data: its directory; ``trust/``, ``content/`` and ``contacts.json`` are the node's in it.
        role: ``agent``, ``hub`` or ``publisher``.
        bind: UDP address to listen on.
        relays: URLs of relays to be reachable through.
        hubs: dialled first, before the metadata names others.
        content: engine and store settings.
    """

    data: Path
    role: str
    fleet: FleetId
    first_root: bytes
    certificate: bytes
    bind: str = "0.0.0.0:0"
    relays: Sequence[str] = ()
    hubs: Sequence[NodeAddress] = ()
    enrolment_keys: frozenset[str] = frozenset()
    """Trusted before any metadata is there: a hub's own kit."""
    neighbours_max: int = limits.NEIGHBOURS_ACTIVE_MAX
    content_directory: Path | None = None
    """Where content is, if not in ``data``: a publisher's own directory."""
    accept_max: int = 4 * limits.LINKS_INCOMING_MAX
    content: ContentSettings = field(default_factory=ContentSettings)
    offers_relay: str | None = None
    """URL of the relay that we serve for members without a hub."""
    lan: bool = False
    """Find others on the own networks by mDNS, and be found."""
    lan_interfaces: Sequence[str] = ()
    """By name or address; none for all but loopback."""


class Node:
    """A running member. Make it with ``Node.open``, end it with ``close``.

    Args:
        options: how it is set up.
        endpoint: open.
        trust: the device-side verifier.
        owner: who decides.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        options: NodeOptions,
        endpoint: Endpoint,
        trust: FleetTrust,
        store: ContentStore,
        owner: Owner,
        clock: Callable[[], float],
    ) -> None:
        self.options = options
        self.endpoint = endpoint
        self.device = endpoint.device
        self.clock = clock
        self.ledger = Ledger(clock)
        self.certificate = options.certificate
        self.clock_skew_s: float | None = None
        """This clock minus a hub's; None before a hub was met."""
        self.requests: dict[
            type[wire.Message], Callable[[wire.Message, Stream, DeviceId], Awaitable[None]]
        ] = {}
        """Answers to requests that are the owner's business, by the frame that makes them."""
        self._owner = owner
        self._checker = Membership(options.fleet, options.enrolment_keys, clock)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends with an error when a part failed without which the node is a dead one that looks alive."""
        self._tasks = TaskOwner("node", self.fail)
        self.links = Links(
            endpoint, self._credentials, self.ledger, clock, self.fail, accept_max=options.accept_max
        )
        self.book = DirectoryBook(self.device)
        self.overlay = Overlay(
            self.links,
            self.book,
            self,
            self.ledger,
            role=options.role,
            monotonic=time.monotonic,
            rng=random.SystemRandom(),
            on_failure=self.fail,
            neighbours_max=options.neighbours_max,
        )
        self.whereabouts = Whereabouts(
            endpoint, self.overlay, self.book, self.ledger, self.fail, follow_relays=options.role != "hub"
        )
        self.dial_back = DialBack(self.overlay, time.monotonic)
        self.requests[wire.AskDial] = self.dial_back.answer
        self._offers_relay = options.offers_relay
        if options.lan:
            self.whereabouts.discover(options.fleet, options.lan_interfaces)
        self.keeper = MetadataKeeper(trust, self.overlay, self.ledger, self._fleet_changed, time.monotonic)
        self.contents = Contents(
            self.links,
            self.overlay,
            self.keeper,
            self.ledger,
            store,
            options.content,
            time.monotonic,
        )

    @classmethod
    async def open(
        cls,
        options: NodeOptions,
        identity: Identity,
        owner: Owner,
        clock: Callable[[], float] = time.time,
    ) -> Node:
        """Bind the endpoint and load what is on disk; ``start`` begins to talk.

        Raises:
            PortTaken, DeviceError: the address cannot be bound.
            StoreDamaged, DiskFull: the data directory cannot be used.
        """
        trust = FleetTrust(options.data / "trust", options.first_root, clock)
        store = ContentStore(
            options.content_directory or options.data / "content", options.content.quota_bytes
        )
        alpns = [wire.ALPN_OVERLAY, wire.ALPN_TUNNEL]
        if options.role == "hub":
            alpns.append(wire.ALPN_JOIN)
        endpoint = await Endpoint.open(identity, bind=options.bind, alpns=alpns, relays=options.relays)
        return cls(options, endpoint, trust, store, owner, clock)

    @property
    def fleet(self) -> VerifiedFleet | None:
        """The newest trusted metadata."""
        return self.keeper.fleet

    def start(self) -> None:
        """Begin to accept, dial, and keep up to date."""
        now = time.monotonic()
        load_contacts(self.options.data / CONTACTS_FILE, self.book, now)
        self.book.set_hubs(self.options.hubs, now)
        if self.keeper.fleet is not None:
            self._follow(self.keeper.fleet)
        self.links.start()
        self.contents.start()
        self.overlay.start()
        self._tasks.spawn(self.keeper.run(), "metadata")
        self._tasks.spawn(self._recheck_forever(), "recheck")
        self.whereabouts.start()
        self._tasks.spawn(
            keep_contacts(self.options.data / CONTACTS_FILE, self.book, time.monotonic), "contacts"
        )

    def fail(self, error: BaseException) -> None:
        """Have the daemon end: a part of it that must not fail did."""
        if not self.failed.done():
            self.failed.set_exception(error)
            # Also when nobody waits for it, as in a publisher: the log has it.
            self.failed.exception()

    async def close(self) -> None:
        """End every link and task; what is on disk is whole at any time."""
        await self._tasks.close()
        await self.whereabouts.close()
        await self.overlay.close()
        await self.contents.close()
        await self.links.close()
        save_contacts(self.options.data / CONTACTS_FILE, self.book, time.monotonic())
        await self.endpoint.close()

    def _credentials(self) -> Credentials:
        checker: MemberChecker = self._checker
        return Credentials(self.options.fleet, self.certificate, checker)

    def own_address(self) -> NodeAddress:
        """How others may dial this node."""
        return NodeAddress(
            device=self.device,
            addrs=self.endpoint.addresses(),
            relay=self.endpoint.relay or next(iter(self.options.relays), None),
        )

    def offer_relay(self, url: str | None) -> None:
        """Tell the neighbours of a relay that we serve from now on; None: there is none any more."""
        if url != self._offers_relay:
            self._offers_relay = url
            self.whereabouts.use_own_relay(url)
            self.overlay.state_changed()

    # --- metadata -------------------------------------------------------------------------------

    async def _fleet_changed(self, fleet: VerifiedFleet) -> None:
        self._follow(fleet)
        self.contents.fleet_changed(fleet)
        await self._owner.on_fleet(fleet)

    def _follow(self, fleet: VerifiedFleet) -> None:
        self._checker.follow(fleet)
        self.links.recheck()
        # Hubs of the ticket stay known: metadata that was signed before a hub was added must not cut us off.
        hubs = {hub.device: hub for hub in (*self.options.hubs, *fleet.hubs)}
        self.book.set_hubs(hubs.values(), time.monotonic())
        relays = {hub.relay for hub in hubs.values() if hub.relay} | set(self.options.relays)
        self.whereabouts.use_relays(sorted(relays))
        self.overlay.look_around()

    async def _recheck_forever(self) -> None:
        """Memberships end while links last; what is signed is followed at once, in ``_follow``."""
        while True:
            await asyncio.sleep(limits.RECHECK_S)
            self.links.recheck()

    # --- what the overlay brings (node.overlay.Business) ------------------------------------------

    def own_state(self) -> wire.State:
        """What we say of ourselves now."""
        has, wants = self.contents.holdings()
        fleet = self.keeper.fleet
        address = self.own_address()
        return wire.State(
            timestamp_version=self.keeper.known,
            snapshot_version=fleet.snapshot_version if fleet else 0,
            ready=self.keeper.ready,
            has=has,
            wants=wants,
            addrs=address.addrs,
            relay=address.relay,
            offers_relay=self._offers_relay,
        )

    def newest_notice(self) -> bytes | None:
        """The newest signed timestamp.json we know."""
        return self.keeper.newest()

    def on_notice(self, data: bytes, peer: OverlayPeer) -> None:
        """A neighbour says that this timestamp.json is newer than ours."""
        self.keeper.offer(data, peer)

    def on_peer_state(self, peer: OverlayPeer) -> None:
        """A neighbour's state, or what it sees of us, changed."""
        self.keeper.peer_state(peer)
        self.contents.peer_changed(peer)
        self.whereabouts.peer_said(peer)

    def on_report(self, envelope: bytes, peer: OverlayPeer) -> None:
        """A member hands on a report."""
        self._owner.on_report(envelope, peer)

    def on_report_stored(self, message: wire.ReportStored, peer: OverlayPeer) -> None:
        """A hub has stored a report."""
        self._owner.on_report_stored(message, peer)

    def on_peer(self, peer: OverlayPeer) -> None:
        """An overlay link came up."""
        if peer.role == "hub":
            self.clock_skew_s = -peer.link.clock_offset_s
        self._owner.on_peer(peer)

    def on_peer_gone(self, peer: OverlayPeer) -> None:
        """An overlay link ended."""
        self.keeper.peer_gone(peer)
        self._owner.on_peer_gone(peer)
        self.whereabouts.peer_gone(peer)

    def behind(self, linked: Collection[DeviceId]) -> tuple[DeviceId, ...]:
        """Neighbours that are to be given the newest notice."""
        return self.keeper.recipients(linked)

    def is_busy(self, device: DeviceId) -> bool:
        """Whether content is being exchanged with a device."""
        return self.contents.swarming.is_active(device)

    async def on_request(self, peer: OverlayPeer, message: wire.Message, stream: Stream) -> None:
        """A neighbour asks for a file, or for who has a content."""
        await self.answer(message, stream, peer.device)

    async def answer(self, message: wire.Message, stream: Stream, device: DeviceId) -> None:
        """Answer one request. Raises TransportError when the asker is gone."""
        match message:
            case wire.GetFile():
                await serve_file(message, stream, self.keeper.trust.serve, self.keeper.when_ready)
            case wire.AskHeld(sha256s=sha256s):
                store = self.contents.store
                held = wire.Held(sha256s=[each for each in sha256s if store.has(Digest(each))])
                await stream.write_frame(held, limits.WRITE_TIMEOUT_S)
                await stream.finish()
            case wire.FindContent(sha256=sha256):
                reply = wire.Directory(entries=await self._holders(sha256, device))
                await stream.write_frame(reply, limits.WRITE_TIMEOUT_S)
                await stream.finish()
            case _:
                handler = self.requests.get(type(message))
                if handler is None:
                    self.ledger.drop("frame-out-of-place", device, type(message).__name__)
                    await stream.reset(1)
                else:
                    await handler(message, stream, device)

    async def _holders(self, sha256: str, asker: DeviceId) -> list[wire.DirectoryEntry]:
        """Who has or wants a content; a hub that knows few asks the other hubs, whose devices it does not see."""
        found = {
            other.device: wire.DirectoryEntry(address=other.address, role=other.role)
            for other in self.overlay.peers()
            # A publisher hands its content to whom it dialled, over an uplink that is its own.
            if other.role != "publisher" and sha256 in (*other.state.has, *other.state.wants)
        }
        asking = self.overlay.peer(asker)
        if self.options.role == "hub" and len(found) < ASK_HUBS_BELOW and asking and asking.role != "hub":
            for directory in await asyncio.gather(*(_ask_hub(hub, sha256) for hub in self.overlay.hubs())):
                for entry in directory.entries:
                    found.setdefault(DeviceId(entry.address.device), entry)
        for device in (asker, self.device):
            found.pop(device, None)
        digest = Digest(sha256)
        # Our State names the newest content only: whoever asks learns it of any.
        here = self.contents.store.has(digest) or self.contents.transfer(digest) is not None
        own = [wire.DirectoryEntry(address=self.own_address(), role=self.options.role)] if here else []
        return [*own, *found.values()][:INTRODUCED_FOR_CONTENT_MAX]


async def _ask_hub(hub: OverlayPeer, sha256: str) -> wire.Directory:
    try:
        async with asyncio.timeout(ASK_HUBS_S):
            return await requests.find_content(hub.link.connection, sha256)
    except (TransportError, TimeoutError) as error:
        _log.debug("cannot ask hub", extra={"fields": {"peer": hub.device[:16], "why": str(error)}})
        return wire.Directory()
