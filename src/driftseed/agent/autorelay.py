"""An agent that finds out by itself whether others can reach it, and relays for them as long as they can."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from driftseed.agent.relay import relay_library
from driftseed.core import limits
from driftseed.core.addresses import parse_host_port
from driftseed.core.errors import PeerMisbehaved, TransportError
from driftseed.core.ids import DeviceId
from driftseed.core.reachability import Answer, judge
from driftseed.net.paths import parse_socket_addr
from driftseed.node import requests
from driftseed.node.node import Node
from driftseed.node.peer import OverlayPeer
from driftseed.node.tasks import TaskOwner

if TYPE_CHECKING:
    from driftseed.net.endpoint import Watch
    from driftseed.net.relay import RelayServer

_log = logging.getLogger(__name__)

LISTEN_DEFAULT: Final = "0.0.0.0:7700"


class AutoRelay:
    """A relay that lets nobody in until others have shown that it can be reached from outside.

    Args:
        own: the agent.
        listen: ``IP:PORT``, TCP; empty for ``LISTEN_DEFAULT``.
        url: under which others reach it, once they do, such as a name; empty: ``http://`` and the address found out.
        expelled: who may not use it, not even as a stranger.

    Raises:
        DeviceError: the extra is not installed.
    """

    def __init__(self, own: DeviceId, listen: str, url: str, expelled: Callable[[DeviceId], bool]) -> None:
        self._where = parse_host_port(listen or LISTEN_DEFAULT, "an address to relay at")
        self._members: set[DeviceId] = {own}
        self._expelled = expelled
        self._named = url
        self.url: str | None = None
        """Where others reach it; None while they cannot."""
        self.port = self._where.port
        self._awaited: dict[str, bool] = {}
        """Whether the connection that is known by a proof has come."""
        self._look = asyncio.Event()
        self._tasks = TaskOwner("relay")
        self._watch: Watch | None = None
        self._server: RelayServer = relay_library().RelayServer(
            self._members.__contains__,
            guests_reach=[own],
            expelled=self._keeps_out,
            pinged=self._pinged,
        )

    async def start(self) -> None:
        """Listen. Raises PortTaken or DeviceError."""
        self.port = await self._server.start(self._where.host, self._where.port)

    def attend(self, node: Node) -> None:
        """Begin to ask neighbours whether they reach it, and to offer it when they do."""
        self._watch = node.endpoint.on_address_change(self._look.set)
        self._tasks.spawn(self._prove_forever(node), "prove")

    async def close(self) -> None:
        """Tell the clients, and stop."""
        await self._tasks.close()
        if self._watch is not None:
            await self._watch.stop()
        await self._server.close()

    def met(self, device: DeviceId) -> None:
        """A device has proved its membership: it may reach everyone, and can be asked."""
        self._members.add(device)
        self._server.promote(device)
        self._look.set()

    def expel(self) -> None:
        """Others may be expelled than before: whoever is goes now, and does not come back as a member."""
        self._members -= {device for device in self._members if self._expelled(device)}
        self._server.expel()

    def _keeps_out(self, device: DeviceId) -> bool:
        """Everybody, before it is proved."""
        return self.url is None or self._expelled(device)

    def stats(self) -> dict[str, int]:
        """What it has done; see ``net.relay``."""
        return self._server.stats()

    def _pinged(self, proof: str) -> None:
        if proof in self._awaited:
            self._awaited[proof] = True

    async def _prove_forever(self, node: Node) -> None:
        while True:
            self._look.clear()
            asked = await self.prove(node)
            # Nobody dials one device back sooner, and a path may have become direct without anybody's telling us.
            await asyncio.sleep(limits.DIAL_BACK_EVERY_S)
            try:
                async with asyncio.timeout(limits.RELAY_PROVE_EVERY_S if asked else 0.0):
                    await self._look.wait()
            except TimeoutError:
                continue

    async def prove(self, node: Node) -> bool:
        """Ask some neighbours once, and go by what they find; False when there was nobody to ask."""
        # A hub's word is enough, and hubs come first.
        outside = [
            peer
            for peer in node.overlay.peers()
            if peer.role != "publisher" and node.dial_back.seen_at(peer) is not None
        ][: limits.DIAL_BACK_ASKED_MAX]
        proofs = {secrets.token_hex(16): peer for peer in outside}
        self._awaited = dict.fromkeys(proofs, False)
        found = await asyncio.gather(*(self._ask(node, proof, peer) for proof, peer in proofs.items()))
        self._awaited = {}
        answers = [answer for answer in found if answer is not None]
        verdict = judge(answers)
        if verdict is not None:
            self._go_by(node, verdict.addr)
        return bool(answers)

    async def _ask(self, node: Node, proof: str, peer: OverlayPeer) -> Answer | None:
        try:
            said = await requests.ask_dial(peer.link.connection, self.port, proof)
        except PeerMisbehaved as error:
            node.ledger.drop(error.kind, peer.device, error.message)
            return None
        except TransportError as error:
            _log.debug("cannot ask", extra={"fields": {"peer": peer.device[:16], "why": error.message}})
            return None
        if not said.tried:
            return None
        parsed = parse_socket_addr(said.addr or "")
        elsewhere = parsed is None or parsed[1] != self.port
        return Answer(
            hub=peer.role == "hub",
            reached=said.reached,
            seen=self._awaited[proof],
            addr="" if said.addr is None or elsewhere else said.addr,
        )

    def _go_by(self, node: Node, addr: str | None) -> None:
        url = None if addr is None else self._named or f"http://{addr}"
        if url == self.url:
            return
        self.url = url
        _log.info("relaying" if url else "relaying no more", extra={"fields": {"url": url or ""}})
        node.offer_relay(url)
        self._server.expel()
