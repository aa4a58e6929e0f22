"""The overlay: neighbours and hubs, what they tell each other, and who is dialled next."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection
from typing import Final, Protocol

from driftseed.core import limits, wire
from driftseed.core.errors import DriftseedError
from driftseed.core.ids import DeviceId
from driftseed.core.model import NodeAddress
from driftseed.core.neighbours import DirectoryBook, Tie, choose_prunes
from driftseed.core.verified import VerifiedNotice
from driftseed.net.link import Link
from driftseed.net.stream import Stream
from driftseed.node.ledger import Ledger
from driftseed.node.links import Links
from driftseed.node.peer import OverlayPeer
from driftseed.node.tasks import TaskOwner

_log = logging.getLogger(__name__)

STATE_DELAY_S: Final = 0.05
"""Seconds for which changes of our state are gathered into one frame."""
UPKEEP_S: Final = 5.0
"""Seconds between looks at whom to dial when nothing happened that calls for one sooner."""
INTRODUCED_MAX: Final = 16
"""Devices that a hub introduces to one that has just connected."""
REINTRODUCE_S: Final = 30.0
"""Seconds between introductions of neighbours to each other while there is no hub."""


class Business(Protocol):
    """What a node does with what the overlay brings."""

    def own_state(self) -> wire.State:
        """What we say of ourselves now."""

    def newest_notice(self) -> bytes | None:
        """The newest signed timestamp.json we know."""

    def on_notice(self, data: bytes, peer: OverlayPeer) -> None:
        """A neighbour says that this timestamp.json is newer than ours."""

    def on_peer_state(self, peer: OverlayPeer) -> None:
        """A neighbour's state changed."""

    def on_report(self, envelope: bytes, peer: OverlayPeer) -> None:
        """A neighbour hands on a report."""

    def on_report_stored(self, message: wire.ReportStored, peer: OverlayPeer) -> None:
        """A hub has stored a report."""

    def on_peer(self, peer: OverlayPeer) -> None:
        """A link came up."""

    def on_peer_gone(self, peer: OverlayPeer) -> None:
        """A link ended."""

    async def on_request(self, peer: OverlayPeer, message: wire.Message, stream: Stream) -> None:
        """A neighbour asks for a file or for who has a content."""

    def behind(self, linked: Collection[DeviceId]) -> tuple[DeviceId, ...]:
        """Neighbours that are to be given the newest notice; each is named once for each version."""

    def is_busy(self, device: DeviceId) -> bool:
        """Whether content is being exchanged with a device."""


