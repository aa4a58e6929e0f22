"""With whom content is exchanged: finds the holders, opens tunnels to them, serves theirs."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from driftseed.core import limits, wire
from driftseed.core.errors import (
    DeviceError,
    DriftseedError,
    EngineFailed,
    LinkClosed,
    PeerMisbehaved,
    PeerUnreachable,
    TransportError,
)
from driftseed.core.ids import DeviceId, Digest
from driftseed.core.model import NodeAddress
from driftseed.core.neighbours import PathKind
from driftseed.core.swarming import Holder, choose_swarm_peers
from driftseed.net.connection import Connection
from driftseed.net.link import Link
from driftseed.net.stream import Stream
from driftseed.net.tunnel import TcpAddress, Tunnels
from driftseed.node import requests
from driftseed.node.ledger import Ledger
from driftseed.node.links import Links
from driftseed.node.overlay import Overlay
from driftseed.node.peer import OverlayPeer
from driftseed.node.site import SiteUplink
from driftseed.node.tasks import TaskOwner
from driftseed.swarm import protocol
from driftseed.swarm.client import Engine

_log = logging.getLogger(__name__)

ASK_FIRST_S: Final = 0.5
ASK_INTERVAL_S: Final = 10.0
"""Seconds between questions who has a content, while there is room for more peers: doubled each time from the
first, as a notice sets all devices looking at once, and those that ask first find nobody yet."""
ASKED_MAX: Final = 8
"""Peers that are asked at once, hubs first: one hub knows more than all neighbours together."""
ASKS_COUNTED_MAX: Final = 8
ROUND_MIN_S: Final = 0.3
"""Seconds between two rounds of a search: news of holders come in bursts."""
YIELD_S: Final = 0.3
"""Seconds that one of two devices leaves the other to dial it; behind a NAT that may be impossible."""
RETRY_S: Final = 2.0
RETRY_MAX_S: Final = 60.0
"""Seconds before a device is tried again that could not be reached for a content; doubled each time."""
BAD_PIECE: Final = "bad-piece"
"""Reason: a device sent pieces that do not have their signed hash, and is not asked again."""


@dataclass(slots=True)
class _Swarm:
    """The search for one content."""

    sha256: Digest
    found: dict[DeviceId, wire.DirectoryEntry] = field(default_factory=dict)
    """Holders that others told us of."""
    connected: dict[DeviceId, TcpAddress] = field(default_factory=dict)
    failures: Counter[DeviceId] = field(default_factory=Counter)
    retry_at: dict[DeviceId, float] = field(default_factory=dict)
    alive: dict[DeviceId, set[int]] = field(default_factory=dict)
    """Ports of the engine's connections with each device, whichever side made them."""
    ask_at: float = float("-inf")
    asked: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Swarming:
    """The tunnels of a node and what decides on them.

    Args:
        links: dialling; tunnel links are handled here.
        overlay: neighbours say what they have, and whom they know that has it.
        engine: told whom to connect to.
        carry: has the engine serve an artifact, if it is here.
        done: bytes that are here of a content that is being fetched.
        monotonic: seconds.
    """

    def __init__(
        self,
        links: Links,
        overlay: Overlay,
        ledger: Ledger,
        engine: Engine,
        carry: Callable[[Digest], Awaitable[bool]],
        done: Callable[[Digest], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._links = links
        self._overlay = overlay
        self._ledger = ledger
        self._engine = engine
        self._carry = carry
        self._monotonic = monotonic
        self._rng = random.SystemRandom()
        self._swarms: dict[Digest, _Swarm] = {}
        self._addresses: dict[DeviceId, NodeAddress] = {}
        self._roles: dict[DeviceId, str] = {}
        self._banned: set[DeviceId] = set()
        self._tasks = TaskOwner("swarming")
        self._table = links.handle(wire.ALPN_TUNNEL, self._run_link)
        self.tunnels = Tunnels(self._open)
        self.site = SiteUplink(links.device, overlay, done, self._reconsider, monotonic)

    @property
    def active(self) -> bool:
        """Whether any tunnel is open."""
        return self.tunnels.active > 0

    def is_active(self, device: DeviceId) -> bool:
        """Whether there is a tunnel link to a device."""
        return self._table.get(device) is not None

    def links(self) -> list[Link]:
        """Living tunnel links."""
        return self._table.links()

    def sources(self, sha256: Digest) -> Counter[str]:
        """Bytes of a content received so far by where they came from, such as ``hub/direct``, ``peer/lan``."""
        return self._count(sha256, "in")

    def sinks(self, sha256: Digest) -> Counter[str]:
        """Bytes of a content sent so far, likewise."""
        return self._count(sha256, "out")

    def _count(self, sha256: Digest, direction: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for flow, size in self.tunnels.carried.items():
            if flow.sha256 == sha256 and flow.direction == direction:
                role = self._roles.get(flow.device, "agent")
                total[f"{'peer' if role == 'agent' else role}/{flow.kind}"] += size
        return total

    async def close(self) -> None:
        """End all searches and tunnels."""
        await self.site.close()
        await self._tasks.close()
        await self.tunnels.close()

    # --- searching ------------------------------------------------------------------------------

    def join(self, sha256: Digest) -> None:
        """Look for holders of a content, until ``leave``."""
        if sha256 not in self._swarms:
            swarm = _Swarm(sha256)
            self._swarms[sha256] = swarm
            self.site.join(sha256)
            swarm.task = self._tasks.spawn(self._search(swarm), f"search {sha256[:8]}")

    def leave(self, sha256: Digest) -> None:
        """Stop looking; connections that there are stay as long as both engines want them."""
        self.site.leave(sha256)
        swarm = self._swarms.pop(sha256, None)
        if swarm is not None and swarm.task is not None:
            swarm.task.cancel()

    def peer_changed(self, peer: OverlayPeer) -> None:
        """A neighbour's state changed, or it has just come."""
        if len(self._roles) >= limits.DIRECTORY_KEPT_MAX:
            self._roles.clear()
        self._roles[peer.device] = peer.role
        for sha256 in (*peer.state.has, *peer.state.wants):
            swarm = self._swarms.get(Digest(sha256))
            if swarm is not None and peer.device not in swarm.connected:
                swarm.wake.set()

    def _reconsider(self, sha256: Digest) -> None:
        swarm = self._swarms.get(sha256)
        if swarm is not None:
            swarm.wake.set()

    async def _search(self, swarm: _Swarm) -> None:
        while True:
            swarm.wake.clear()
            self._ask(swarm)
            self._choose(swarm)
            await asyncio.sleep(ROUND_MIN_S)
            try:
                async with asyncio.timeout(self._pause(swarm)):
                    await swarm.wake.wait()
            except TimeoutError:
                continue

    def _pause(self, swarm: _Swarm) -> float:
        """Seconds until something is to be done even if nothing happens."""
        now = self._monotonic()
        due = [at for device, at in swarm.retry_at.items() if at > now and device not in self._banned]
        return max(min([at - now for at in due] + [swarm.ask_at - now]), 0.0)

    def _ask(self, swarm: _Swarm) -> None:
        """Ask the hubs and neighbours who else has the content, unless enough are connected or just asked.

        Nobody waits for the answers: one that does not come must not hold up those that we know already.
        """
        now = self._monotonic()
        if now < swarm.ask_at:
            return
        swarm.ask_at = now + min(ASK_FIRST_S * 2**swarm.asked, ASK_INTERVAL_S)
        if len(swarm.connected) >= limits.SWARM_PEERS_MAX:
            return
        swarm.asked = min(swarm.asked + 1, ASKS_COUNTED_MAX)
        for peer in self._overlay.peers()[:ASKED_MAX]:
            self._tasks.spawn(self._ask_one(swarm, peer), f"ask {peer.device[:8]}")

    async def _ask_one(self, swarm: _Swarm, peer: OverlayPeer) -> None:
        try:
            directory = await requests.find_content(peer.link.connection, swarm.sha256)
        except PeerMisbehaved as error:
            self._ledger.drop(error.kind, peer.device, error.message)
            peer.close(error.kind)
        except TransportError as error:
            _log.debug("cannot ask", extra={"fields": {"peer": peer.device[:16], "why": error.message}})
        else:
            for entry in directory.entries:
                device = DeviceId(entry.address.device)
                if device != self._links.device and len(swarm.found) < limits.DIRECTORY_KEPT_MAX:
                    swarm.found[device] = entry
                    self._roles.setdefault(device, entry.role)
            if directory.entries:
                swarm.wake.set()

    def _holders(self, swarm: _Swarm) -> dict[DeviceId, Holder]:
        """Everyone who is said to have the content and may be tried now."""
        now = self._monotonic()
        holders: dict[DeviceId, Holder] = {}
        for device, entry in swarm.found.items():
            self._addresses[device] = entry.address
            holders[device] = Holder(
                device,
                whole=False,
                hub=entry.role == "hub",
                path=self._path(device, "lan" if _on_this_machine(entry.address) else "unknown"),
                connected=device in swarm.connected,
            )
        for peer in self._overlay.peers():
            whole = swarm.sha256 in peer.state.has
            if whole or swarm.sha256 in peer.state.wants:
                self._addresses[peer.device] = peer.address
                holders[peer.device] = Holder(
                    peer.device,
                    whole=whole,
                    hub=peer.role == "hub",
                    path=self._path(peer.device, peer.link.connection.path().kind),
                    connected=peer.device in swarm.connected,
                )
        return {
            device: holder
            for device, holder in holders.items()
            if device not in self._banned and swarm.retry_at.get(device, now) <= now
        }

    def _path(self, device: DeviceId, otherwise: PathKind) -> PathKind:
        link = self._table.get(device)
        return link.connection.path().kind if link is not None else otherwise

    def _choose(self, swarm: _Swarm) -> None:
        holders = self._holders(swarm)
        holders = self.site.allowed(swarm.sha256, holders)
        chosen = choose_swarm_peers(holders.values(), self._rng.random)
        for device in set(swarm.connected) - set(chosen):
            address = swarm.connected.pop(device)
            self._engine.forget_peer(swarm.sha256, *address)
            self._tasks.spawn(self.tunnels.withdraw(device, swarm.sha256), "withdraw")
        for device in chosen:
            if device not in swarm.connected:
                swarm.connected[device] = ("", 0)
                # Two that both look for a content find each other at the same moment: one of them dials first.
                holder = holders[device]
                yields = not holder.whole and not holder.hub and device < self._links.device
                self._tasks.spawn(self._connect(swarm, device, yields=yields), f"connect {device[:8]}")

    async def _connect(self, swarm: _Swarm, device: DeviceId, *, yields: bool) -> None:
        try:
            if yields:
                await asyncio.sleep(YIELD_S)
            if device not in swarm.alive:
                await self._open(device)
            if device in swarm.alive:
                return  # it came to us meanwhile: a second connection would be closed as a duplicate
            address = await self.tunnels.expose(device, swarm.sha256)
            swarm.connected[device] = address
            await self._engine.connect_peer(swarm.sha256, *address)
        except DriftseedError as error:
            _log.info(
                "no content from",
                extra={"fields": {"peer": device[:16], "reason": error.reason, "why": error.message}},
            )
            self._lost(swarm, device)

    def _lost(self, swarm: _Swarm, device: DeviceId) -> None:
        """A device is not connected any more: others are, or it is tried again later."""
        swarm.connected.pop(device, None)
        swarm.failures[device] += 1
        wait = min(RETRY_S * 2 ** min(swarm.failures[device] - 1, 16), RETRY_MAX_S)
        swarm.retry_at[device] = self._monotonic() + wait
        swarm.wake.set()

    async def _open(self, device: DeviceId) -> Connection:
        """A tunnel link to a device. Raises TransportError or NotAMember."""
        link = self._table.get(device)
        if link is None:
            address = self._addresses.get(device)
            if address is None:
                raise PeerUnreachable(f"no address of {device[:16]} is known")
            link = await self._links.dial(address, wire.ALPN_TUNNEL)
        return link.connection

    # --- what the engine says -------------------------------------------------------------------

    def on_event(self, event: protocol.Event) -> None:
        """Take what concerns peers."""
        match event:
            case protocol.Banned(sha256=sha256, ip=ip):
                device = self.tunnels.addresses.device_at(ip)
                self._ledger.refuse(
                    BAD_PIECE,
                    device or ip,
                    f"pieces of {sha256[:16]} that do not have their signed hash; not asked again",
                )
                if device is not None:
                    self._banned.add(device)
                    self._wake_all()
            case protocol.PeerDisconnected(sha256=sha256, ip=ip, port=port):
                swarm = self._swarms.get(Digest(sha256))
                device = self.tunnels.addresses.device_at(ip)
                if swarm is not None and device is not None:
                    self._disconnected(swarm, device, ip, port)
            case protocol.Died():
                for each in self._swarms.values():
                    each.alive.clear()
            case protocol.PeerConnected(sha256=sha256, ip=ip, port=port):
                swarm = self._swarms.get(Digest(sha256))
                device = self.tunnels.addresses.device_at(ip)
                if swarm is not None and device is not None:
                    del swarm.failures[device]
                    swarm.alive.setdefault(device, set()).add(port)
            case _:
                _log.debug("engine", extra={"fields": {"event": type(event).__name__}})

    def _disconnected(self, swarm: _Swarm, device: DeviceId, ip: str, port: int) -> None:
        """A connection of the engine ended, or could not be made."""
        ports = swarm.alive.get(device, set())
        ports.discard(port)
        if ports:
            return  # both sides had dialled: one connection of the two stays
        swarm.alive.pop(device, None)
        address = swarm.connected.get(device)
        if address is not None and address[1] in {port, 0}:
            self._engine.forget_peer(swarm.sha256, ip, port)
        if address is not None:
            self._lost(swarm, device)

    def _wake_all(self) -> None:
        for swarm in self._swarms.values():
            swarm.wake.set()

    # --- serving --------------------------------------------------------------------------------

    async def _run_link(self, link: Link, outgoing: bool) -> None:  # noqa: FBT001, ARG002 - the handler's protocol
        """Serve the streams of a tunnel link until it ends."""
        device = link.member.device
        self._roles[device] = link.member.role
        owner = TaskOwner(f"tunnels {device[:8]}")
        serving = asyncio.Semaphore(limits.STREAMS_PER_LINK_MAX)
        try:
            while True:
                await serving.acquire()
                stream = await link.connection.accept_stream()
                owner.spawn(self._serve(link, stream, serving), "serve")
        except LinkClosed:
            _log.debug("tunnel link ended", extra={"fields": {"peer": device[:16]}})
        finally:
            await owner.close()

    async def _serve(self, link: Link, stream: Stream, serving: asyncio.Semaphore) -> None:
        try:
            await self.tunnels.serve(link.connection, stream, partial(self._served, link))
        except PeerMisbehaved as error:
            self._ledger.drop(error.kind, link.member.device, error.message)
            link.connection.close(0, error.kind)
        except TransportError as error:
            self._ledger.drop(error.reason, link.member.device, error.message)
        finally:
            serving.release()

    async def _served(self, link: Link, sha256: Digest) -> TcpAddress | None:
        """Where a content is served here; None when it is not."""
        if self.site.refuses(sha256, link):
            return None
        try:
            carried = await self._carry(sha256)
            address = self._engine.listen_address if carried else None
        except (EngineFailed, DeviceError) as error:
            _log.warning("cannot serve", extra={"fields": {"reason": error.reason, "why": error.message}})
            return None
        else:
            return address


def _on_this_machine(address: NodeAddress) -> bool:
    return any(addr.startswith(("127.", "[::1]")) for addr in address.addrs)
