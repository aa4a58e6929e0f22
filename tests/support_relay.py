"""A relay on loopback, and clients of it that speak frame by frame."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from driftseed.core.ids import DeviceId
from driftseed.net import relay_frames
from driftseed.net.identity import Identity
from driftseed.net.relay import Admit, RelayServer
from support_net import WAIT_S


@asynccontextmanager
async def relay(admit: Admit = lambda _: True, **options: Any) -> AsyncIterator[tuple[RelayServer, str]]:
    server = RelayServer(admit, **options)
    port = await server.start("127.0.0.1", 0)
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        await server.close()


class RawClient:
    """A relay client without an endpoint."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, identity: Identity) -> None:
        self.socket = socket
        self.identity = identity
        self.device: DeviceId = identity.device
        self.key = bytes.fromhex(identity.device)

    async def send(self, frame: bytes) -> None:
        await self.socket.send_bytes(frame)

    async def read(self) -> bytes | None:
        """The next frame; None at the end."""
        async with asyncio.timeout(WAIT_S):
            message = await self.socket.receive()
        return message.data if message.type is aiohttp.WSMsgType.BINARY else None

    async def authenticate(self) -> bytes | None:
        """Answer the challenge, and return what comes back."""
        frame = await self.read()
        assert frame is not None
        assert frame[0] == relay_frames.FrameType.CHALLENGE
        message = relay_frames.signed_message(frame[1:])
        await self.send(relay_frames.auth_frame(self.key, self.identity.sign(message)))
        return await self.read()

    async def ping(self) -> None:
        """Wait until everything sent before has been dealt with."""
        data = os.urandom(8)
        await self.send(relay_frames.ping_frame(data))
        assert await self.read() == relay_frames.pong_frame(data)

    def datagram(self, to: RawClient, payload: bytes) -> bytes:
        return b"\x04" + to.key + b"\0" + payload


@asynccontextmanager
async def dialled(
    url: str, identity: Identity | None = None, protocols: tuple[str, ...] = relay_frames.PROTOCOLS
) -> AsyncIterator[RawClient]:
    """A client before its handshake."""
    timeout = aiohttp.ClientWSTimeout(ws_close=1.0)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"{url}/relay", protocols=protocols, max_msg_size=0, timeout=timeout, autoping=False
        ) as socket,
    ):
        yield RawClient(socket, identity or Identity.generate())


@asynccontextmanager
async def admitted(
    url: str, identity: Identity | None = None, protocols: tuple[str, ...] = relay_frames.PROTOCOLS
) -> AsyncIterator[RawClient]:
    """A client that is in."""
    async with dialled(url, identity, protocols) as client:
        assert await client.authenticate() == b"\x02"
        yield client
