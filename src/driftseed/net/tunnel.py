"""BitTorrent connections as streams between two members.

The BitTorrent engine listens and connects on loopback only. For each remote device that has or wants an artifact,
``Tunnels.expose`` opens a local port that stands for it; each connection that the engine makes there becomes a
stream on a tunnel link to that device. At the other end ``Tunnels.serve`` connects the stream to its engine,
from the loopback address that stands for us::

    engine --TCP--> expose(B, sha) ==== stream: TunnelOpen(sha) / TunnelAccept ==== serve --TCP--> engine
           127.b.b.b:port                                              from 127.a.a.a

Every remote device has one loopback address for both, so that the engine's ban of an address is a ban of the device.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Literal, NamedTuple, TypeAlias

from driftseed.core import limits, wire
from driftseed.core.errors import (
    DeviceError,
    DriftseedError,
    LinkClosed,
    PeerMisbehaved,
    PeerStalled,
    TransportError,
)
from driftseed.core.ids import DeviceId, Digest, parse_digest
from driftseed.net.budget import RelayBudget
from driftseed.net.connection import Connection
from driftseed.net.loopback import LoopbackAddresses
from driftseed.net.paths import PathKind
from driftseed.net.pump import prepare, pump
from driftseed.net.stream import Stream

LOG = logging.getLogger(__name__)

TcpAddress: TypeAlias = tuple[str, int]
"""IPv4 address and port of a local engine."""
Opener: TypeAlias = Callable[[DeviceId], Awaitable[Connection]]
"""Gives a tunnel connection to a device, membership proved on both sides; raises TransportError or TrustError."""
Served: TypeAlias = Callable[[Digest], Awaitable[TcpAddress | None]]
"""Says at which local engine an artifact is served; None when it is not."""

PATH_REFRESH_S = 1.0
"""Seconds for which a path's kind is believed, for counting bytes."""
ACCEPT_PAUSE_S = 1.0
"""Seconds after which a local port that could not accept tries again."""
_BACKLOG = 8


class Flow(NamedTuple):
    """What bytes are counted by."""

    device: DeviceId
    sha256: Digest
    kind: PathKind
    """The path at the time."""
    direction: Literal["in", "out"]


