"""Where this node is: how others see it, which relays it listens on, who is on its networks with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from driftseed.core import limits
from driftseed.core.errors import Misuse, TransportError
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import NodeAddress
from driftseed.core.neighbours import DirectoryBook
from driftseed.net.endpoint import Endpoint
from driftseed.net.lan import LanDiscovery
from driftseed.node.ledger import Ledger
from driftseed.node.overlay import Overlay
from driftseed.node.peer import OverlayPeer
from driftseed.node.tasks import TaskOwner


class Whereabouts:
    """Keeps a node's own addresses true, and has it look around when they change.

    Args:
        endpoint: told how others see us, and of relays.
        overlay: told when we are somewhere else.
        book: told who is near.
        ledger: where faults are counted.
        fail: told when watching the network fails for good.
        follow_relays: listen on the relays of hubs and neighbours; a hub has its own.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        overlay: Overlay,
        book: DirectoryBook,
        ledger: Ledger,
        fail: Callable[[BaseException], None],
        *,
        follow_relays: bool,
    ) -> None:
        self._endpoint = endpoint
        self._overlay = overlay
        self._book = book
        self._ledger = ledger
        self._follow_relays = follow_relays
        self._vital = TaskOwner("whereabouts", fail)
        self._tasks = TaskOwner("whereabouts")
        self.observed: dict[DeviceId, str] = {}
        """Our address as others see it, by who says so."""
        self.lan: LanDiscovery | None = None
        self._signed_relays: tuple[str, ...] = ()
        self._own_relay: str | None = None
        self._relays_in_use: tuple[str, ...] | None = None
        self._setting_relays = asyncio.Lock()

    def start(self) -> None:
        """Begin to watch the network."""
        self._vital.spawn(self._watch(), "network")
        if self.lan is not None:
            self._tasks.spawn(self.lan.run(), "lan")

    async def close(self) -> None:
        """Stop watching, and say goodbye on the LAN."""
        await self._vital.close()
        await self._tasks.close()

    def discover(self, fleet: FleetId, interfaces: Sequence[str]) -> None:
        """From ``start`` on, find members on our networks by mDNS, and be found."""

        def found(address: NodeAddress) -> None:
            self._book.announced(address, time.monotonic())
            self._overlay.look_around()

        self.lan = LanDiscovery(
            self._endpoint.device,
            fleet,
            bound=lambda: self._endpoint.bound,
            found=found,
            moved=self._book.left_network,
            dropped=self._ledger.drop,
            interfaces=interfaces,
        )

    def peer_said(self, peer: OverlayPeer) -> None:
        """A neighbour may say now that it sees us somewhere else than before, or that it has a relay.

        A hub is believed, and while there is none whoever does a hub's work; others when two of them say the same.
        """
        self._choose_relays()
        seen, before = peer.observed_us, self.observed.get(peer.device)
        if seen is None or seen == before:
            return
        self.observed[peer.device] = seen
        self._not_seen_at(before)
        agree = sum(1 for addr in self.observed.values() if addr == seen)
        trusted = peer.role == "hub" or (peer.state.offers_relay and not self._overlay.hubs())
        if trusted or agree > 1:
            self._tasks.spawn(self._tell_engine(self._endpoint.add_external, seen), "observed")

    def peer_gone(self, peer: OverlayPeer) -> None:
        """A neighbour that saw us is gone."""
        self._choose_relays()
        self._not_seen_at(self.observed.pop(peer.device, None))

    def use_relays(self, relays: Sequence[str]) -> None:
        """Be reachable through any of these, so that the relay of a lost hub is not missed."""
        self._signed_relays = tuple(relays)
        self._choose_relays()

    def use_own_relay(self, url: str | None) -> None:
        """While there is no hub, be reachable through a relay that we serve ourselves; None: there is none any more."""
        self._own_relay = url
        self._choose_relays()

    def _choose_relays(self) -> None:
        """The hubs' relays; while no hub is there also our own, if we have found one out, and what neighbours offer."""
        wanted = set(self._signed_relays)
        if not self._overlay.hubs():
            offered = {peer.state.offers_relay for peer in self._overlay.peers() if peer.state.offers_relay}
            wanted.update(sorted(offered - wanted)[: limits.RELAYS_OFFERED_MAX])
            if self._own_relay is not None:
                wanted.add(self._own_relay)
        chosen = tuple(sorted(wanted))
        if self._follow_relays and chosen != self._relays_in_use:
            self._relays_in_use = chosen
            self._tasks.spawn(self._set_relays(), "relays")

    async def _set_relays(self) -> None:
        try:
            # One after the other, and each time what is wanted then: the last one is right.
            async with self._setting_relays:
                await self._endpoint.set_relays(self._relays_in_use or ())
        except (Misuse, TransportError) as error:
            # Signed, and still of no use: the others are.
            self._ledger.refuse_error(error)

    def _not_seen_at(self, addr: str | None) -> None:
        """Take an address back that nobody sees us at any more."""
        if addr is not None and addr not in self.observed.values():
            self._tasks.spawn(self._tell_engine(self._endpoint.remove_external, addr), "observed")

    async def _tell_engine(self, change: Callable[[str], Awaitable[None]], addr: str) -> None:
        try:
            await change(addr)
        except TransportError as error:
            # What others say of us must not be able to end us.
            self._ledger.drop(error.reason, "", error.message)
        self._overlay.state_changed()

    async def _watch(self) -> None:
        changed = asyncio.Event()
        watch = self._endpoint.on_address_change(changed.set)
        try:
            while True:
                await changed.wait()
                changed.clear()
                self._book.forgive()
                if self.lan is not None:
                    self.lan.network_changed()
                self._overlay.look_around()
                self._overlay.state_changed()
        finally:
            await watch.stop()
