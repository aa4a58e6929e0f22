"""Keeps the trusted metadata newest: takes notices, passes them on, refreshes, tells who must know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol

from driftseed.core import wire
from driftseed.core.errors import (
    DriftseedError,
    MetadataExpired,
    MetadataInvalid,
    MetadataReplayed,
    TransportError,
    TrustError,
)
from driftseed.core.gossip import Move, NoticeBook
from driftseed.core.ids import DeviceId
from driftseed.core.verified import VerifiedFleet, VerifiedNotice
from driftseed.node.files import FETCH_TIMEOUT_S, TIMESTAMP_NAME, FilePeer, PeerSource
from driftseed.node.ledger import Ledger
from driftseed.node.peer import OverlayPeer
from driftseed.trust.device import FleetTrust, MetadataSource

_log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
"""Seconds between refreshes that failed though a newer version is known; doubled up to the maximum."""
LOOK_EVERY_S: Final = 30.0
"""Seconds between refreshes that one neighbour may cause whose notices do not verify: its root may be newer."""
SUSPECT_TIMEOUT_S: Final = 5.0
"""Seconds that such a neighbour has for each file: meanwhile nobody else's news is fetched."""
LOOKED_AT_MAX: Final = 256
"""Neighbours for which that is remembered."""
EQUIVOCATION: Final = "metadata-equivocation"
"""Refusal: one timestamp version, properly signed twice over different snapshots."""
INVALID_NOTICES_MAX: Final = 8
"""Notices that do not verify after which a neighbour loses its link."""


class Neighbourhood(Protocol):
    """What the keeper needs of the overlay."""

    def peers(self) -> Sequence[OverlayPeer]:
        """Living overlay links."""

    def pass_on(self, notice: VerifiedNotice) -> None:
        """Give a notice to every neighbour that is behind it."""

    def state_changed(self) -> None:
        """Our State frame is not true any more."""


