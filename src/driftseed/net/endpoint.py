"""Our own address in the network: one key, one UDP port, every path to every other device.

The engine dials by public key, punches holes, falls back to relays and moves between paths by itself; this
module gives it types, time limits, errors of ours, and an accept loop that no peer can stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from driftseed.core import limits
from driftseed.core.errors import DeviceError, Misuse, PeerUnreachable, PortTaken, TransportError
from driftseed.core.model import NodeAddress
from driftseed.net.connection import Connection, Watch
from driftseed.net.identity import Identity
from driftseed.net.paths import IpAddress, Path, PathKind, parse_socket_addr, usable_addrs
from driftseed.net.shim import cause, iroh
from driftseed.net.stream import Stream

CLOSE_BUSY = 0x11
"""Close code: connect again later."""
ADDRESSES_FRESH_S = 1.0
"""Seconds for which our own addresses are believed where they only tell a LAN from the internet."""

__all__ = ["Connection", "Endpoint", "Path", "PathKind", "Stream", "Watch"]


class Endpoint:
    """An iroh endpoint. Open it with ``Endpoint.open``, and close it: tasks and a socket hang on it."""

    def __init__(
        self, inner: Any, identity: Identity, relays: Sequence[str], pending_max: int, beside: str | None
    ) -> None:
        self._inner: Any = inner
        self._relays = set(relays)
        self._external: set[str] = set()
        self._watches: set[Watch] = set()
        self._pending_max = pending_max
        self._pending: set[asyncio.Task[None]] = set()
        self._accepted: asyncio.Queue[Connection | None] = asyncio.Queue(pending_max + 1)
        self._closing = False
        self._lately: list[str] = []
        self._lately_until = float("-inf")
        self._acceptor = asyncio.create_task(self._accept_forever(), name="endpoint-accept")
        # The engine lists what it is bound to; our loopback address is of no use to others.
        self._kept_back = {addr for addr in self.bound if beside is not None and addr.startswith(beside)}
        self.device = identity.device
        self.counters: Counter[str] = Counter()
        """Incoming connections that came to nothing, by reason: ``handshake-failed``, ``handshake-timeout``,
        ``handshake-refused`` (too many at once)."""

    @classmethod
    async def open(
        cls,
        identity: Identity,
        *,
        bind: str = "0.0.0.0:0",
        alpns: Sequence[bytes],
        relays: Sequence[str] = (),
        pending_max: int = limits.PENDING_HANDSHAKES_MAX,
    ) -> Endpoint:
        """Bind the UDP sockets and start accepting.

        The engine always binds two, one of each address family, each on a port of its own. Beside a wildcard the
        second is the other wildcard; beside one address it is loopback, so that nobody is listened to anywhere else.
        All endpoints of a process live in one event loop.

        Args:
            identity: the device's key.
            bind: ``IP:PORT``; port 0 lets the system choose.
            alpns: protocols that are accepted from others.
            relays: ``http://`` or ``https://`` URLs of relay servers to be reachable through.
            pending_max: incoming connections that may be in their handshake at once.

        Raises:
            PortTaken: another process has the port.
            DeviceError: the address is not this machine's, or may not be bound.
            Misuse: ``bind`` is not an address, or a relay is not a URL.
        """
        parsed = parse_socket_addr(bind)
        if parsed is None:
            raise Misuse(f"not an address to listen on: {bind!r}", hint="write IP:PORT, such as 0.0.0.0:4711")
        beside = _beside(parsed[0])
        # Callbacks come on the engine's own threads, which have no event loop to find.
        iroh.uniffi_set_event_loop(asyncio.get_running_loop())
        try:
            options = iroh.EndpointOptions(
                preset=_Preset(beside),
                bind_addr=bind,
                secret_key=identity.secret,
                alpns=list(alpns),
                relay_mode=iroh.RelayMode.custom(_relay_map(relays)),
            )
            async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT_S):
                inner = await iroh.Endpoint.bind(options)
        except TimeoutError:
            raise DeviceError(f"binding {bind} did not end in {limits.HANDSHAKE_TIMEOUT_S:g} s") from None
        except iroh.IrohError as error:
            raise _bind_failed(bind, error) from None
        return cls(inner, identity, relays, pending_max, beside)

    @property
    def bound(self) -> list[str]:
        """The socket addresses that we listen on, wildcards included."""
        return [str(addr) for addr in self._inner.bound_sockets()]

    @property
    def port(self) -> int:
        """The UDP port of the IPv4 socket (of the IPv6 one when there is no other)."""
        parsed = [addr for addr in map(parse_socket_addr, self.bound) if addr is not None]
        parsed.sort(key=lambda addr: addr[0].version)
        return parsed[0][1]

    @property
    def relay(self) -> str | None:
        """The relay that we can be reached through now; None while connected to none."""
        url = self._inner.addr().relay_url()
        return None if url is None else str(url)

    def addresses(self) -> list[str]:
        """Our own direct addresses, ``IP:PORT``: of the interfaces, and those others told us of."""
        found = (addr for addr in self._inner.addr().direct_addresses() if addr not in self._kept_back)
        return usable_addrs(found, limits.ADDRESSES_PER_DEVICE_MAX)

    def _addresses_lately(self) -> list[str]:
        """Our addresses as of ``ADDRESSES_FRESH_S`` ago at most: enough to tell a LAN, and asked for often."""
        now = time.monotonic()
        if now >= self._lately_until:
            self._lately = self.addresses()
            self._lately_until = now + ADDRESSES_FRESH_S
        return self._lately

    def address(self) -> NodeAddress:
        """All that another device needs to dial us."""
        return NodeAddress(device=self.device, addrs=self.addresses(), relay=self.relay)

    async def dial(
        self,
        address: NodeAddress,
        alpn: bytes,
        timeout: float = limits.DIAL_TIMEOUT_S,  # noqa: ASYNC109 - part of the call's contract
    ) -> Connection:
        """Connect to a device, over whatever path works first.

        Args:
            address: its key, and where it may be. Addresses that cannot be sent to are left out.
            alpn: the protocol to speak.
            timeout: seconds for the whole attempt; a peer that is not there looks like one that is slow.

        Raises:
            PeerUnreachable: no connection in time, nowhere to dial, not a key, or the protocol is refused.
        """
        who = address.device[:10]
        try:
            async with asyncio.timeout(timeout):
                target = await self._target(address)
                inner = await self._inner.connect(target, alpn)
        except TimeoutError:
            raise PeerUnreachable(f"{who} does not answer within {timeout:g} s") from None
        except iroh.IrohError as error:
            raise PeerUnreachable(f"{who} cannot be reached: {cause(error)}") from None
        return self._wrap(inner)

    async def accept(self) -> Connection | None:
        """Wait for the next device that connects to us; None once the endpoint is closed.

        Its key is proved, its membership is not (``net.link``).
        """
        connection = await self._accepted.get()
        if connection is None:
            self._accepted.put_nowait(None)
        return connection

    async def add_external(self, addr: str) -> None:
        """Tell the engine an address that others see us at.

        Args:
            addr: ``IP:PORT``, from a peer: one that cannot be sent to is ignored.
        """
        if usable_addrs([addr], 1) and addr not in self._external:
            self._external.add(addr)
            await self._engine(self._inner.add_external_addr(addr))

    async def remove_external(self, addr: str) -> None:
        """Take an address back that was added before."""
        if addr in self._external:
            self._external.discard(addr)
            await self._engine(self._inner.remove_external_addr(addr))

    @property
    def relays(self) -> frozenset[str]:
        """URLs of the relays that it listens on."""
        return frozenset(self._relays)

    async def set_relays(self, relays: Sequence[str]) -> None:
        """Use these relays from now on, and no others.

        Raises:
            Misuse: one is not a URL.
        """
        wanted = set(relays)
        for url in sorted(wanted - self._relays):
            await self._engine(self._inner.insert_relay(_relay_config(url)))
            self._relays.add(url)
        for url in sorted(self._relays - wanted):
            await self._engine(self._inner.remove_relay(url))
            self._relays.discard(url)

    def on_address_change(self, callback: Callable[[], None]) -> Watch:
        """Call ``callback`` in the event loop when our addresses or our home relay change: another network.

        Not built on the binding's ``watch_network_change``: in iroh-ffi 1.2.0 that is a loop without a wait, which
        calls the engine's "the network may have changed" some 2,500 times a second.

        Args:
            callback: must neither block nor raise.
        """
        return Watch(self._inner.watch_addr(_AddressWatcher(callback)), self._watches)

    async def close(self) -> None:
        """Close every connection, stop accepting, free the sockets. Doing so twice is harmless."""
        if self._closing:
            return
        self._closing = True
        for watch in list(self._watches):
            await watch.stop()
        tasks = [self._acceptor, *self._pending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end_accepting()
        # The engine waits for peers to confirm the close; nobody is owed more than a clean shutdown's time.
        with contextlib.suppress(TimeoutError, iroh.IrohError):
            async with asyncio.timeout(limits.ENDPOINT_CLOSE_S):
                await self._inner.close()

    async def _accept_forever(self) -> None:
        while True:
            incoming = await self._inner.accept_next()
            if incoming is None:
                self._end_accepting()
                return
            task = asyncio.create_task(self._admit(incoming), name="endpoint-handshake")
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    async def _admit(self, incoming: Any) -> None:
        """Bring one incoming connection through its handshake; whatever it does, only it suffers."""
        try:
            async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT_S):
                if len(self._pending) > self._pending_max:
                    self.counters["handshake-refused"] += 1
                    await incoming.refuse()
                    return
                if len(self._pending) > self._pending_max // 2 and not await incoming.remote_addr_validated():
                    # Crowded: a spoofed source address cannot echo the token (RFC 9000, section 8.1.2).
                    await incoming.retry()
                    return
                accepting = await incoming.accept()
                connection = self._wrap(await accepting.connect())
            if self._accepted.qsize() >= self._pending_max:
                self.counters["handshake-refused"] += 1
                connection.close(CLOSE_BUSY, "too many connections wait to be looked at")
            elif not self._closing:
                self._accepted.put_nowait(connection)
        except TimeoutError:
            self.counters["handshake-timeout"] += 1
        except iroh.IrohError:
            self.counters["handshake-failed"] += 1

    def _end_accepting(self) -> None:
        """Drop who is still waiting to be looked at, and let ``accept`` return None from now on."""
        while not self._accepted.empty():
            connection = self._accepted.get_nowait()
            if connection is not None:
                connection.close()
        self._accepted.put_nowait(None)

    async def _target(self, address: NodeAddress) -> Any:
        device = iroh.EndpointId.from_string(address.device)
        addrs = usable_addrs(address.addrs, limits.ADDRESSES_PER_DEVICE_MAX)
        if not addrs and address.relay is None and await self._inner.remote_addr(device) is None:
            # The engine would wait for an address until the timeout.
            raise PeerUnreachable(
                f"{address.device[:10]} cannot be dialled: neither an address nor a relay of it is known"
            )
        return iroh.EndpointAddr(device, address.relay, addrs)

    def _wrap(self, inner: Any) -> Connection:
        return Connection(inner, self._addresses_lately, self._watches)

    async def _engine(self, call: Any) -> None:
        try:
            async with asyncio.timeout(limits.SHUTDOWN_S):
                await call
        except TimeoutError:
            raise TransportError("the network engine does not answer") from None
        except iroh.IrohError as error:
            raise TransportError(f"the network engine refuses: {cause(error)}") from None


class _Preset(iroh.Preset):  # type: ignore[misc]  # the generated binding has no types
    """What an endpoint is made of before its options: no third party's servers, no socket that nobody asked for."""

    def __init__(self, beside: str | None) -> None:
        self._beside = beside

    def apply(self, builder: Any) -> None:
        """Called by the engine while it binds."""
        builder.apply_minimal()
        if self._beside is not None:
            builder.bind_addr(f"{self._beside}0")


