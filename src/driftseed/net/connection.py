"""A QUIC connection to one device whose key the handshake has proved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from driftseed.core import limits
from driftseed.core.errors import LinkClosed, PeerStalled
from driftseed.core.ids import DeviceId, parse_device_id
from driftseed.net.paths import UNKNOWN_PATH, Path, classify
from driftseed.net.shim import cause, iroh
from driftseed.net.stream import Stream

REASON_BYTES_MAX = 256
"""Bytes of a close reason; it must fit into one packet."""
ALIVE_FRESH_S = 0.1
"""Seconds for which a connection is taken to live after the engine said so: every choice among links asks it of
each of them, and each question crosses into the engine."""
PATHS_FRESH_S = 0.5
"""Seconds for which what the engine said of a connection's paths is believed."""


class Watch:
    """A registered callback of the engine; stopped by its owner, or with the endpoint at the latest."""

    def __init__(self, handle: Any, registered: set[Watch]) -> None:
        self._handle: Any = handle
        self._registered = registered
        registered.add(self)

    async def stop(self) -> None:
        """No more calls. Stopping twice is harmless."""
        self._registered.discard(self)
        async with asyncio.timeout(limits.SHUTDOWN_S):
            await self._handle.stop()


class Connection:
    """Typed wrapper of the engine's connection: streams, path, end.

    Args:
        inner: the engine's connection, handshake done.
        own_addrs: gives our own addresses, to tell a LAN from the internet.
        watches: the endpoint's registered callbacks.
    """

    def __init__(self, inner: Any, own_addrs: Callable[[], list[str]], watches: set[Watch]) -> None:
        self._inner: Any = inner
        self._own_addrs = own_addrs
        self._watches = watches
        self._last_path = UNKNOWN_PATH
        self._snapshot: list[Any] = []
        self._snapshot_until = float("-inf")
        self._ended = False
        self._alive_until = float("-inf")
        self.remote: DeviceId = parse_device_id(str(inner.remote_id()))
        self.alpn: bytes = bytes(inner.alpn())
        inner.set_max_concurrent_uni_streams(0)
        inner.set_max_concurrent_bi_streams(limits.STREAMS_PER_LINK_MAX)
        inner.set_receive_window(limits.LINK_WINDOW_BYTES)

    async def open_stream(self) -> Stream:
        """Open a stream; the peer learns of it with the first byte written.

        Raises:
            PeerStalled: the peer holds as many streams open as it allows and lets none go.
            LinkClosed: the connection is gone.
        """
        try:
            async with asyncio.timeout(limits.WRITE_TIMEOUT_S):
                return Stream(await self._inner.open_bi())
        except TimeoutError:
            raise PeerStalled(f"{self.remote[:10]} lets no further stream be opened") from None
        except iroh.IrohError as error:
            raise self._gone(error) from None

    async def accept_stream(self, timeout: float | None = None) -> Stream:  # noqa: ASYNC109 - None means: as long as it lives
        """Wait for a stream that the peer opens.

        Args:
            timeout: seconds; None waits as long as the connection lives.

        Raises:
            PeerStalled: none was opened in time. (The peer may have opened one at that very moment, which is
                then lost: close the connection.)
            LinkClosed: the connection is gone.
        """
        try:
            async with asyncio.timeout(timeout):
                return Stream(await self._inner.accept_bi())
        except TimeoutError:
            raise PeerStalled(f"{self.remote[:10]} opened no stream for {timeout:g} s") from None
        except iroh.IrohError as error:
            raise self._gone(error) from None

    def path(self) -> Path:
        """The path in use now (to ``PATHS_FRESH_S``); the last one known when none is selected at the moment."""
        self._look_at_paths()
        return self._last_path

    def remote_socket_addr(self) -> str | None:
        """Where the peer's packets come from, ``IP:PORT``; None when only a relay carries them.

        What a device must know of itself to be found behind its NAT, and cannot see.
        """
        self._look_at_paths()
        direct = [path for path in self._snapshot if path.is_ip]
        direct.sort(key=lambda path: not path.is_selected)
        return str(direct[0].remote_addr) if direct else None

    def _look_at_paths(self) -> None:
        # Each question costs the engine a copy of all paths and us some hundred calls, and a node with many
        # links asks about each of them whenever it chooses among them.
        now = time.monotonic()
        if self._snapshot and now < self._snapshot_until:
            return
        self._snapshot = self._inner.paths()
        self._snapshot_until = now + PATHS_FRESH_S
        chosen = self._choose(self._snapshot)
        if chosen is not None:
            self._last_path = chosen

    def watch_path(self, callback: Callable[[Path], None]) -> Watch:
        """Call ``callback`` in the event loop whenever the selected path changes.

        Args:
            callback: must neither block nor raise.
        """
        return Watch(self._inner.watch_paths(_PathWatcher(self, callback)), self._watches)

    def bytes_received(self) -> int:
        """UDP payload bytes that came on this connection so far."""
        return int(self._inner.stats().udp_rx_bytes)

    def close(self, code: int = 0, reason: str = "") -> None:
        """End the connection at once; what is not yet delivered is lost. Doing so twice is harmless.

        Args:
            code: application error code, for the peer's log.
            reason: likewise; cut to what fits into a packet.
        """
        self._inner.close(code, reason.encode()[:REASON_BYTES_MAX])
        self._ended = True

    async def wait_closed(self) -> str:
        """Wait, without bound, for the end of the connection. Returns why it ended."""
        reason = str(await self._inner.closed())
        self._ended = True
        return reason

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, as far as was known ``ALIVE_FRESH_S`` ago."""
        if not self._ended:
            now = time.monotonic()
            if now >= self._alive_until:
                self._ended = self._inner.close_reason() is not None
                self._alive_until = now + ALIVE_FRESH_S
        return self._ended

    def _choose(self, paths: list[Any]) -> Path | None:
        selected = next((path for path in paths if path.is_selected), None)
        if selected is None:
            return None
        addr = str(selected.remote_addr)
        kind = "relayed" if selected.is_relay else classify(addr, self._own_addrs())
        return Path(kind=kind, rtt_ms=int(selected.rtt_ms), remote_addr=addr)

    def _gone(self, error: Any) -> LinkClosed:
        # A stream fails also when only it was reset: the next question goes to the engine.
        self._alive_until = float("-inf")
        return LinkClosed(f"the connection to {self.remote[:10]} ended: {cause(error)}")

    def __repr__(self) -> str:
        return f"Connection({self.remote[:10]}, {self.alpn.decode(errors='replace')})"


class _PathWatcher(iroh.PathChangeCallback):  # type: ignore[misc]  # the generated binding has no types
    """What the engine calls, in our event loop, with every change of the paths."""

    def __init__(self, connection: Connection, callback: Callable[[Path], None]) -> None:
        self._connection = connection
        self._callback = callback
        # Of its own: whoever asks for the path in between must not make a change go unnoticed.
        self._last = connection._last_path  # noqa: SLF001 - the same module's other half

    async def on_change(self, paths: list[Any]) -> None:
        chosen = self._connection._choose(paths)  # noqa: SLF001
        if chosen is None or (chosen.kind, chosen.remote_addr) == (self._last.kind, self._last.remote_addr):
            return
        self._last = chosen
        self._connection._last_path = chosen  # noqa: SLF001
        self._callback(chosen)