class Overlay:
    """Keeps a node in touch with its hubs and up to a handful of neighbours.

    Args:
        links: dialling and accepting.
        book: whom we could dial.
        business: what to do with what comes.
        role: ``agent``, ``hub`` or ``publisher``: hubs introduce, publishers do not look for neighbours.
        ledger: where faults are counted.
        monotonic: seconds.
        rng: picks among equals.
        on_failure: told when telling or looking fails for good.
        neighbours_max: links to agents that we dial and keep.
    """

    def __init__(
        self,
        links: Links,
        book: DirectoryBook,
        business: Business,
        ledger: Ledger,
        *,
        role: str,
        monotonic: Callable[[], float],
        rng: random.Random,
        on_failure: Callable[[BaseException], None],
        neighbours_max: int = limits.NEIGHBOURS_ACTIVE_MAX,
    ) -> None:
        self._links = links
        self.book = book
        self._business = business
        self._ledger = ledger
        self._role = role
        self._monotonic = monotonic
        self._rng = rng
        self.neighbours_max = neighbours_max
        self._peers: dict[DeviceId, OverlayPeer] = {}
        self._tasks = TaskOwner("overlay")
        self._vital = TaskOwner("overlay", on_failure)
        self._introduced_at = monotonic()
        self._state_dirty = asyncio.Event()
        self._upkeep = asyncio.Event()
        self.frames: dict[type[wire.Message], Callable[[wire.Message, OverlayPeer], None]] = {}
        """What to do with control frames that are not everybody's business, by kind."""
        links.handle(wire.ALPN_OVERLAY, self._run_link)

    # --- for others -----------------------------------------------------------------------------

    def peers(self) -> list[OverlayPeer]:
        """Living links, hubs first."""
        alive = [peer for peer in self._peers.values() if peer.alive]
        return sorted(alive, key=lambda peer: peer.role != "hub")

    def peer(self, device: DeviceId) -> OverlayPeer | None:
        """The living link to a device."""
        peer = self._peers.get(device)
        return peer if peer is not None and peer.alive else None

    def hubs(self) -> list[OverlayPeer]:
        """Living links to hubs."""
        return [peer for peer in self.peers() if peer.role == "hub"]

    def pass_on(self, notice: VerifiedNotice) -> None:
        """Give a notice to every neighbour that is behind it."""
        for device in self._business.behind([peer.device for peer in self.peers()]):
            self._peers[device].send(wire.Notice(timestamp=notice.data))
        self.state_changed()

    def announce(self) -> int:
        """Give the newest notice to every neighbour again; returns to how many."""
        data = self._business.newest_notice()
        peers = self.peers()
        if data is not None:
            for peer in peers:
                peer.send(wire.Notice(timestamp=data))
        return len(peers) if data is not None else 0

    def state_changed(self) -> None:
        """Tell everyone soon what we are at."""
        self._state_dirty.set()

    def look_around(self) -> None:
        """Consider now whom to dial: something changed."""
        self._upkeep.set()

    def start(self) -> None:
        """Begin to look for hubs and neighbours."""
        self._vital.spawn(self._tell(), "tell")
        self._vital.spawn(self._keep_up(), "keep up")

    async def close(self) -> None:
        """Stop looking; the links are closed by their owner."""
        await self._vital.close()
        await self._tasks.close()

    async def reach(self, address: NodeAddress, timeout_s: float = limits.DIAL_TIMEOUT_S) -> OverlayPeer:
        """An overlay link to this very device. Raises TransportError or NotAMember."""
        link = await self._links.dial(address, wire.ALPN_OVERLAY, timeout_s)
        peer = self._peers.get(link.member.device)
        if peer is None or peer.link is not link:
            # The handler that registers the peer runs as a task of its own; it has not begun yet.
            await asyncio.sleep(0)
            peer = self._peers[link.member.device]
        return peer

    # --- one link -------------------------------------------------------------------------------

    async def _run_link(self, link: Link, outgoing: bool) -> None:  # noqa: FBT001 - the handler's protocol
        peer = OverlayPeer(link, outgoing=outgoing, ledger=self._ledger, monotonic=self._monotonic)
        self._peers[peer.device] = peer
        self._note(peer)
        _log.info(
            "linked", extra={"fields": {"peer": peer.device[:16], "role": peer.role, "outgoing": outgoing}}
        )
        peer.send(self._business.own_state())
        if self._role != "publisher":
            peer.send(wire.Directory(entries=self._introductions(peer)))
        self._business.on_peer(peer)
        try:
            await peer.run(self._on_message, self._on_request)
        finally:
            if self._peers.get(peer.device) is peer:
                del self._peers[peer.device]
            self._business.on_peer_gone(peer)
            self._upkeep.set()
            _log.info("unlinked", extra={"fields": {"peer": peer.device[:16], "role": peer.role}})

    def _note(self, peer: OverlayPeer) -> None:
        """Remember how to dial it, if it is there to stay."""
        if peer.role != "publisher":
            self.book.met(peer.address, peer.role, self._monotonic())

    def _introductions(self, to: OverlayPeer) -> list[wire.DirectoryEntry]:
        """Devices that we know to be up, for one that may need neighbours: a random few."""
        others = [peer for peer in self.peers() if peer.device != to.device and peer.role != "publisher"]
        self._rng.shuffle(others)
        return [wire.DirectoryEntry(address=peer.address, role=peer.role) for peer in others[:INTRODUCED_MAX]]

    async def _on_message(self, peer: OverlayPeer, message: wire.Message) -> None:
        match message:
            case wire.State():
                self._on_state(peer, message)
            case wire.Notice(timestamp=data):
                self._business.on_notice(data, peer)
            case wire.Observed(addr=addr):
                peer.observed_us = addr
                self._business.on_peer_state(peer)
            case wire.Directory(entries=entries):
                self.book.learn(entries, self._monotonic())
                self._upkeep.set()
            case wire.ReportCarried(envelope=envelope):
                self._business.on_report(envelope, peer)
            case wire.ReportStored():
                self._business.on_report_stored(message, peer)
            case _:
                handler = self.frames.get(type(message))
                if handler is None:
                    self._ledger.drop("frame-out-of-place", peer.device, type(message).__name__)
                else:
                    handler(message, peer)

    def _on_state(self, peer: OverlayPeer, state: wire.State) -> None:
        first = not peer.state.addrs and bool(state.addrs)
        peer.take_state(state)
        self._note(peer)
        self._business.on_peer_state(peer)
        data = self._business.newest_notice()
        if data is not None and self._business.behind([peer.device]):
            peer.send(wire.Notice(timestamp=data))
        if first and self._introduces and peer.role == "agent":
            self._introduce(peer)

    @property
    def _introduces(self) -> bool:
        """Hubs introduce; where there is none, everyone does."""
        return self._role == "hub" or (self._role == "agent" and not self.hubs())

    def _introduce(self, newcomer: OverlayPeer) -> None:
        """Tell some of the others of a newcomer, so that both sides dial: NATs open to what goes out."""
        others = [peer for peer in self.peers() if peer.role == "agent" and peer.device != newcomer.device]
        self._rng.shuffle(others)
        entry = wire.DirectoryEntry(address=newcomer.address, role=newcomer.role)
        for peer in others[:INTRODUCED_MAX]:
            peer.send(wire.Directory(entries=[entry]))

    async def _on_request(self, peer: OverlayPeer, stream: Stream) -> None:
        message = await stream.read_frame(limits.FRAME_BYTES_MAX, limits.READ_TIMEOUT_S)
        if message is None:
            return
        if isinstance(message, wire.UnknownFrame):
            self._ledger.drop("frame-unknown", peer.device)
            await stream.reset(1)
            return
        await self._business.on_request(peer, message, stream)

    # --- upkeep ---------------------------------------------------------------------------------

    async def _tell(self) -> None:
        """Send our state when it changed, and every 30 s, so that versions get compared."""
        while True:
            try:
                async with asyncio.timeout(limits.COMPARE_INTERVAL_S):
                    await self._state_dirty.wait()
            except TimeoutError:
                pass  # nothing changed: it is time to compare
            else:
                # Not a wait for something to become true: changes come in bursts and one frame tells them all.
                await asyncio.sleep(STATE_DELAY_S)
            self._state_dirty.clear()
            state = self._business.own_state()
            for peer in self.peers():
                peer.send(state)

    async def _keep_up(self) -> None:
        while True:
            self._upkeep.clear()
            if self._role != "publisher":
                self._dial_some()
                self._introduce_again()
            next_look = self.book.next_look(self._monotonic())
            wait_s = UPKEEP_S if next_look is None else min(next_look - self._monotonic(), UPKEEP_S)
            try:
                async with asyncio.timeout(max(wait_s, 0.0)):
                    await self._upkeep.wait()
            except TimeoutError:
                continue

    def _introduce_again(self) -> None:
        """Without a hub, tell neighbours of each other now and then: who came meanwhile knows only a few."""
        now = self._monotonic()
        if self._role == "agent" and not self.hubs() and now - self._introduced_at >= REINTRODUCE_S:
            self._introduced_at = now
            for peer in self.peers():
                peer.send(wire.Directory(entries=self._introductions(peer)))

    def _dial_some(self) -> None:
        self.book.set_own_addresses(self._business.own_state().addrs)
        ties = [self._tie(peer) for peer in self.peers()]
        if self._role == "agent":
            for device in choose_prunes(ties, neighbours_max=self.neighbours_max):
                self._peers[device].close("more neighbours than are needed")
        chosen = self.book.choose(
            ties,
            self._monotonic(),
            self._rng.random,
            own_role=self._role,
            # Hubs know each other all: whatever one learns reaches every other one in one step.
            hubs_max=limits.HUBS_ACTIVE_MAX if self._role == "agent" else limits.TICKET_HUBS_MAX,
            neighbours_max=self.neighbours_max,
        )
        for address in chosen:
            self.book.dialling(DeviceId(address.device))
            if self._tasks.spawn(self._dial(address), f"dial {address.device[:8]}") is None:
                return

    def _tie(self, peer: OverlayPeer) -> Tie:
        return Tie(
            device=peer.device,
            role=peer.role,
            outgoing=peer.outgoing,
            since=peer.since,
            path=peer.link.connection.path().kind,
            busy=self._business.is_busy(peer.device),
            announced=self.book.is_announced(peer.device),
        )

    async def _dial(self, address: NodeAddress) -> None:
        device = DeviceId(address.device)
        try:
            await self._links.dial(address, wire.ALPN_OVERLAY)
        except DriftseedError as error:
            self.book.failed(device, self._monotonic(), self._rng.random)
            _log.info(
                "cannot reach",
                extra={"fields": {"peer": device[:16], "reason": error.reason, "why": error.message}},
            )
            self._upkeep.set()
        finally:
            self.book.dialled(device)
