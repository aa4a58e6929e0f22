"""Content: what this node holds, what it fetches, what it serves; and the engine that does the work.

The engine runs only while there is something to carry. Who to exchange with is ``node.swarming``'s business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Final

from driftseed.core import limits
from driftseed.core.errors import (
    ContentMismatch,
    DeviceError,
    DiskFull,
    DriftseedError,
    EngineFailed,
    FileMissing,
    StoreDamaged,
)
from driftseed.core.ids import Digest
from driftseed.core.model import Artifact
from driftseed.core.verified import VerifiedArtifact, VerifiedFleet, VerifiedRelease, VerifiedTorrent
from driftseed.node.ledger import Ledger
from driftseed.node.links import Links
from driftseed.node.metadata import MetadataKeeper
from driftseed.node.overlay import Overlay
from driftseed.node.peer import OverlayPeer
from driftseed.node.swarming import Swarming
from driftseed.node.tasks import TaskOwner
from driftseed.node.transfer import ContentSettings, Transfer
from driftseed.store.files import free_bytes
from driftseed.swarm import protocol
from driftseed.swarm.adoption import adopt
from driftseed.swarm.client import Engine
from driftseed.swarm.content import ContentStore

_log = logging.getLogger(__name__)

ENGINE_IDLE_S: Final = 30.0
"""Seconds without a transfer or a peer after which the engine's process is ended."""
SPACE_POLL_S: Final = 5.0
"""Seconds between looks at the free space while a transfer waits for some: no event tells of it."""
KEEP_RETRY_S: Final = 30.0
"""Seconds before a content that could not be kept is tried again."""
ENGINE_RETRY_S: Final = 10.0
"""Seconds before a transfer tries again after the engine was given up."""


