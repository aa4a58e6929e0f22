"""STUN over UDP sockets: a hub answers at what address it sees a device, and a device asks (RFC 8489, RFC 5780).

A hub listens on two ports, so that a device can see whether its NAT gives it another address for another port,
and whether an answer from a port that it never sent to comes in. Answers are hardly larger than questions, and
bounded in number, so that nobody gains by having them sent to somebody else.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from driftseed.core import limits
from driftseed.core.errors import DeviceError, PortTaken
from driftseed.core.natprobe import Observations
from driftseed.core.rate import TokenBucket
from driftseed.core.stun import (
    MESSAGE_BYTES_MAX,
    TRANSACTION_BYTES,
    BindingRequest,
    BindingResponse,
    SocketAddr,
    decode,
)

TRIES: Final = 3
TRY_S: Final = 0.7
"""Seconds that an answer may take: more than a satellite needs."""


class StunServer:
    """Answers binding requests on a port and the one after it."""

    def __init__(self, sockets: tuple[socket.socket, socket.socket]) -> None:
        self._sockets = sockets
        self._loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(limits.STUN_ANSWERS_PER_SECOND, limits.STUN_ANSWERS_PER_SECOND)
        self.answered = 0
        for index, each in enumerate(sockets):
            self._loop.add_reader(each, self._answer, index)

    @classmethod
    def open(cls, ip: str, port: int) -> StunServer:
        """Listen. Raises PortTaken, or DeviceError for an address that is not this machine's."""
        opened: list[socket.socket] = []
        try:
            opened.append(_udp(ip, port))
            opened.append(_udp(ip, port + 1))
        except OSError as error:
            for each_socket in opened:
                each_socket.close()
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"cannot answer STUN on {ip}, UDP ports {port} and {port + 1}: one is taken",
                    hint="choose another port with --stun",
                ) from None
            raise DeviceError(f"cannot answer STUN on {ip}:{port}: {error.strerror}") from None
        return cls((opened[0], opened[1]))

    def close(self) -> None:
        """Stop answering."""
        for each in self._sockets:
            self._loop.remove_reader(each)
            each.close()

    def _answer(self, index: int) -> None:
        try:
            data, source = self._sockets[index].recvfrom(MESSAGE_BYTES_MAX + 1)
            request = decode(data)
            if not isinstance(request, BindingRequest) or not self._bucket.take(1.0, time.monotonic()):
                return
            # There is one address only: who asks for an answer from another one gets none, as RFC 5780 allows.
            if request.change_ip or request.response_port is not None:
                return
            answer = BindingResponse(request.transaction, (str(source[0]), int(source[1])))
            self._sockets[index ^ request.change_port].sendto(answer.encode(), source)
        except OSError:
            # An ICMP error of an earlier answer, or a full buffer: whoever asked asks again.
            return
        self.answered += 1


class _Asker(asyncio.DatagramProtocol):
    """One socket that questions are asked with."""

    def __init__(self) -> None:
        self.transport: asyncio.DatagramTransport
        self.closed = asyncio.Event()
        self._waiting: dict[bytes, asyncio.Future[SocketAddr]] = {}

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        self.closed.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The event loop's own class is none of the abstract one in Python 3.11, though it does what that says.
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        message = decode(data)
        future = self._waiting.get(message.transaction) if message is not None else None
        if future is not None and not future.done():
            # A request is our own, sent to our outer address by another socket: it came back in.
            future.set_result(message.mapped if isinstance(message, BindingResponse) else addr[:2])

    async def ask(
        self, to: SocketAddr, *, change_port: bool = False, heard_by: _Asker | None = None
    ) -> SocketAddr | None:
        """Ask until something comes back to ``heard_by``; None when nothing does."""
        hearing = heard_by or self
        for _ in range(TRIES):
            request = BindingRequest(os.urandom(TRANSACTION_BYTES), change_port=change_port)
            future: asyncio.Future[SocketAddr] = asyncio.get_running_loop().create_future()
            hearing._waiting[request.transaction] = future  # noqa: SLF001 - another of its own kind
            try:
                self.transport.sendto(request.encode(), to)
                async with asyncio.timeout(TRY_S):
                    return await future
            except TimeoutError:
                continue
            finally:
                hearing._waiting.pop(request.transaction, None)  # noqa: SLF001
        return None


@dataclass(frozen=True, slots=True)
class Seen:
    """What asking one or two servers brought."""

    observations: Observations
    servers: int
    """Servers that answered. With one, what depends on the address alone cannot be told from what depends on nothing."""


async def observe(servers: Sequence[SocketAddr]) -> Seen:
    """Find out what the NAT between here and some STUN servers does.

    Args:
        servers: address and first port of each, IPv4; two that answer are enough.
    """
    loop = asyncio.get_running_loop()
    askers: list[_Asker] = []
    try:
        for _ in range(3):
            _, made = await loop.create_datagram_endpoint(_Asker, local_addr=("0.0.0.0", 0))  # noqa: S104 - a client's socket
            askers.append(made)
        mapping, filtering, third = askers
        answers: dict[SocketAddr, SocketAddr] = {}
        for server in servers:
            if len(answers) < 2 and (mapped := await mapping.ask(server)) is not None:
                answers[server] = mapped
        if not answers:
            return Seen(Observations(local=_local(mapping, None), first=None), 0)
        first, *more = answers
        other = more[0] if more else first
        elsewhere = answers[other] if more else await mapping.ask((first[0], first[1] + 1))
        other_port = await mapping.ask((other[0], other[1] + 1))
        # The filter's socket has sent to nobody but the first server's first port.
        await filtering.ask(first)
        outer = answers[first]
        return Seen(
            Observations(
                local=_local(mapping, first),
                first=outer,
                other_address=elsewhere,
                other_both=other_port,
                answer_from_other_port=await filtering.ask(first, change_port=True) is not None,
                hairpin=await third.ask(outer, heard_by=mapping) is not None,
            ),
            len(answers),
        )
    finally:
        for asker in askers:
            asker.transport.close()
        await asyncio.gather(*(asker.closed.wait() for asker in askers))


def _local(asker: _Asker, towards: SocketAddr | None) -> SocketAddr:
    """Our own address as the kernel would choose it towards a server."""
    port = int(asker.transport.get_extra_info("sockname")[1])
    if towards is None:
        return ("0.0.0.0", port)  # noqa: S104 - no address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(towards)
        return (str(probe.getsockname()[0]), port)


def _udp(ip: str, port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        opened.bind((ip, port))
    except OSError:
        opened.close()
        raise
    return opened
