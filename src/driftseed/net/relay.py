"""The relay: carries the datagrams of devices that cannot reach each other directly.

It speaks the server's side of iroh's relay protocol (``net.relay_frames``) as routes of an aiohttp application, so
that a hub serves it beside its console. What it carries is QUIC, encrypted end to end: it sees keys and sizes.

Only members are let in. A device that is about to join is none yet, so a relay may let strangers in as guests
who can exchange datagrams with the hub's own endpoints only, slowly.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import logging
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeAlias

from aiohttp import WSMsgType, web

from driftseed.core import limits
from driftseed.core.errors import DeviceError, PeerMisbehaved, PeerStalled, PortTaken, TransportError
from driftseed.core.ids import DeviceId
from driftseed.net import relay_frames
from driftseed.net.relay_client import RelayClient, close_socket
from driftseed.net.relay_frames import Forward, Ping, Pong, Status

LOG = logging.getLogger(__name__)

Admit: TypeAlias = Callable[[DeviceId], bool | Awaitable[bool]]
"""Says whether a device, whose key is proved, may use the relay."""

RESTART_RECONNECT_MS: Final = 1000
RESTART_TRY_MS: Final = 60_000
_WRITER_LIMIT: Final = 256 * limits.KIB
"""Bytes that a WebSocket buffers before a write waits for the network."""


class RelayServer:
    """A relay. Add its routes to an application (``routes``), or serve it alone (``start``).

    Args:
        admit: who may use it.
        guests_reach: keys that everybody may exchange datagrams with, in order to join; empty: no guests.
        expelled: who may not even be a guest.
        bytes_per_second: that one client may send.
        clients_max: clients connected at once.
        pinged: told what somebody who asks whether the relay is there says besides (``GET /ping?PROOF``).
    """

    def __init__(
        self,
        admit: Admit,
        *,
        guests_reach: Collection[DeviceId] = (),
        expelled: Callable[[DeviceId], bool] = lambda _device: False,
        bytes_per_second: float = limits.RELAY_BYTES_PER_SECOND,
        clients_max: int = limits.RELAY_CLIENTS_MAX,
        pinged: Callable[[str], None] = lambda _proof: None,
    ) -> None:
        self._admit = admit
        self._pinged = pinged
        self._expelled = expelled
        self._guests_reach = {bytes.fromhex(device) for device in guests_reach}
        self._rate = bytes_per_second
        self._clients_max = clients_max
        self._active: dict[bytes, RelayClient] = {}
        self._spares: dict[bytes, list[RelayClient]] = {}
        self._open: set[RelayClient] = set()
        self._entering = 0
        self._runner: web.AppRunner | None = None
        self._frames = 0
        self._bytes = 0
        self._drops: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()

    def routes(self, app: web.Application) -> None:
        """Add ``GET /ping`` and ``GET /relay`` to an application, and say good-bye when it shuts down."""
        app.router.add_get("/ping", self._ping)
        app.router.add_get("/relay", self._relay)
        app.on_shutdown.append(self._shutdown)

    async def start(self, host: str, port: int) -> int:
        """Serve the relay and nothing else. Returns the port, which port 0 lets the system choose.

        Raises:
            PortTaken: another process has it.
            DeviceError: the address is not this machine's.
        """
        app = web.Application()
        self.routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"cannot listen on {host}:{port}: the TCP port is taken",
                    hint="stop the other process, or choose another port with --listen",
                ) from None
            raise DeviceError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        self._runner = runner
        return int(runner.addresses[0][1])

    async def close(self) -> None:
        """Tell the clients, and stop serving what ``start`` began."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def promote(self, device: DeviceId) -> None:
        """A guest has proved to be a member meanwhile: it may exchange datagrams with everyone from now on."""
        key = bytes.fromhex(device)
        for client in [self._active.get(key), *self._spares.get(key, ())]:
            if client is not None:
                client.promote(self._rate)

    def expel(self) -> None:
        """Throw out whoever is expelled by now."""
        for client in [each for each in self._open if self._expelled(each.device)]:
            self._closed["expelled"] += 1
            client.hang_up()

    def stats(self) -> dict[str, int]:
        """What the relay has done.

        ``clients`` and ``guests`` are connected now; ``frames`` and ``bytes`` were forwarded;
        ``drop:REASON`` counts frames, ``closed:REASON`` connections not let in or thrown out.
        """
        return {
            "clients": len(self._active),
            "guests": sum(client.guest for client in self._active.values()),
            "frames": self._frames,
            "bytes": self._bytes,
            **{f"drop:{reason}": count for reason, count in sorted(self._drops.items())},
            **{f"closed:{reason}": count for reason, count in sorted(self._closed.items())},
        }

    async def _ping(self, request: web.Request) -> web.Response:
        if request.query_string:
            self._pinged(request.query_string)
        return web.Response(text="pong\n", headers={"Access-Control-Allow-Origin": "*"})

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        offered = {name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")}
        chosen = next((name for name in relay_frames.PROTOCOLS if name in offered), None)
        if chosen is None:
            raise web.HTTPBadRequest(text="this is a relay; it speaks iroh-relay-v2 and iroh-relay-v1\n")
        if self._entering >= limits.PENDING_HANDSHAKES_MAX or len(self._open) >= self._clients_max:
            self._closed["busy"] += 1
            raise web.HTTPServiceUnavailable(text="too many clients\n")
        socket = web.WebSocketResponse(
            protocols=(chosen,),
            compress=False,
            # aiohttp refuses a message of just this size.
            max_msg_size=limits.RELAY_FRAME_BYTES_MAX + 1,
            timeout=limits.STREAM_RESET_TIMEOUT_S,
            writer_limit=_WRITER_LIMIT,
            autoclose=False,
        )
        self._entering += 1
        client = None
        try:
            await socket.prepare(request)
            client = await self._enter(socket)
        finally:
            self._entering -= 1
            if client is None:
                await close_socket(socket)
        if client is not None:
            await self._attend(client)
        return socket

    async def _enter(self, socket: web.WebSocketResponse) -> RelayClient | None:
        """The handshake: a key, proved; and whether it is welcome."""
        challenge = secrets.token_bytes(relay_frames.CHALLENGE_BYTES)
        try:
            async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT_S):
                await socket.send_bytes(relay_frames.challenge_frame(challenge))
                message = await socket.receive()
                if message.type is not WSMsgType.BINARY:
                    self._closed["auth-missing"] += 1
                    return None
                device = relay_frames.check_auth(message.data, challenge)
                verdict = self._admit(device)
                member = await verdict if inspect.isawaitable(verdict) else verdict
                if self._expelled(device) or (not member and not self._guests_reach):
                    self._closed["not-admitted"] += 1
                    LOG.info("relay: %s is not admitted", device[:10])
                    await socket.send_bytes(relay_frames.deny_frame("not a member of this fleet"))
                    return None
                await socket.send_bytes(relay_frames.confirm_frame())
        except TimeoutError:
            self._closed["auth-timeout"] += 1
        except PeerMisbehaved as error:
            self._closed[error.kind] += 1
            with contextlib.suppress(ConnectionError):
                await socket.send_bytes(relay_frames.deny_frame(error.message))
        except ConnectionError:
            self._closed["gone"] += 1
        else:
            rate = self._rate if member else min(self._rate, limits.RELAY_GUEST_BYTES_PER_SECOND)
            return RelayClient(device, socket, rate=rate, guest=not member, drops=self._drops)
        return None

    async def _attend(self, client: RelayClient) -> None:
        """Serve a client until it goes, or must."""
        self._register(client)
        tasks = [
            asyncio.create_task(client.write_forever(), name="relay-write"),
            asyncio.create_task(self._read_forever(client), name="relay-read"),
            asyncio.create_task(_ping_forever(client), name="relay-ping"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self._unregister(client)
            try:
                for result in results:
                    self._note_end(client, result)
            finally:
                await client.close()

    def _note_end(self, client: RelayClient, result: BaseException | None) -> None:
        match result:
            case PeerMisbehaved():
                self._closed[result.kind] += 1
                LOG.info("relay: %s misbehaved: %s", client.device[:10], result)
            case PeerStalled():
                self._closed[result.reason] += 1
            case None | asyncio.CancelledError() | ConnectionError() | TransportError():
                return
            case _:
                raise result

    async def _read_forever(self, client: RelayClient) -> None:
        while (frame := await client.receive()) is not None:
            await client.slow_down(len(frame))
            match relay_frames.parse_client_frame(frame):
                case Forward(destination, kind):
                    self._forward(client, destination, kind, frame)
                case Ping(data):
                    client.offer(relay_frames.pong_frame(data))
                case Pong():
                    continue
                case unknown:
                    self._drops["unknown-type"] += 1
                    LOG.debug("relay: %s sent a frame of type %#x", client.device[:10], unknown.type)

    def _forward(
        self, client: RelayClient, destination: bytes, kind: relay_frames.FrameType, frame: bytes
    ) -> None:
        target = self._active.get(destination)
        if target is None:
            self._drops["not-connected"] += 1
            return
        if target is client:
            self._drops["to-itself"] += 1
            return
        if not (self._may_send(client, target) and self._may_send(target, client)):
            self._drops["guest"] += 1
            return
        if len(client.contacts) < limits.RELAY_CONTACTS_MAX:
            client.contacts.add(destination)
        if target.offer(relay_frames.forwarded_frame(frame, kind, client.key)):
            self._frames += 1
            self._bytes += len(frame)

    def _may_send(self, one: RelayClient, other: RelayClient) -> bool:
        return not one.guest or other.key in self._guests_reach

    def _register(self, client: RelayClient) -> None:
        """The newest connection of a key gets its datagrams.

        The older ones stay as spares, as the reference server has it: a closed one would connect again at once, and
        two copies of one device image would throw each other out for ever.
        """
        self._open.add(client)
        older = self._active.get(client.key)
        if older is not None:
            older.tell(Status.ELSEWHERE)
            spares = self._spares.setdefault(client.key, [])
            spares.append(older)
            for surplus in spares[: -limits.RELAY_SPARES_MAX]:
                surplus.hang_up()
        self._active[client.key] = client

    def _unregister(self, client: RelayClient) -> None:
        self._open.discard(client)
        spares = self._spares.get(client.key, [])
        if client in spares:
            spares.remove(client)
        elif spares:
            promoted = spares.pop()
            self._active[client.key] = promoted
            promoted.tell(Status.HEALTHY)
        else:
            del self._active[client.key]
            for contact in client.contacts & self._active.keys():
                self._active[contact].offer(relay_frames.gone_frame(client.key))
        if not spares:
            self._spares.pop(client.key, None)

    async def _shutdown(self, _app: web.Application) -> None:
        """Let the clients look for another relay now instead of finding out."""
        for client in list(self._open):
            client.offer(relay_frames.restarting_frame(RESTART_RECONNECT_MS, RESTART_TRY_MS))
            client.hang_up()


async def _ping_forever(client: RelayClient) -> None:
    """A sign of life that keeps bindings of NATs and proxies open; its answer counts as traffic."""
    while True:
        # Spread, so that a thousand clients of a relay that just started are not pinged in one moment.
        await asyncio.sleep(limits.RELAY_PING_S + random.uniform(-2, 2))  # noqa: S311 - no secret
        client.offer(relay_frames.ping_frame(secrets.token_bytes(relay_frames.PING_BYTES)))