class Contents:
    """The content of one node.

    Args:
        keeper: knows which torrents are signed.
        store: the files.
        monotonic: seconds.
    """

    def __init__(
        self,
        links: Links,
        overlay: Overlay,
        keeper: MetadataKeeper,
        ledger: Ledger,
        store: ContentStore,
        settings: ContentSettings,
        monotonic: Callable[[], float],
    ) -> None:
        self.store = store
        self.settings = settings
        self._keeper = keeper
        self._overlay = overlay
        self._ledger = ledger
        self._monotonic = monotonic
        self._transfers: dict[Digest, Transfer] = {}
        self._taken_in: set[Digest] = set()
        """Being copied here from a local file: not fetched meanwhile."""
        self._tasks = TaskOwner("content")
        self._busy_at = monotonic()
        self._starting = asyncio.Lock()
        self.engine = Engine(
            self._on_event, upload_limit=settings.upload_limit, download_limit=settings.download_limit
        )
        self.swarming = Swarming(links, overlay, ledger, self.engine, self.carry, self._bytes_here, monotonic)
        self.swarming.tunnels.relay_budget.change(settings.relay_budget)
        self.on_change: Callable[[Transfer], None] = lambda _transfer: None
        """Called when a transfer makes progress or is held up."""

    def start(self) -> None:
        """Begin to serve."""
        self.swarming.site.start()
        self._tasks.spawn(self._rest(), "rest")

    async def close(self) -> None:
        """End all transfers (they go on after the next start) and the engine."""
        await self._tasks.close()
        await self.swarming.close()
        await self.engine.stop()

    def _bytes_here(self, sha256: Digest) -> int:
        transfer = self._transfers.get(sha256)
        return 0 if transfer is None else transfer.done

    # --- what is here ---------------------------------------------------------------------------

    def holdings(self) -> tuple[list[str], list[str]]:
        """SHA-256 of what is here whole, and of what is being fetched."""
        wants: list[str] = list(self._transfers)
        has: list[str] = list(self.store.digests())
        return has[: limits.CONTENT_IDS_MAX], wants[: limits.CONTENT_IDS_MAX]

    def transfer(self, sha256: Digest) -> Transfer | None:
        """The transfer of an artifact that is under way."""
        return self._transfers.get(sha256)

    def transfers(self) -> list[Transfer]:
        """All that are under way."""
        return list(self._transfers.values())

    def peer_changed(self, peer: OverlayPeer) -> None:
        """A neighbour may have what is wanted."""
        self.swarming.peer_changed(peer)

    def fleet_changed(self, fleet: VerifiedFleet) -> None:
        """Content that no deployment in force names is served no longer."""
        named = {
            artifact.sha256
            for deployment in fleet.deployments
            for artifact in deployment.release.manifest.artifacts
        }
        for sha256 in self.engine.carried - named:
            self._tasks.spawn(self.engine.remove(sha256), "uncarry")

    # --- fetching -------------------------------------------------------------------------------

    def obtain(self, release: VerifiedRelease, artifact: Artifact) -> Transfer:
        """Have an artifact fetched; the transfer that is under way if there is one."""
        sha256 = Digest(artifact.sha256)
        transfer = self._transfers.get(sha256)
        if transfer is None:
            arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # Nobody may be waiting when it fails: the owner of the update asks again.
            arrived.add_done_callback(lambda done: done.cancelled() or done.exception())
            transfer = Transfer(release, artifact, arrived)
            if self.store.has(sha256):
                arrived.set_result(None)
                return transfer
            self._transfers[sha256] = transfer
            if sha256 not in self._taken_in:
                transfer.task = self._tasks.spawn(self._fetch(transfer), f"fetch {sha256[:8]}")
            self._overlay.state_changed()
        return transfer

    async def keep(self, release: VerifiedRelease, artifact: Artifact) -> None:
        """Fetch and verify an artifact to serve it, as hubs and agents in proxy mode do, until it is here."""
        while True:
            try:
                await self.obtain(release, artifact).arrived
                await self.verify(artifact)
            except ContentMismatch as error:
                # The torrent is of something else: to fetch that again at once would go on for ever.
                self._ledger.refuse_error(error)
                await asyncio.sleep(KEEP_RETRY_S)
            except (FileMissing, DiskFull) as error:
                _log.warning("cannot keep", extra={"fields": {"reason": error.reason, "why": error.message}})
                await asyncio.sleep(KEEP_RETRY_S)
            else:
                return

    async def take_in(self, sha256: Digest, path: Path) -> None:
        """Keep a file that was handed in locally and whose SHA-256 was checked on the way.

        Raises:
            ContentMismatch: it is another file after all. DiskFull: there is no room for it.
        """
        if self.store.has(sha256):
            return
        length = (await asyncio.to_thread(path.stat)).st_size
        self._taken_in.add(sha256)
        try:
            transfer = self._transfers.get(sha256)
            if transfer is not None:
                if transfer.arrived.done():
                    return  # it has come the other way meanwhile
                await self._stop_fetching(transfer)
            for evicted in self.store.make_room(sha256, length):
                await self.engine.remove(evicted)
            await asyncio.to_thread(self.store.add_file, path, sha256)
        finally:
            self._taken_in.discard(sha256)
            self._hand_over(sha256)
        self._overlay.state_changed()

    def _hand_over(self, sha256: Digest) -> None:
        """Whoever waits for a content that was handed in has it now, or has it fetched after all."""
        transfer = self._transfers.get(sha256)
        if transfer is None or transfer.arrived.done():
            return
        if self.store.has(sha256):
            del self._transfers[sha256]
            transfer.done = transfer.artifact.length
            transfer.arrived.set_result(None)
            self.on_change(transfer)
        else:
            transfer.task = self._tasks.spawn(self._fetch(transfer), f"fetch {sha256[:8]}")

    async def configure(self, settings: ContentSettings) -> None:
        """Take over other limits at once."""
        self.settings = settings
        self.store.quota_bytes = settings.quota_bytes
        self.swarming.tunnels.relay_budget.change(settings.relay_budget)
        await self.engine.set_limits(settings.upload_limit, settings.download_limit)

    async def abandon(self, sha256: Digest) -> None:
        """Stop fetching: nothing in force wants it any more. What is there of it is removed."""
        transfer = self._transfers.pop(sha256, None)
        if transfer is not None:
            transfer.arrived.cancel()
            await self._stop_fetching(transfer)
            self._overlay.state_changed()

    async def _stop_fetching(self, transfer: Transfer) -> None:
        if transfer.task is not None:
            transfer.task.cancel()
        await self.engine.remove(transfer.sha256)
        self.swarming.leave(transfer.sha256)
        self.store.discard(transfer.sha256)

    async def verify(self, artifact: Artifact) -> VerifiedArtifact:
        """Compare an arrived artifact with the signed length and SHA-256, and adopt it.

        Raises:
            ContentMismatch: it is something else; it is removed, so that it can be fetched anew.
            FileMissing: it has not arrived, or was evicted.
            DiskFull: it could not be made durable.
        """
        sha256 = Digest(artifact.sha256)
        trust = self._keeper.trust
        if self.store.has(sha256):
            path = self.store.path(sha256)
            try:
                verified = await asyncio.to_thread(trust.verify_artifact, artifact, path)
            except ContentMismatch:
                await self.engine.remove(sha256)
                self.store.remove(sha256)
                self._overlay.state_changed()
                raise
            self.store.touch(sha256)
            return verified
        partial = self.store.partial_path(sha256)
        if not partial.exists():
            self._transfers.pop(sha256, None)
            raise FileMissing(f"{artifact.filename} ({sha256[:16]}) has not arrived")
        torrent = self._signed_torrent(sha256)
        if torrent is None:
            raise FileMissing(f"the torrent of {artifact.filename} ({sha256[:16]}) is not in force any more")
        try:
            fetched = await asyncio.to_thread(trust.verify_artifact, artifact, partial)
        except ContentMismatch:
            await self.engine.remove(sha256)
            self.store.discard(sha256)
            self._transfers.pop(sha256, None)
            raise
        path = await adopt(self.engine, self.store, torrent, fetched)
        self._transfers.pop(sha256, None)
        self.swarming.leave(sha256)
        self._overlay.state_changed()
        return trust.renamed(fetched, path)

    async def _make_room(self, transfer: Transfer) -> None:
        for evicted in self.store.make_room(transfer.sha256, transfer.artifact.length):
            await self.engine.remove(evicted)
            self._overlay.state_changed()

    async def _fetch(self, transfer: Transfer) -> None:
        sha256 = transfer.sha256
        while True:
            try:
                torrent = self._keeper.trust.torrent(transfer.release, transfer.artifact)
                await self._make_room(transfer)
                await self.start_engine()
                await self.engine.fetch(torrent, self.store.directory)
            except (DiskFull, EngineFailed, StoreDamaged) as error:
                self._held_up(transfer, error)
                # What it waits for comes without an event: free space, a working engine, a torrent file.
                await asyncio.sleep(SPACE_POLL_S if isinstance(error, DiskFull) else ENGINE_RETRY_S)
                continue
            break
        self._goes_on(transfer)
        self.swarming.join(sha256)

    def _held_up(self, transfer: Transfer, error: DriftseedError) -> None:
        transfer.problem, transfer.detail = error.reason, error.message
        self.on_change(transfer)

    def _goes_on(self, transfer: Transfer) -> None:
        if transfer.problem:
            transfer.problem = transfer.detail = ""
            self.on_change(transfer)

    async def _wait_for_space(self, transfer: Transfer) -> None:
        """Resume a transfer that the disk stopped, once what is missing of it fits."""
        while transfer.sha256 in self._transfers and not transfer.arrived.done():
            missing = transfer.artifact.length - transfer.done
            if free_bytes(self.store.directory) >= missing + limits.DISK_MARGIN_BYTES:
                self._goes_on(transfer)
                await self.engine.resume(transfer.sha256)
                return
            await asyncio.sleep(SPACE_POLL_S)

    # --- the engine -----------------------------------------------------------------------------

    async def start_engine(self) -> None:
        """Have the engine run. Raises EngineFailed."""
        self._busy_at = self._monotonic()
        async with self._starting:
            await self.engine.start()

    async def carry(self, sha256: Digest) -> bool:
        """Have the engine serve an artifact that is here or on its way; False when neither.

        Raises:
            EngineFailed: it does not run.
        """
        if sha256 not in self._transfers:
            if not self.store.has(sha256):
                return False
            if sha256 not in self.engine.carried:
                torrent = self._signed_torrent(sha256)
                if torrent is None:
                    return False
                await self.engine.seed(
                    torrent, self.store.path(sha256), super_seed=bool(self.settings.super_seed)
                )
            self.store.touch(sha256)
        await self.start_engine()
        return True

    def _signed_torrent(self, sha256: Digest) -> VerifiedTorrent | None:
        fleet = self._keeper.fleet
        for deployment in fleet.deployments if fleet else ():
            for artifact in deployment.release.manifest.artifacts:
                if artifact.sha256 == sha256:
                    try:
                        return self._keeper.trust.torrent(deployment.release, artifact)
                    except StoreDamaged:
                        continue
        return None

    async def _rest(self) -> None:
        """End the engine when there is nothing to carry."""
        while True:
            await asyncio.sleep(ENGINE_IDLE_S / 2)
            busy = self.swarming.active or any(not each.arrived.done() for each in self._transfers.values())
            now = self._monotonic()
            if busy:
                self._busy_at = now
            elif self.engine.running and now - self._busy_at >= ENGINE_IDLE_S:
                async with self._starting:
                    _log.info("engine rests")
                    await self.engine.stop()

    def _on_event(self, event: protocol.Event) -> None:
        match event:
            case protocol.Progress():
                transfer = self._transfers.get(Digest(event.sha256))
                if transfer is not None and not event.checking:
                    transfer.done, transfer.rate = event.done, event.rate_down
                    self.on_change(transfer)
            case protocol.Completed(sha256=sha256):
                transfer = self._transfers.get(Digest(sha256))
                if transfer is not None and not transfer.arrived.done():
                    transfer.done = transfer.artifact.length
                    transfer.arrived.set_result(None)
                    self.on_change(transfer)
            case protocol.StorageFailed(sha256=sha256):
                self._storage_failed(event)
            case protocol.Failed(sha256=sha256, message=message):
                _log.warning("engine", extra={"fields": {"content": sha256[:16], "message": message}})
            case protocol.GaveUp(message=message):
                for transfer in self._transfers.values():
                    self._held_up(transfer, EngineFailed(f"the BitTorrent engine keeps dying: {message}"))
                self._tasks.spawn(self._revive(), "revive")
            case _:
                self.swarming.on_event(event)

    def _storage_failed(self, event: protocol.StorageFailed) -> None:
        transfer = self._transfers.get(Digest(event.sha256))
        if transfer is None:
            return
        if event.errno in {ENOSPC, EDQUOT}:
            self._held_up(transfer, DiskFull(f"no space left while downloading: {event.message}"))
        else:
            self._held_up(transfer, DeviceError(f"the disk refuses: {event.message}"))
        self._tasks.spawn(self._wait_for_space(transfer), "space")

    async def _revive(self) -> None:
        """Give the engine another chance, after a while, as long as something wants it."""
        await asyncio.sleep(ENGINE_RETRY_S)
        if self._transfers:
            try:
                await self.start_engine()
            except EngineFailed as error:
                _log.error("engine", extra={"fields": {"reason": error.reason, "why": error.message}})
                self._tasks.spawn(self._revive(), "revive")
                return
            for transfer in self._transfers.values():
                self._goes_on(transfer)
