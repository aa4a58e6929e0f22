"""A hostile member: ``python -m driftseed.demo.attacker ORDERS``, a process of its own.

It joined the fleet like any device and proves its membership to everybody. Then it lies: it hands around a
timestamp from the past, one that the build key alone has signed, and says that it has an artifact of
which it serves every block with a bit turned over.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from driftseed.core import limits, wire
from driftseed.core.errors import DriftseedError, LinkClosed, TransportError
from driftseed.core.ids import DeviceId, Digest, FleetId
from driftseed.core.model import NodeAddress
from driftseed.demo.badpeer import BadPeer
from driftseed.logs import LogOptions, configure
from driftseed.net.connection import Connection
from driftseed.net.endpoint import Endpoint
from driftseed.net.link import Link
from driftseed.net.stream import Stream
from driftseed.net.tunnel import TcpAddress, Tunnels
from driftseed.node.home import Home
from driftseed.node.ledger import Ledger
from driftseed.node.links import Credentials, Links
from driftseed.node.process import until_signalled
from driftseed.node.tasks import TaskOwner
from driftseed.trust.membership import Membership

_log = logging.getLogger(__name__)

TIMESTAMP: Final = "metadata/timestamp.json"


class Target(Struct, frozen=True, kw_only=True):
    """An artifact that it says it has."""

    sha256: str
    length: int
    piece_length: int
    path: str
    """The true one, which it spoils on the way out."""


class Orders(Struct, frozen=True, kw_only=True):
    """What the demo has it do."""

    data: str
    """Data directory with which it joined."""
    victims: list[NodeAddress]
    replayed: bytes
    """timestamp.json of the past."""
    forged: bytes
    """timestamp.json signed by the wrong key."""
    targets: list[Target]


class Attacker:
    """Links to its victims, and what it says on them.

    Args:
        orders: whom to attack with what.
        endpoint: open.
    """

    def __init__(self, orders: Orders, endpoint: Endpoint) -> None:
        self._orders = orders
        self._tasks = TaskOwner("attacker")
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._peers: dict[Digest, BadPeer] = {}
        record = Home(Path(orders.data)).member()
        fleet = FleetId(record.fleet)
        credentials = Credentials(
            fleet, record.certificate, Membership(fleet, {record.enrolment_key}, time.time)
        )
        self._links = Links(
            endpoint,
            lambda: credentials,
            Ledger(time.time),
            time.time,
            accept_max=limits.HUB_LINKS_MAX,
            on_failure=self._fail,
        )
        self._links.handle(wire.ALPN_OVERLAY, self._lie)
        self._links.handle(wire.ALPN_TUNNEL, self._tunnel)
        self._tunnels = Tunnels(self._never)
        self._endpoint = endpoint

    async def attack(self) -> None:
        """Begin; goes on until closed."""
        for target in self._orders.targets:
            self._peers[Digest(target.sha256)] = await BadPeer.open(
                Path(target.path), target.length, target.piece_length
            )
        self._links.start()
        for victim in self._orders.victims:
            self._tasks.spawn(self._reach(victim), f"reach {victim.device[:8]}")

    async def close(self) -> None:
        """End all of it."""
        await self._tasks.close()
        await self._tunnels.close()
        await self._links.close()
        for peer in self._peers.values():
            await peer.close()
        await self._endpoint.close()

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    async def _reach(self, victim: NodeAddress) -> None:
        try:
            await self._links.dial(victim, wire.ALPN_OVERLAY)
        except DriftseedError as error:
            _log.error("cannot reach", extra={"fields": {"peer": victim.device[:16], "why": error.message}})

    async def _never(self, device: DeviceId) -> Connection:
        raise TransportError(f"nothing is fetched from {device[:16]}: this member only serves")

    # --- the overlay ----------------------------------------------------------------------------

    async def _lie(self, link: Link, outgoing: bool) -> None:  # noqa: FBT001 - the handler's protocol
        _log.info("linked", extra={"fields": {"peer": link.member.device[:16], "outgoing": outgoing}})
        owner = TaskOwner("lie")
        try:
            await link.control.write_frame(
                wire.State(has=list(self._peers), addrs=self._endpoint.addresses()), limits.WRITE_TIMEOUT_S
            )
            for timestamp in (self._orders.replayed, self._orders.forged):
                await link.control.write_frame(wire.Notice(timestamp=timestamp), limits.WRITE_TIMEOUT_S)
            owner.spawn(self._answer(link, owner), "answer")
            while await link.control.read_frame(limits.FRAME_BYTES_MAX, None) is not None:
                continue  # whatever they say, it has said all that it wants to
        except TransportError as error:
            _log.info("lost", extra={"fields": {"peer": link.member.device[:16], "why": error.message}})
        finally:
            await owner.close()

    async def _answer(self, link: Link, owner: TaskOwner) -> None:
        try:
            while True:
                owner.spawn(self._answer_one(await link.connection.accept_stream()), "answer")
        except LinkClosed:
            return

    async def _answer_one(self, stream: Stream) -> None:
        """Who asks for the timestamp gets the forged one; of everything else it has nothing."""
        try:
            asked = await stream.read_frame(limits.FRAME_BYTES_MAX, limits.READ_TIMEOUT_S)
            if isinstance(asked, wire.FindContent):
                await stream.write_frame(wire.Directory(), limits.WRITE_TIMEOUT_S)
            elif isinstance(asked, wire.GetFile):
                data = self._orders.forged if asked.name == TIMESTAMP else None
                length = -1 if data is None else len(data)
                await stream.write_frame(wire.FileHead(length=length), limits.WRITE_TIMEOUT_S)
                await stream.write_raw(data or b"", limits.WRITE_TIMEOUT_S)
            await stream.finish()
        except TransportError as error:
            _log.info("not answered", extra={"fields": {"why": error.message}})

    # --- tunnels --------------------------------------------------------------------------------

    async def _tunnel(self, link: Link, outgoing: bool) -> None:  # noqa: FBT001, ARG002 - the handler's protocol
        owner = TaskOwner("tunnels")
        try:
            while True:
                owner.spawn(self._serve(link, await link.connection.accept_stream()), "serve")
        except LinkClosed:
            return
        finally:
            await owner.close()

    async def _serve(self, link: Link, stream: Stream) -> None:
        try:
            await self._tunnels.serve(link.connection, stream, self._served)
        except TransportError as error:
            _log.info("tunnel lost", extra={"fields": {"why": error.message}})

    async def _served(self, sha256: Digest) -> TcpAddress | None:
        peer = self._peers.get(sha256)
        return None if peer is None else peer.address


async def _run(orders: Orders) -> None:
    identity = Home(Path(orders.data)).identity()
    endpoint = await Endpoint.open(
        identity, bind="127.0.0.1:0", alpns=[wire.ALPN_OVERLAY, wire.ALPN_TUNNEL], relays=()
    )
    attacker = Attacker(orders, endpoint)
    try:
        await attacker.attack()
        await until_signalled(attacker.failed)
    finally:
        await attacker.close()


def main() -> None:
    """Attack as the file of orders says, until SIGTERM."""
    orders = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Orders)
    logging_to = configure(LogOptions())
    try:
        asyncio.run(_run(orders))
    finally:
        logging_to.close()


if __name__ == "__main__":
    main()
