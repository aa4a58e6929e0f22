"""Spares a site's uplink: applies ``core.site`` to the links that there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from driftseed.core import wire
from driftseed.core.ids import DeviceId, Digest
from driftseed.core.neighbours import PathKind
from driftseed.core.site import HEARTBEAT_S, Election, Neighbour
from driftseed.core.swarming import Holder
from driftseed.net.link import Link
from driftseed.node.overlay import Overlay
from driftseed.node.peer import OverlayPeer
from driftseed.node.tasks import TaskOwner


class SiteUplink:
    """Decides for each content whether this device fetches it from outside.

    Args:
        own: this device.
        overlay: neighbours, and what they say.
        done: bytes that are here of a content that is being fetched.
        changed: told that a decision may be another one now.
        monotonic: seconds.
    """

    def __init__(
        self,
        own: DeviceId,
        overlay: Overlay,
        done: Callable[[Digest], int],
        changed: Callable[[Digest], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._own = own
        self._overlay = overlay
        self._done = done
        self._changed = changed
        self._monotonic = monotonic
        self._elections: dict[Digest, Election] = {}
        self._following: dict[Digest, bool] = {}
        self._tasks = TaskOwner("site")
        self.is_local: Callable[[DeviceId, PathKind], bool] = self._on_own_network
        """Whether a device, by the kind of the path to it, is behind the same uplink."""
        overlay.frames[wire.Fetching] = self._on_fetching

    def start(self) -> None:
        """Begin to say what we fetch."""
        self._tasks.spawn(self._say(), "say")

    async def close(self) -> None:
        """Stop."""
        await self._tasks.close()

    def join(self, sha256: Digest) -> None:
        """A content is wanted from now on."""
        self._elections[sha256] = Election(self._own, self._monotonic())

    def leave(self, sha256: Digest) -> None:
        """It is wanted no longer."""
        self._elections.pop(sha256, None)
        self._following.pop(sha256, None)

    def allowed(self, sha256: Digest, holders: Mapping[DeviceId, Holder]) -> dict[DeviceId, Holder]:
        """The holders of a content with which it may be exchanged now: all, or those behind the same uplink."""
        if not self.follows(sha256):
            return dict(holders)
        return {device: each for device, each in holders.items() if self.is_local(device, each.path)}

    def refuses(self, sha256: Digest, link: Link) -> bool:
        """Whether a device outside may not exchange this content with us: it would be a second copy."""
        return self.follows(sha256) and not self.is_local(link.member.device, link.connection.path().kind)

    def follows(self, sha256: Digest) -> bool:
        """Whether others fetch a content for us now."""
        election = self._elections.get(sha256)
        if election is None:
            return False
        follows = election.follows(self._neighbours(sha256), self._done(sha256), self._monotonic())
        self._following[sha256] = follows
        return follows

    def _neighbours(self, sha256: Digest) -> list[Neighbour]:
        return [
            Neighbour(peer.device, wants=sha256 in peer.state.wants, whole=sha256 in peer.state.has)
            for peer in self._overlay.peers()
            if peer.role != "publisher" and self._is_near(peer)
        ]

    def _is_near(self, peer: OverlayPeer) -> bool:
        return self.is_local(peer.device, peer.link.connection.path().kind)

    def _on_own_network(self, device: DeviceId, path: PathKind) -> bool:
        # Who is announced on our network and not yet linked will be reached on it.
        return path == "lan" or (path == "unknown" and self._overlay.book.is_announced(device))

    def _on_fetching(self, message: wire.Message, peer: OverlayPeer) -> None:
        if isinstance(message, wire.Fetching) and self._is_near(peer):
            election = self._elections.get(Digest(message.sha256))
            if election is not None:
                election.heard(peer.device, message.done, self._monotonic())

    async def _say(self) -> None:
        """Tell the neighbours what we fetch for them, and look for decisions that time has changed."""
        while True:
            # A heartbeat is a matter of time, and so is its absence.
            await asyncio.sleep(HEARTBEAT_S / 2)
            for sha256 in list(self._elections):
                before = self._following.get(sha256)
                if self.follows(sha256) != before:
                    self._changed(sha256)
            await asyncio.sleep(HEARTBEAT_S / 2)
            for sha256 in list(self._elections):
                if not self.follows(sha256):
                    self._tell(sha256)

    def _tell(self, sha256: Digest) -> None:
        message = wire.Fetching(sha256=sha256, done=self._done(sha256))
        for peer in self._overlay.peers():
            if peer.role == "agent" and sha256 in peer.state.wants and self._is_near(peer):
                peer.send(message)
