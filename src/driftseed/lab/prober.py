"""The laboratory's own prober: a STUN server with two addresses, and the questions of RFC 5780 to it.

Everything runs in one process: sockets stay in the namespace that they were made in.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from typing import Final

from driftseed.core.errors import LabFailed
from driftseed.core.natprobe import Behaviour, Mapping, Observations, classify
from driftseed.core.stun import (
    MESSAGE_BYTES_MAX,
    TRANSACTION_BYTES,
    BindingRequest,
    BindingResponse,
    SocketAddr,
    decode,
)
from driftseed.lab.nat import EXPECTED, NatKind
from driftseed.lab.topology import Device, Site, World

SERVER_SITE: Final = Site(name="stun", also=(11,))
"""Where the server is: a public site whose device has two addresses."""
PORTS: Final = (3478, 3479)
TRIES: Final = 4
TRY_S: Final = 0.25
"""Seconds that an answer may take; nothing is further away than a few milliseconds here."""
SILENCES_S: Final = (1.0, 5.0)
"""Seconds of silence after which a binding is tried."""


class Server:
    """Answers binding requests at two addresses with two ports each (RFC 5780, section 3).

    Args:
        device: where it runs.
        addresses: its two addresses.
    """

    def __init__(self, device: Device, addresses: tuple[str, str]) -> None:
        self.addresses = addresses
        self._loop = asyncio.get_running_loop()
        self._sockets = {
            (ip, port): device.namespace.udp_socket(ip, port) for ip in addresses for port in PORTS
        }
        for place, each in self._sockets.items():
            self._loop.add_reader(each, self._answer, place, each)

    @classmethod
    def of(cls, world: World) -> Server:
        """The server of a world with ``SERVER_SITE`` in it."""
        device = world.device(SERVER_SITE.name)
        second = world.routers[SERVER_SITE.name].lan.network_address + SERVER_SITE.also[0]
        return cls(device, (device.ip, str(second)))

    def close(self) -> None:
        """Stop answering."""
        for each in self._sockets.values():
            self._loop.remove_reader(each)
            each.close()

    def _answer(self, place: SocketAddr, own: socket.socket) -> None:
        data, source = own.recvfrom(MESSAGE_BYTES_MAX + 1)
        request = decode(data)
        if not isinstance(request, BindingRequest):
            return
        ip, port = place
        if request.change_ip:
            ip = self.addresses[1] if ip == self.addresses[0] else self.addresses[0]
        if request.change_port:
            port = PORTS[1] if port == PORTS[0] else PORTS[0]
        to = (source[0], request.response_port or source[1])
        self._sockets[ip, port].sendto(BindingResponse(request.transaction, source).encode(), to)


class _Asker:
    """A socket of a device that questions are asked with; it hears all answers, whoever asked."""

    def __init__(self, device: Device) -> None:
        self._socket = device.namespace.udp_socket(device.ip)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._hear)
        self.heard: dict[bytes, SocketAddr] = {}
        self._waiting: dict[bytes, asyncio.Event] = {}

    @property
    def local(self) -> SocketAddr:
        ip, port = self._socket.getsockname()[:2]
        return str(ip), int(port)

    def send(self, request: BindingRequest, to: SocketAddr) -> None:
        try:
            self._socket.sendto(request.encode(), to)
        except OSError:
            # A firewall may say so at once; for the question that is as good as silence.
            return

    async def hears(self, transaction: bytes, timeout_s: float) -> bool:
        """Whether an answer comes within so many seconds."""
        event = self._waiting.setdefault(transaction, asyncio.Event())
        if transaction in self.heard:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return False
        return True

    async def ask(
        self, to: SocketAddr, *, change_ip: bool = False, change_port: bool = False
    ) -> SocketAddr | None:
        """Ask until an answer comes; None when none does."""
        for _ in range(TRIES):
            request = BindingRequest(os.urandom(TRANSACTION_BYTES), change_ip, change_port)
            self.send(request, to)
            if await self.hears(request.transaction, TRY_S):
                return self.heard[request.transaction]
        return None

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _hear(self) -> None:
        try:
            data = self._socket.recv(MESSAGE_BYTES_MAX + 1)
        except OSError:
            return  # an ICMP error, kept for us by the kernel: as good as silence
        answer = decode(data)
        if answer is None:
            return
        # A request is what another socket of ours sent to our outer address: it came back in.
        self.heard[answer.transaction] = (
            answer.mapped if isinstance(answer, BindingResponse) else ("0.0.0.0", 0)  # noqa: S104 - no address
        )
        if (event := self._waiting.get(answer.transaction)) is not None:
            event.set()


@dataclass(frozen=True, slots=True)
class Prober:
    """Asks for one device."""

    device: Device
    server: Server

    async def observe(self) -> Observations:
        """Ask everything; takes as long as the longest silence."""
        (first, second), (port, other_port) = self.server.addresses, PORTS
        async with asyncio.TaskGroup() as tasks:
            mapping = tasks.create_task(self._mapping((first, port), (second, port), (second, other_port)))
            elsewhere = tasks.create_task(self._filtering((first, port), change_ip=True))
            other = tasks.create_task(self._filtering((first, port), change_ip=False))
            hairpin = tasks.create_task(self._hairpin((first, port)))
            silences = [tasks.create_task(self._open_after((first, port), each)) for each in SILENCES_S]
        local, (seen, seen_by_other, seen_by_both) = mapping.result()
        return Observations(
            local,
            seen,
            seen_by_other,
            seen_by_both,
            answer_from_elsewhere=elsewhere.result(),
            answer_from_other_port=other.result(),
            hairpin=hairpin.result(),
            open_after=dict(zip(SILENCES_S, (each.result() for each in silences), strict=True)),
        )

    async def _mapping(self, *places: SocketAddr) -> tuple[SocketAddr, list[SocketAddr | None]]:
        asker = _Asker(self.device)
        try:
            return asker.local, [await asker.ask(place) for place in places]
        finally:
            asker.close()

    async def _filtering(self, to: SocketAddr, *, change_ip: bool) -> bool:
        # A fresh socket: what another question has opened must not answer this one.
        asker = _Asker(self.device)
        try:
            return await asker.ask(to, change_ip=change_ip, change_port=True) is not None
        finally:
            asker.close()

    async def _hairpin(self, server: SocketAddr) -> bool | None:
        """Two sockets send to each other's outer address, so that no filter is in the way (RFC 5780, 4.5)."""
        one, other = _Asker(self.device), _Asker(self.device)
        try:
            outer, other_outer = await one.ask(server), await other.ask(server)
            if outer is None or other_outer is None:
                return None
            for _ in range(TRIES):
                there = BindingRequest(os.urandom(TRANSACTION_BYTES))
                back = BindingRequest(os.urandom(TRANSACTION_BYTES))
                one.send(there, other_outer)
                other.send(back, outer)
                if await other.hears(there.transaction, TRY_S) or await one.hears(back.transaction, TRY_S):
                    return True
            return False
        finally:
            one.close()
            other.close()

    async def _open_after(self, server: SocketAddr, silence_s: float) -> bool:
        """Whether the server still gets through after so much silence (RFC 5780, section 4.6)."""
        quiet, voice = _Asker(self.device), _Asker(self.device)
        try:
            outer = await quiet.ask(server)
            if outer is None:
                return False
            # The silence is what is measured, so there is nothing else to wait for.
            await asyncio.sleep(silence_s)
            request = BindingRequest(os.urandom(TRANSACTION_BYTES), response_port=outer[1])
            voice.send(request, server)
            return await quiet.hears(request.transaction, 2 * TRY_S)
        finally:
            quiet.close()
            voice.close()