class Tunnels:
    """All tunnels of one node.

    Args:
        opener: how to reach a device.
        streams_max: tunnels to or from one device at once.
    """

    def __init__(self, opener: Opener, *, streams_max: int = limits.STREAMS_PER_LINK_MAX) -> None:
        self._opener = opener
        self._streams_max = streams_max
        self._listeners: dict[tuple[DeviceId, Digest], _Listener] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: Counter[DeviceId] = Counter()
        self._closing = False
        self.addresses = LoopbackAddresses()
        self.carried: dict[Flow, int] = {}
        """Bytes carried so far, oldest flow first; bounded by ``FLOWS_KEPT_MAX``."""
        self.relay_budget = RelayBudget()
        """For all tunnels together, while their paths lead through a relay."""
        self.counters: Counter[str] = Counter()
        """``opened``, ``served``, and what came to nothing: ``refused`` (they do not serve it), ``not-served``
        (we do not), ``unreachable``, ``engine-gone``, ``broken``, ``too-many``."""

    @property
    def active(self) -> int:
        """Tunnels that are open now, in both directions."""
        return self._open.total()

    async def expose(self, device: DeviceId, sha256: Digest) -> TcpAddress:
        """Where our engine finds ``device`` as a peer for this artifact. Asking again gives the same address.

        Raises:
            DeviceError: no local port can be had.
        """
        key = (device, sha256)
        if key not in self._listeners:
            self._listeners[key] = self._listen(device, sha256)
        return self._listeners[key].address

    async def withdraw(self, device: DeviceId, sha256: Digest) -> None:
        """Close the local port; tunnels that are open go on until their engines close them."""
        listener = self._listeners.pop((device, sha256), None)
        if listener is not None:
            await listener.close()

    async def serve(self, connection: Connection, stream: Stream, served: Served) -> None:
        """Answer a stream that a member opened on a tunnel link, until it ends.

        Args:
            connection: the link's connection: who it is, and by which path.
            stream: nothing of it read yet.
            served: asked once, for the artifact that the peer names.

        Raises:
            PeerMisbehaved: the stream does not begin with a ``TunnelOpen``.
            PeerStalled: it begins with nothing in time.
        """
        if self._closing:
            await stream.reset()
            return
        task = self._start(self._serve(connection, stream, served))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        if not task.cancelled():
            task.result()

    async def close(self) -> None:
        """Close every port and every tunnel. Doing so twice is harmless."""
        self._closing = True
        listeners = list(self._listeners.values())
        self._listeners.clear()
        for listener in listeners:
            await listener.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limits.SHUTDOWN_S)

    def _listen(self, device: DeviceId, sha256: Digest) -> _Listener:
        address = self.addresses.address_of(device)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind((address, 0))
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise DeviceError(f"cannot listen on {address} for {device[:10]}: {error}") from None

        def connected(accepted: socket.socket) -> None:
            self._start(self._dial(device, sha256, accepted))

        return _Listener(sock, connected)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="tunnel")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _dial(self, device: DeviceId, sha256: Digest, sock: socket.socket) -> None:
        """Our engine has connected to the port that stands for ``device``."""
        with sock:
            if not self._take(device):
                return
            try:
                connection = await self._opener(device)
                stream = await self._ask(connection, sha256)
                if stream is not None:
                    self.counters["opened"] += 1
                    await self._carry(sock, connection, stream, sha256)
            except DriftseedError as error:
                self.counters["unreachable"] += 1
                LOG.debug("no tunnel to %s: %s", device[:10], error)
            finally:
                self._release(device)

    async def _ask(self, connection: Connection, sha256: Digest) -> Stream | None:
        """Open a stream and ask for the artifact on it; None when the peer does not serve it."""
        stream = await connection.open_stream()
        answer: wire.Message | wire.UnknownFrame | None = None
        try:
            await stream.write_frame(wire.TunnelOpen(sha256=sha256))
            answer = await stream.read_frame(limits.HELLO_BYTES_MAX)
        finally:
            if answer != wire.TunnelAccept(accepted=True):
                await stream.reset()
        match answer:
            case wire.TunnelAccept(accepted=True):
                return stream
            case wire.TunnelAccept():
                self.counters["refused"] += 1
                return None
            case None:
                raise LinkClosed(f"{connection.remote[:10]} ended the tunnel without an answer")
            case _:
                raise PeerMisbehaved(
                    f"{type(answer).__name__} where a tunnel's answer was due", kind="tunnel-out-of-order"
                )

    async def _serve(self, connection: Connection, stream: Stream, served: Served) -> None:
        device = connection.remote
        if not self._take(device):
            await stream.reset()
            return
        try:
            sha256 = await _read_open(stream)
            sock = await self._reach_engine(device, await served(sha256))
            if sock is None:
                await self._decline(stream)
                return
            with sock:
                await stream.write_frame(wire.TunnelAccept(accepted=True))
                self.counters["served"] += 1
                await self._carry(sock, connection, stream, sha256)
        except (PeerMisbehaved, PeerStalled, asyncio.CancelledError):
            await stream.reset()
            raise
        except LinkClosed as error:
            self.counters["broken"] += 1
            LOG.debug("tunnel of %s ended early: %s", device[:10], error)
        finally:
            self._release(device)

    async def _decline(self, stream: Stream) -> None:
        self.counters["not-served"] += 1
        await stream.write_frame(wire.TunnelAccept(accepted=False))
        await stream.finish()

    async def _reach_engine(self, device: DeviceId, engine: TcpAddress | None) -> socket.socket | None:
        if engine is None:
            return None
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            prepare(sock)
            sock.bind((self.addresses.address_of(device), 0))
            async with asyncio.timeout(limits.WRITE_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(sock, engine)
        except OSError as error:
            sock.close()
            self.counters["engine-gone"] += 1
            LOG.warning("the engine at %s:%d takes no connection: %s", *engine, error)
            return None
        except asyncio.CancelledError:
            sock.close()
            raise
        return sock

    async def _carry(
        self, sock: socket.socket, connection: Connection, stream: Stream, sha256: Digest
    ) -> None:
        meter = _Meter(self.carried, connection, sha256, self.relay_budget)
        try:
            prepare(sock)
            await pump(
                sock,
                stream,
                sent=meter.sent,
                received=meter.received,
                hold_out=meter.hold_out,
                hold_in=meter.hold_in,
            )
        except (OSError, TransportError) as error:
            self.counters["broken"] += 1
            LOG.debug("tunnel with %s broke: %s", connection.remote[:10], error)

    def _take(self, device: DeviceId) -> bool:
        if self._open[device] >= self._streams_max:
            self.counters["too-many"] += 1
            return False
        self._open[device] += 1
        return True

    def _release(self, device: DeviceId) -> None:
        self._open[device] -= 1
        if self._open[device] <= 0:
            del self._open[device]


async def _read_open(stream: Stream) -> Digest:
    asked = await stream.read_frame(limits.HELLO_BYTES_MAX)
    if not isinstance(asked, wire.TunnelOpen):
        raise PeerMisbehaved(
            f"{type(asked).__name__} where a tunnel's opening was due", kind="tunnel-out-of-order"
        )
    return parse_digest(asked.sha256)


class _Listener:
    """A local port, and the task that accepts at it."""

    def __init__(self, sock: socket.socket, connected: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._connected = connected
        host, port = sock.getsockname()
        self.address: TcpAddress = (str(host), int(port))
        self._task = asyncio.create_task(self._accept_forever(), name="tunnel-listener")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        self._sock.close()

    async def _accept_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._sock)
            except ConnectionAbortedError:
                # Gone between its handshake and our accept (accept(2)): the next one may stay.
                continue
            except OSError as error:
                # Out of file descriptors, most likely, and nothing tells when there are some again.
                LOG.warning("%s:%d accepts nothing for now: %s", *self.address, error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            self._connected(accepted)


class _Meter:
    """Counts the bytes of one tunnel under the kind of path that they took, and holds them to the relays' budget."""

    def __init__(
        self, carried: dict[Flow, int], connection: Connection, sha256: Digest, budget: RelayBudget
    ) -> None:
        self._budget = budget
        self._carried = carried
        self._connection = connection
        self._sha256 = sha256
        self._clock = asyncio.get_running_loop().time
        self._kind: PathKind = connection.path().kind
        self._known_until = self._clock() + PATH_REFRESH_S

    def sent(self, size: int) -> None:
        self._add("out", size)

    def received(self, size: int) -> None:
        self._add("in", size)

    async def hold_out(self, size: int) -> None:
        await self._hold("out", size)

    async def hold_in(self, size: int) -> None:
        await self._hold("in", size)

    async def _hold(self, direction: Literal["in", "out"], size: int) -> None:
        if self._path_kind() == "relayed":
            await self._budget.spend(direction, size)

    def _path_kind(self) -> PathKind:
        # Asking the engine for its paths costs more than counting: once a second is enough.
        if self._clock() >= self._known_until:
            self._kind = self._connection.path().kind
            self._known_until = self._clock() + PATH_REFRESH_S
        return self._kind

    def _add(self, direction: Literal["in", "out"], size: int) -> None:
        flow = Flow(self._connection.remote, self._sha256, self._path_kind(), direction)
        if flow not in self._carried and len(self._carried) >= limits.FLOWS_KEPT_MAX:
            del self._carried[next(iter(self._carried))]
        self._carried[flow] = self._carried.get(flow, 0) + size