def _beside(ip: IpAddress) -> str | None:
    """Where to bind the engine's socket of the other address family, without its port; None: a wildcard.

    The engine insists on an address that it is told, so it is told none that cannot be bound: where the machine has no
    such family there is nothing to keep closed either.
    """
    if ip.is_unspecified:
        return None
    family, host, text = (
        (socket.AF_INET6, "::1", "[::1]:") if ip.version == 4 else (socket.AF_INET, "127.0.0.1", "127.0.0.1:")
    )
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return None
    return text


class _AddressWatcher(iroh.AddrChangeCallback):  # type: ignore[misc]  # the generated binding has no types
    """What the engine calls, in our event loop, with our own addresses, the first time at once."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._last: tuple[frozenset[str], str | None] | None = None

    async def on_change(self, addr: Any) -> None:
        now = (frozenset(map(str, addr.direct_addresses())), addr.relay_url())
        if self._last is not None and now != self._last:
            self._callback()
        self._last = now


def _relay_map(relays: Sequence[str]) -> Any:
    relay_map = iroh.RelayMap.empty()
    for url in relays:
        relay_map.insert(_relay_config(url))
    return relay_map


def _relay_config(url: str) -> Any:
    if not url.startswith(("http://", "https://")):
        raise Misuse(f"not a relay's URL: {url[:256]!r}", hint="write http://HOST:PORT or https://HOST")
    # With a QUIC port the engine would wait 3 s for address discovery, which our relays do not have.
    return iroh.RelayConfig(url=url, quic_port=None)


def _bind_failed(bind: str, error: Any) -> DeviceError | Misuse:
    why = cause(error)
    if "in use" in why:
        return PortTaken(
            f"cannot listen on {bind}: the UDP port is taken",
            hint="stop the other process, or choose another port with --listen",
        )
    if error.kind() == iroh.IrohErrorKind.BIND:
        return DeviceError(f"cannot listen on {bind}: {why}", hint="use an address of this machine")
    return Misuse(f"cannot open the network: {why}", hint="check the address to listen on and the relay URLs")
