"""Every byte between members is captured while an update travels, and nothing of it is found in the clear."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from driftseed.core import wire
from driftseed.core.lifecycle import State
from driftseed.core.model import NodeAddress
from support_fleet import fleet_in, settled, until
from support_net import accepted, endpoint
from support_relay import relay

_ETH_P_ALL: Final = 0x0003
_FIXED_BIT: Final = 0x40
"""Set in the first byte of every QUIC packet (RFC 9000, section 17)."""


class Capture:
    """Everything on the loopback interface, from before the members start."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="capture")
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                self.packets.append(self._socket.recv(1 << 17))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def segments(self, port: int) -> Iterator[bytes]:
        """Payloads of TCP segments to and from this port."""
        for packet in self.packets:
            if packet[12:14] != b"\x08\x00" or packet[23] != socket.IPPROTO_TCP:
                continue
            at = 14 + (packet[14] & 0x0F) * 4
            if port in struct.unpack_from(">HH", packet, at):
                yield packet[at + (packet[at + 12] >> 4) * 4 :]

    def datagrams(self, ports: set[int]) -> Iterator[bytes]:
        """Payloads of UDP datagrams between these ports; loopback shows each packet twice."""
        for packet in self.packets:
            if packet[12:14] != b"\x08\x00" or packet[23] != socket.IPPROTO_UDP:
                continue
            at = 14 + (packet[14] & 0x0F) * 4
            source, target = struct.unpack_from(">HH", packet, at)
            if source in ports and target in ports:
                yield packet[at + 8 :]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")
async def test_nothing_of_an_update_is_readable_on_the_wire(tmp_path: Path) -> None:
    """Payload, names, labels, reports, metadata, ticket, certificates: QUIC packets, and nothing in them."""
    line = b"the quick brown fox of release seven jumps over the lazy attacker\n"
    size = 600_000
    capture = Capture()
    try:
        async with fleet_in(tmp_path) as fleet:
            hub = await fleet.start_hub()
            homes = [
                await fleet.join(name, labels={"vessel": "northern-lights-42"}) for name in ("one", "two")
            ]
            agents = [
                await fleet.start_agent(home.directory.name, inventory={"cabin": "unmistakable-inventory"})
                for home in homes
            ]
            await until(lambda: all(agent.node.overlay.hubs() for agent in agents), "linked")
            payload = tmp_path / "payload.bin"
            payload.write_bytes((line * (size // len(line) + 1))[:size])
            deployment = fleet.release(
                "secret-release-name", "7.7.7-tell-nobody", [str(payload)], meta={"path": "app.bin"}
            )
            await fleet.publish()
            assert await settled(agents, deployment, 60.0) == [State.SUCCEEDED] * 2
            await until(
                lambda: hub.node.ledger.drops.total() == 0 and len(hub.node.overlay.peers()) >= 2, "reported"
            )
            ports = {hub.node.endpoint.port, *(agent.node.endpoint.port for agent in agents)}
            needles = {
                "the payload": line[:32],
                "the release's name": b"secret-release-name",
                "the version": b"7.7.7-tell-nobody",
                "a label": b"northern-lights-42",
                "the inventory": b"unmistakable-inventory",
                "the fleet's id": fleet.repository.fleet_id.encode(),
                "the metadata": b'"spec_version"',
                "the deployment": deployment.encode(),
                "the artifact's hash": fleet.repository.releases()[0].manifest.artifacts[0].sha256.encode(),
                "a certificate": agents[0].record.certificate[8:72],
                "a ticket": fleet.ticket().encode()[20:60],
            }
    finally:
        capture.close()

    seen = list(capture.datagrams(ports))
    assert sum(len(each) for each in seen) > size, "the update itself was captured"
    everything = b"\0".join(seen)
    for what, needle in needles.items():
        assert needle not in everything, f"{what} can be read on the wire"
    strange = [each for each in seen if not each or not each[0] & _FIXED_BIT]
    assert not strange, f"{len(strange)} datagrams of {len(seen)} are no QUIC: {strange[0][:40]!r}"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")
async def test_nothing_of_what_goes_through_a_relay_is_readable_there(tmp_path: Path) -> None:
    """The relay's own frames name both keys, which it must know; what is in them is QUIC."""
    line = b"the quick brown fox that takes the relay\n" * 2000
    capture = Capture()
    try:
        async with relay() as (server, url), endpoint(relays=[url]) as one, endpoint(relays=[url]) as two:
            await until(lambda: server.stats()["clients"] == 2, "both are at the relay")
            # No address: the first packets can only go through the relay.
            out, into = await asyncio.gather(
                one.dial(NodeAddress(device=two.device, addrs=[], relay=url), wire.ALPN_OVERLAY),
                accepted(two),
            )
            stream = await out.open_stream()
            await stream.write_raw(line)
            await stream.finish()
            incoming = await into.accept_stream()
            received = b""
            while data := await incoming.read_raw(65536):
                received += data
            assert received == line
            carried = server.stats()["bytes"]
            keys = [bytes.fromhex(one.device), bytes.fromhex(two.device)]
    finally:
        capture.close()
    seen = b"".join(capture.segments(urlsplit(url).port or 0))
    assert carried > 1000
    assert len(seen) > carried
    assert line[:24] not in seen
    assert any(key in seen for key in keys), "what the relay sends is seen, and names who it is from"