class MetadataKeeper:
    """The newest trusted metadata of a node.

    Args:
        trust: the verifier, with its files on disk.
        neighbourhood: the overlay.
        ledger: where refusals are counted.
        on_fleet: called in the event loop after each change of the trusted metadata.
        monotonic: seconds.
    """

    def __init__(
        self,
        trust: FleetTrust,
        neighbourhood: Neighbourhood,
        ledger: Ledger,
        on_fleet: Callable[[VerifiedFleet], Awaitable[None]],
        monotonic: Callable[[], float],
    ) -> None:
        self.trust = trust
        self.fleet: VerifiedFleet | None = trust.load()
        self.notice: VerifiedNotice | None = None
        """The newest notice that verified; it may be ahead of ``fleet``."""
        self.reconcile: Callable[[bytes, bytes], bytes | None] | None = None
        """Settles two timestamps that were signed apart, for those who hold the timestamp key (ours, theirs)."""
        self._neighbourhood = neighbourhood
        self._ledger = ledger
        self._on_fleet = on_fleet
        self._monotonic = monotonic
        self._wake = asyncio.Event()
        self._sender: DeviceId | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._book = NoticeBook(self.ready)
        self._looked_at: dict[DeviceId, float] = {}
        self._shown: dict[DeviceId, float] = {}
        self._suspect: OverlayPeer | None = None
        self._trusting = asyncio.Lock()
        """python-tuf's client is single: one refresh at a time uses its directory."""

    @property
    def ready(self) -> int:
        """Newest timestamp version for which every file can be served; 0 before the first."""
        return self.fleet.timestamp_version if self.fleet else 0

    @property
    def known(self) -> int:
        """Newest timestamp version known to be signed."""
        return max(self.ready, self.notice.version if self.notice else 0)

    @property
    def snapshot_known(self) -> int:
        """Snapshot version that the newest timestamp names."""
        if self.notice is not None and self.notice.version >= self.ready:
            return self.notice.snapshot_version
        return self.fleet.snapshot_version if self.fleet else 0

    def newest(self) -> bytes | None:
        """The newest timestamp.json, to tell others."""
        if self.notice is not None and self.notice.version >= self.ready:
            return self.notice.data
        return self.trust.serve(TIMESTAMP_NAME)

    def when_ready(self, version: int) -> asyncio.Future[None] | None:
        """A future that ends when that version can be served; None if it can now, or is not even known of."""
        if version <= self.ready or version > self.known:
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = [(wanted, other) for wanted, other in self._waiting if not other.done()]
        self._waiting.append((version, future))
        return future

    def offer(self, data: bytes, sender: OverlayPeer) -> None:
        """Take a notice from a neighbour: pass on and fetch what it announces, or refuse it."""
        if not self._book.first_sight(data, sender.device):
            return
        try:
            notice = self.trust.check_notice(data)
        except TrustError as error:
            self._ledger.refuse_error(error, sender.device)
            if self._book.invalid(sender.device, error.reason) >= INVALID_NOTICES_MAX:
                sender.close("notices that do not verify")
            elif isinstance(error, MetadataInvalid):
                self._look_at(sender)
            return
        if notice.version < self.known:
            self._ledger.refuse(
                MetadataReplayed.reason,
                sender.device,
                f"timestamp version {notice.version} offered, version {self.known} is trusted",
            )
            return
        if self.reconcile is None and self._contradicts(notice):
            self._ledger.refuse(
                EQUIVOCATION,
                sender.device,
                f"timestamp {notice.version} is signed over snapshot {notice.snapshot_version} there and over "
                f"snapshot {self.snapshot_known} here: a holder of the timestamp key tells two stories",
            )
        if self.reconcile is not None:
            rival = self.newest()
            settled = self.reconcile(rival, data) if rival is not None else None
            if settled is not None:
                notice = self.trust.check_notice(settled)
        self.accept(notice, sender.device)

    def accept(self, notice: VerifiedNotice, sender: DeviceId | None) -> None:
        """Take a notice that verified: neighbours first, they need not wait for our refresh."""
        if not self._book.learn(notice, sender):
            return
        self.notice = notice
        self._sender = sender
        _log.info("notice", extra={"fields": {"version": notice.version, "from": (sender or "here")[:16]}})
        self._neighbourhood.pass_on(notice)
        self._wake.set()

    def peer_state(self, peer: OverlayPeer) -> None:
        """A neighbour says what it is at: it may have what a failed refresh lacked, or be ahead of us."""
        if self._book.heard(peer.device, peer.state.timestamp_version) is Move.REQUEST_REFRESH:
            # Its notice will come, or has come and did not verify: then its root may be newer than ours,
            # or our clock was wrong when it came.
            self._look_at(peer)
        if (self.known > self.ready or self.fleet is None) and peer.state.ready >= self.known:
            self._wake.set()
        if self._rivals(peer.state) and (newest := self.newest()) is not None:
            peer.send(wire.Notice(timestamp=newest))

    def _rivals(self, theirs: wire.State) -> bool:
        """Whether a neighbour holds another timestamp of our version, over an older snapshot: a hub can settle it."""
        return (
            self.fleet is not None
            and theirs.timestamp_version == theirs.ready == self.ready == self.known
            and theirs.snapshot_version < self.fleet.snapshot_version
        )

    def _contradicts(self, notice: VerifiedNotice) -> bool:
        """Whether our version was signed again, over something else, by a thief, a lying hub, or two hubs at once."""
        return notice.version == self.known and notice.snapshot_version != self.snapshot_known

    def peer_gone(self, peer: OverlayPeer) -> None:
        """A link ended."""
        self._book.forget(peer.device)

    def recipients(self, linked: Collection[DeviceId]) -> tuple[DeviceId, ...]:
        """Neighbours that are to be given the newest notice."""
        return self._book.recipients(linked)

    def _look_at(self, peer: OverlayPeer) -> None:
        """Have a whole refresh run against one neighbour, seldom: it costs more than a notice."""
        now = self._monotonic()
        if now - self._looked_at.get(peer.device, float("-inf")) < LOOK_EVERY_S:
            return
        if len(self._looked_at) >= LOOKED_AT_MAX:
            self._looked_at.clear()
        self._looked_at[peer.device] = now
        self._suspect = peer
        self._wake.set()
        # Its root may be the older one: then ours does not verify there, and it looks at us.
        self._show(peer)

    def _show(self, peer: OverlayPeer) -> None:
        """Give a neighbour our timestamp.json though it is not behind, seldom."""
        now = self._monotonic()
        data = self.newest()
        if data is None or now - self._shown.get(peer.device, float("-inf")) < LOOK_EVERY_S:
            return
        if len(self._shown) >= LOOKED_AT_MAX:
            self._shown.clear()
        self._shown[peer.device] = now
        peer.send(wire.Notice(timestamp=data))

    async def run(self) -> None:
        """Refresh whenever a newer version is known, until cancelled."""
        delay = RETRY_FIRST_S
        if self.fleet is not None:
            await self._on_fleet(self.fleet)
        else:
            self._wake.set()
        while True:
            behind = self.known > self.ready
            try:
                async with asyncio.timeout(delay if behind else None):
                    await self._wake.wait()
            except TimeoutError:
                delay = min(delay * 2, RETRY_MAX_S)
            else:
                delay = RETRY_FIRST_S
            self._wake.clear()
            if self.known > self.ready or self.fleet is None:
                await self._refresh_from_anyone()
            if (suspect := self._suspect) is not None:
                self._suspect = None
                await self._refresh([suspect], None, SUSPECT_TIMEOUT_S)

    async def _refresh_from_anyone(self) -> None:
        peers = [peer for peer in self._neighbourhood.peers() if peer.state.ready >= self.known]
        others = [peer for peer in self._neighbourhood.peers() if peer not in peers]
        ordered = peers + others
        ordered.sort(key=lambda peer: peer.device != self._sender)
        if not ordered:
            return
        notice = self.notice
        await self._refresh(ordered, notice if notice and notice.version > self.ready else None)

    async def _refresh(
        self,
        peers: Sequence[OverlayPeer],
        notice: VerifiedNotice | None,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        source = PeerSource(
            [FilePeer(peer.device, peer.link.connection) for peer in peers],
            asyncio.get_running_loop(),
            self._ledger,
            timestamp=notice.data if notice else None,
            version=notice.version if notice else 0,
            timeout_s=timeout_s,
        )
        try:
            await self.refresh(source)
        except TransportError as error:
            _log.info("refresh failed", extra={"fields": {"reason": error.reason, "detail": error.message}})
        except TrustError as error:
            if notice is not None and self.notice is notice and isinstance(error, MetadataExpired):
                self.notice = None
            self._ledger.refuse_error(error, peers[0].device)
        except DriftseedError as error:
            _log.warning(
                "refresh failed", extra={"fields": {"reason": error.reason, "detail": error.message}}
            )

    async def refresh(self, source: MetadataSource) -> VerifiedFleet:
        """Run the trust workflow once against a source, and tell everyone about what is new.

        Raises:
            TrustError: what the source gave does not verify; the trusted metadata is what it was.
            TransportError: the source failed.
            DiskFull: it verified and could not be kept.
        """
        async with self._trusting:
            before, root_before = self.ready, self.fleet.root_version if self.fleet else 0
            fleet = await asyncio.to_thread(self.trust.refresh, source)
            self.fleet = fleet
        if fleet.root_version > root_before and fleet.timestamp_version < max(before, self._book.newest):
            self._fall_back(fleet)
            before = 0
        for disagreement in fleet.disagreements:
            self._ledger.refuse("roles-disagree", "", disagreement)
        if fleet.timestamp_version > self._book.newest:
            self._announce_refreshed()
        if fleet.timestamp_version > before:
            _log.info("metadata", extra={"fields": {"version": fleet.timestamp_version}})
            for wanted, future in self._waiting:
                if wanted <= fleet.timestamp_version and not future.done():
                    future.set_result(None)
            self._neighbourhood.state_changed()
            await self._on_fleet(fleet)
        return fleet

    def _fall_back(self, fleet: VerifiedFleet) -> None:
        """A newer root has another timestamp key: what was signed with the old one, of any version, is void."""
        if self.notice is not None:
            try:
                self.trust.check_notice(self.notice.data)
            except TrustError:
                self.notice = None
            else:
                return
        _log.warning("versions begin anew", extra={"fields": {"version": fleet.timestamp_version}})
        self._book.restart(fleet.timestamp_version - 1)

    def _announce_refreshed(self) -> None:
        """A refresh found what no notice had told: the neighbours hear of it from us."""
        data = self.trust.serve(TIMESTAMP_NAME)
        if data is not None:
            self.accept(self.trust.check_notice(data), None)
