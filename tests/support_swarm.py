"""Content, engines whose events can be awaited, and a hostile seed, for the tests of the swarm."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import libtorrent as lt

from driftseed.core.ids import Digest
from driftseed.core.model import Artifact
from driftseed.core.verified import VerifiedArtifact, VerifiedTorrent
from driftseed.swarm import protocol
from driftseed.swarm.client import PARTIAL_SUFFIX, Engine
from driftseed.swarm.torrent import make_torrent

MIB = 1024 * 1024
WAIT_S = 30.0
"""Seconds after which a test that waits for an event has failed; nothing takes a tenth of it."""

EventT = TypeVar("EventT")


@dataclass(frozen=True)
class Content:
    """A file that an origin has, with its torrent."""

    path: Path
    data: bytes
    torrent: VerifiedTorrent

    @property
    def sha256(self) -> Digest:
        return Digest(self.torrent.artifact.sha256)

    @property
    def artifact(self) -> Artifact:
        return self.torrent.artifact

    def verified(self, path: Path) -> VerifiedArtifact:
        """What trust/ says after comparing the file with the signed length and SHA-256."""
        assert path.read_bytes() == self.data
        return VerifiedArtifact(self.artifact, path)


def make_content(directory: Path, length: int, *, seed: int = 0, piece_length: int | None = None) -> Content:
    """Make a file of random bytes, under a name that is nobody's SHA-256."""
    directory.mkdir(parents=True, exist_ok=True)
    data = random.Random(seed).randbytes(length)
    path = directory / f"original {seed}.bin"
    path.write_bytes(data)
    sha256 = Digest(hashlib.sha256(data).hexdigest())
    torrent = make_torrent(path, sha256, piece_length)
    artifact = Artifact(
        filename="original.bin",
        length=length,
        sha256=sha256,
        torrent_sha256=hashlib.sha256(torrent).hexdigest(),
    )
    return Content(path, data, VerifiedTorrent(artifact, torrent))


class Node:
    """An engine, a directory for its content, and all it said."""

    def __init__(self, directory: Path, **limits: int) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.events: list[protocol.Event] = []
        self._changed = asyncio.Event()
        self.engine = Engine(self._on_event, **limits)

    def _on_event(self, event: protocol.Event) -> None:
        self.events.append(event)
        self._changed.set()

    def said(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]

    async def wait(
        self,
        kind: type[EventT],
        matches: Callable[[EventT], bool] = lambda _: True,
        *,
        skip: int = 0,
    ) -> EventT:
        """Wait until there is such an event among those after the first ``skip`` events."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for event in self.events[skip:]:
                    if isinstance(event, kind) and matches(event):
                        return event
                self._changed.clear()
                await self._changed.wait()

    def partial(self, content: Content) -> Path:
        return self.directory / (content.sha256 + PARTIAL_SUFFIX)

    def path(self, content: Content) -> Path:
        return self.directory / content.sha256

    async def fetch_from(self, content: Content, *sources: Node) -> None:
        await self.engine.fetch(content.torrent, self.directory)
        for source in sources:
            await self.engine.connect_peer(content.sha256, *source.engine.listen_address)


@asynccontextmanager
async def running(directory: Path, count: int, **limits: int) -> AsyncIterator[list[Node]]:
    """So many engines, stopped at the end."""
    nodes = [Node(directory / f"node{number}", **limits) for number in range(count)]
    async with AsyncExitStack() as stack:
        for node in nodes:
            stack.push_async_callback(node.engine.stop)
        await asyncio.gather(*(node.engine.start() for node in nodes))
        yield nodes


class HostileSeed:
    """A member that says it has everything and sends other bytes than it should.

    libtorrent itself, told to check nothing, at a loopback address of its own, as a device behind a tunnel has.
    """

    def __init__(self, content: Content, directory: Path, ip: str = "127.0.0.66") -> None:
        self.ip = ip
        directory.mkdir(parents=True, exist_ok=True)
        (directory / content.sha256).write_bytes(bytes(len(content.data)))
        settings: Any = {
            "listen_interfaces": f"{ip}:0",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "disable_hash_checks": True,
            "in_enc_policy": 2,
            "out_enc_policy": 2,
        }
        self._session = lt.session(settings)
        parameters = lt.load_torrent_buffer(content.torrent.data)
        parameters.save_path = str(directory)
        parameters.flags = lt.torrent_flags.seed_mode
        self._session.add_torrent(parameters)

    @property
    def port(self) -> int:
        return int(self._session.listen_port())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.pause()
