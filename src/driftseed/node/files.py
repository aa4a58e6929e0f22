"""Metadata and small targets by name, from neighbours and to them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from driftseed.core import limits, wire
from driftseed.core.errors import FileMissing, PeerMisbehaved, TransportError
from driftseed.core.ids import DeviceId
from driftseed.net.connection import Connection
from driftseed.net.stream import Stream
from driftseed.node.ledger import Ledger
from driftseed.node.requests import get_file

_log = logging.getLogger(__name__)

FETCH_TIMEOUT_S: Final = 60.0
"""Seconds for one file, all peers that are asked for it together."""
SLOW_S: Final = 2.0
"""Seconds without an answer after which the next peer is asked as well: one that stalls holds up nothing."""
TIMESTAMP_NAME: Final = "metadata/timestamp.json"
_WRITE_BYTES: Final = 64 * limits.KIB


@dataclass(frozen=True, slots=True)
class FilePeer:
    """Someone to ask for files."""

    device: DeviceId
    connection: Connection


class PeerSource:
    """Fetches files for the trust workflow, which runs in a worker thread, from peers in order.

    The timestamp is the notice that set the refresh off, so that one refresh sees one consistent state.

    Args:
        peers: whom to ask, the likeliest first.
        loop: where the links live.
        timestamp: bytes of the notice; None asks the peers for theirs.
        version: timestamp version that the peers shall be ready for.
        timeout_s: seconds for one file, all peers together.
        ledger: where their faults are counted.
    """

    def __init__(
        self,
        peers: Sequence[FilePeer],
        loop: asyncio.AbstractEventLoop,
        ledger: Ledger,
        *,
        timestamp: bytes | None = None,
        version: int = 0,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        self._timeout_s = timeout_s
        self._peers = list(peers)
        self._loop = loop
        self._ledger = ledger
        self._timestamp = timestamp
        self._version = version

    def fetch(self, name: str, max_length: int) -> bytes:
        """Fetch one file; called in a worker thread. Raises FileMissing or TransportError."""
        if name == TIMESTAMP_NAME and self._timestamp is not None:
            return self._timestamp
        future = asyncio.run_coroutine_threadsafe(self._fetch(name, max_length), self._loop)
        try:
            return future.result(self._timeout_s)
        except TimeoutError:
            future.cancel()
            raise TransportError(f"no peer gave {name} within {self._timeout_s:.0f} s") from None

    async def _fetch(self, name: str, max_length: int) -> bytes:
        """Ask the peers in order, the next one when one has it not, fails, or is slow; the first file counts."""
        waiting = deque(self._peers)
        asked: dict[asyncio.Task[bytes | None], FilePeer] = {}
        failure: TransportError | None = None
        try:
            while waiting or asked:
                if waiting:
                    peer = waiting.popleft()
                    work = get_file(peer.connection, name, max_length, at_least=self._version)
                    asked[asyncio.create_task(work, name=f"file from {peer.device[:8]}")] = peer
                done, _ = await asyncio.wait(
                    asked, timeout=SLOW_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    answer = self._answer(asked.pop(task), task)
                    if isinstance(answer, bytes):
                        return answer
                    failure = answer or failure
                    if answer is None and name.endswith(".root.json"):
                        # The walk up the chain of roots ends by asking for one that does not exist yet (TUF
                        # 5.3.3): whoever is ready for this timestamp has all roots there are.
                        waiting.clear()
        finally:
            await self._give_up(asked)
        if failure is not None and not self._peers:
            raise failure
        raise FileMissing(f"no peer that was asked has {name}")

    def _answer(self, peer: FilePeer, task: asyncio.Task[bytes | None]) -> bytes | TransportError | None:
        """What came of asking one peer; None: it does not have the file."""
        try:
            return task.result()
        except TransportError as error:
            if isinstance(error, PeerMisbehaved):
                self._ledger.drop(error.kind, peer.device, error.message)
            # Not asked for the next file either: every file would wait for its timeout again.
            self._peers.remove(peer)
            return error

    async def _give_up(self, asked: Mapping[asyncio.Task[bytes | None], FilePeer]) -> None:
        """Another was faster: those that are still asked come last for the next file."""
        for task, peer in asked.items():
            task.cancel()
            self._peers.remove(peer)
            self._peers.append(peer)
        if asked:
            await asyncio.wait(asked)


async def serve_file(
    request: wire.GetFile,
    stream: Stream,
    read: Callable[[str], bytes | None],
    ready: Callable[[int], asyncio.Future[None] | None],
) -> None:
    """Answer one GetFile.

    Args:
        request: what is asked for.
        stream: where to answer.
        read: gives a verified file's bytes by its name.
        ready: gives a future that ends when this node serves that timestamp version; None if it does now.

    Raises:
        TransportError: the peer is gone.
    """
    waiting = ready(request.at_least)
    if waiting is not None:
        await asyncio.wait({waiting}, timeout=limits.FILE_REQUEST_WAIT_S)
    data = read(request.name)
    await stream.write_frame(wire.FileHead(length=-1 if data is None else len(data)), limits.WRITE_TIMEOUT_S)
    if data is not None:
        for start in range(0, len(data), _WRITE_BYTES):
            await stream.write_raw(data[start : start + _WRITE_BYTES], limits.WRITE_TIMEOUT_S)
    await stream.finish()
