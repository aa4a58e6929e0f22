"""A device of the NAT matrix: a node of the product, which dials when it is told to, and measures.

``python -m driftseed.lab.member``: one JSON object on standard input for each request, one on standard output for
each answer; the first is the setup. It looks for no neighbours by itself, so that every connection is
one that was asked for; everything else (its hub, its relay, what it learns of its own address) is the product's.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from driftseed.core import limits, wire
from driftseed.core.errors import DriftseedError, LabFailed
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import NodeAddress
from driftseed.core.verified import VerifiedFleet
from driftseed.lab.processes import LINE_BYTES_MAX
from driftseed.net.connection import Connection
from driftseed.net.identity import Identity
from driftseed.net.paths import Path as NetPath
from driftseed.net.stream import Stream
from driftseed.node.node import Node, NodeOptions
from driftseed.node.peer import OverlayPeer

PAYLOAD: Final = "lab/payload/"
"""A file of this name has as many bytes as the rest of it says."""
READY_S: Final = 25.0
"""Seconds in which a device must have its hub and its relay."""
OBSERVED_S: Final = 3.0
"""Seconds to wait for a hub to say at what address it sees us; without UDP it never does."""
_BLOCK: Final = bytes(64 * 1024)


class _Owner:
    """Decides nothing: a member of the matrix updates nothing."""

    async def on_fleet(self, fleet: VerifiedFleet) -> None:
        """Nothing to install."""

    def on_report(self, envelope: bytes, peer: OverlayPeer) -> None:
        """Nobody reports here."""

    def on_report_stored(self, message: wire.ReportStored, peer: OverlayPeer) -> None:
        """Nobody reports here."""

    def on_peer(self, peer: OverlayPeer) -> None:
        """Waited for where it is dialled."""

    def on_peer_gone(self, peer: OverlayPeer) -> None:
        """Noticed where it is used."""


class Member(Node):
    """A node that also serves as many bytes as it is asked for."""

    async def answer(self, message: wire.Message, stream: Stream, device: DeviceId) -> None:
        """Serve ``PAYLOAD``, and everything that any node serves."""
        if not isinstance(message, wire.GetFile) or not message.name.startswith(PAYLOAD):
            await super().answer(message, stream, device)
            return
        left = int(message.name.removeprefix(PAYLOAD))
        await stream.write_frame(wire.FileHead(length=left), limits.WRITE_TIMEOUT_S)
        while left > 0:
            await stream.write_raw(_BLOCK[: min(left, len(_BLOCK))], limits.WRITE_TIMEOUT_S)
            left -= len(_BLOCK)
        await stream.finish()


async def fetch(connection: Connection, size: int) -> float:
    """Fetch so many bytes; seconds until the first of them was there.

    Raises:
        LabFailed: other bytes came, or not all of them.
    """
    began = time.perf_counter()
    stream = await connection.open_stream()
    await stream.write_frame(wire.GetFile(name=f"{PAYLOAD}{size}"), limits.WRITE_TIMEOUT_S)
    await stream.finish()
    head = await stream.read_frame(limits.FRAME_BYTES_MAX, limits.READ_TIMEOUT_S)
    if not isinstance(head, wire.FileHead) or head.length != size:
        raise LabFailed(f"asked for {size} bytes and was answered {head}")
    first_s, got = 0.0, 0
    while data := await stream.read_raw(limits.MIB, limits.READ_TIMEOUT_S):
        first_s = first_s or time.perf_counter() - began
        got += len(data)
    if got != size:
        raise LabFailed(f"{got} bytes came of {size}")
    return first_s


async def ready(node: Member, hub: NodeAddress) -> NodeAddress:
    """Get to the hub, and learn our own address there.

    Raises:
        LabFailed: no link to the hub, or no relay, in time.
    """
    try:
        async with asyncio.timeout(READY_S):
            peer = await node.overlay.reach(hub, READY_S)
            changed = asyncio.Event()
            watch = node.endpoint.on_address_change(changed.set)
            try:
                while node.endpoint.relay is None:
                    await changed.wait()
                    changed.clear()
                await _observed(node, peer, changed)
            finally:
                await watch.stop()
    except TimeoutError:
        raise LabFailed(f"no hub, or no relay, within {READY_S:g} s") from None
    return node.own_address()


async def _observed(node: Member, peer: OverlayPeer, changed: asyncio.Event) -> None:
    """Wait until what the hub sees is among our addresses; without UDP nothing will."""
    try:
        async with asyncio.timeout(OBSERVED_S):
            while peer.observed_us not in node.endpoint.addresses():
                await changed.wait()
                changed.clear()
    except TimeoutError:
        return


async def dial(node: Member, address: NodeAddress, size: int, settle_s: float) -> dict[str, Any]:
    """Connect to another member, and measure the connection.

    Args:
        node: us.
        address: of the other.
        size: bytes to fetch for the goodput.
        settle_s: seconds to wait for a direct path.
    """
    began = time.perf_counter()
    peer = await node.overlay.reach(address)
    connection = peer.link.connection
    connected = time.perf_counter()
    direct_at: list[float] = []
    direct = asyncio.Event()

    def note(path: NetPath) -> None:
        if path.kind != "relayed" and not direct_at:
            direct_at.append(time.perf_counter())
            direct.set()

    watch = connection.watch_path(note)
    try:
        first = connection.path()
        note(first)
        await fetch(connection, 1)
        first_byte = time.perf_counter()
        try:
            async with asyncio.timeout(settle_s):
                await direct.wait()
        except TimeoutError:
            pass  # it stays on the relay, and the answer says so
        moved = time.perf_counter()
        await fetch(connection, size)
        seconds = time.perf_counter() - moved
        path = connection.path()
    finally:
        await watch.stop()
        peer.close("measured")
    return {
        "path": path.kind,
        "rtt_ms": path.rtt_ms,
        "first_path": first.kind,
        "connect_s": connected - began,
        "first_byte_s": first_byte - began,
        "direct_s": max(direct_at[0] - connected, 0.0) if direct_at else None,
        "goodput_mbytes": size / seconds / 1e6,
    }


async def _setup(given: dict[str, Any]) -> tuple[Member, NodeAddress]:
    hub = msgspec.convert(given["hub"], NodeAddress)
    options = NodeOptions(
        data=Path(given["data"]),
        # What a publisher has in common with these: neither looks for neighbours.
        role="publisher",
        fleet=FleetId(given["fleet"]),
        first_root=bytes.fromhex(given["first_root"]),
        certificate=bytes.fromhex(given["certificate"]),
        enrolment_keys=frozenset(given["enrolment_keys"]),
        relays=[hub.relay] if hub.relay else [],
    )
    options.data.mkdir(parents=True, exist_ok=True)
    node = await Member.open(options, Identity(bytes.fromhex(given["secret"])), _Owner())
    if not isinstance(node, Member):
        raise TypeError("Node.open makes instances of its own class")
    return node, hub


async def _answer(node: Member, hub: NodeAddress, request: dict[str, Any]) -> Any:
    match request["do"]:
        case "ready":
            return {"address": msgspec.to_builtins(await ready(node, hub))}
        case "dial":
            address = msgspec.convert(request["address"], NodeAddress)
            return await dial(node, address, request["bytes"], request["settle_s"])
        case other:
            raise LabFailed(f"a member cannot {other!r}")


async def main() -> None:
    """Answer requests until there are no more."""
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader(LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    node, hub = await _setup(json.loads(await requests.readline()))
    node.start()
    try:
        sys.stdout.write("{}\n")
        sys.stdout.flush()
        while line := await requests.readline():
            try:
                answer = await _answer(node, hub, json.loads(line))
            except DriftseedError as error:
                answer = {"failed": error.message}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        await node.close()


if __name__ == "__main__":
    asyncio.run(main())
