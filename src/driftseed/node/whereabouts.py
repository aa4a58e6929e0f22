"""Where this node is: how others see it, which relays it listens on, who is on its networks with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

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
    """

    def __init__(
        self,
        endpoint: Endpoint,
        overlay: Overlay,
        book: DirectoryBook,
        ledger: Ledger,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._endpoint = endpoint
        self._overlay = overlay
        self._book = book
        self._ledger = ledger
        self._vital = TaskOwner("whereabouts", fail)
        self._tasks = TaskOwner("whereabouts")
        self.observed: dict[DeviceId, str] = {}
        """Our address as others see it, by who says so."""
        self.lan: LanDiscovery | None = None

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
        """A neighbour may say now that it sees us somewhere else than before.

        A hub is believed, others when two of them say the same.
        """
        seen, before = peer.observed_us, self.observed.get(peer.device)
        if seen is None or seen == before:
            return
        self.observed[peer.device] = seen
        self._not_seen_at(before)
        agree = sum(1 for addr in self.observed.values() if addr == seen)
        if peer.role == "hub" or agree > 1:
            self._tasks.spawn(self._tell_engine(self._endpoint.add_external, seen), "observed")

    def peer_gone(self, peer: OverlayPeer) -> None:
        """A neighbour that saw us is gone."""
        self._not_seen_at(self.observed.pop(peer.device, None))

    def use_relays(self, relays: Sequence[str]) -> None:
        """Be reachable through any of these, so that the relay of a lost hub is not missed."""
        self._tasks.spawn(self._set_relays(relays), "relays")

    async def _set_relays(self, relays: Sequence[str]) -> None:
        try:
            await self._endpoint.set_relays(relays)
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