async def probe(world: World, sites: Iterable[str]) -> dict[str, Behaviour]:
    """Classify what the first device of each site has between itself and the internet."""
    server = Server.of(world)
    try:
        async with asyncio.TaskGroup() as tasks:
            asked = {site: tasks.create_task(Prober(world.device(site), server).observe()) for site in sites}
        return {site: classify(task.result()) for site, task in asked.items()}
    finally:
        server.close()


def check(found: MappingOf[str, Behaviour], kinds: MappingOf[str, NatKind]) -> None:
    """Refuse to go on with a NAT that is not what it says.

    Raises:
        LabFailed: one differs from ``nat.EXPECTED``; the message names all that do.
    """
    wrong = [
        f"{site} is to be {kind}, and is {found[site]}"
        for site, kind in kinds.items()
        if not _agrees(found[site], EXPECTED[kind])
    ]
    if wrong:
        raise LabFailed(
            f"{len(wrong)} of {len(kinds)} NATs do not behave as they are to: {'; '.join(wrong)}",
            hint="compare the kernel and nft with those of docs/lab.md",
        )


def _agrees(found: Behaviour, expected: Behaviour) -> bool:
    same = (found.mapping, found.filtering) == (expected.mapping, expected.filtering)
    if found.mapping is Mapping.BLOCKED:
        return same
    if expected.hairpin is not None and found.hairpin != expected.hairpin:
        return False
    if expected.open_less_than_s is not None and (
        found.open_less_than_s is None or found.open_less_than_s > expected.open_less_than_s
    ):
        return False
    return same and found.translated == expected.translated
