"""The agent's side of the BitTorrent engine: starts it, tells it what to carry, starts it again when it dies.

What is wanted is kept here, and a new engine is told all of it; so the death of the engine costs the connections
and a check of partial files, and nothing else. libtorrent is not imported: it lives in the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from driftseed.core.errors import EngineFailed
from driftseed.core.ids import Digest
from driftseed.core.verified import VerifiedTorrent
from driftseed.store import files
from driftseed.swarm import protocol
from driftseed.swarm.child import STOP_TIMEOUT_S, Child
from driftseed.swarm.protocol import Event, Progress
from driftseed.swarm.wanted import Wanted

PARTIAL_SUFFIX: Final = ".unverified"
"""Of a file whose SHA-256 was not yet compared with the signed one."""
START_TIMEOUT_S: Final = 15.0
"""Seconds in which a new engine must say where it listens; a slow board needs some."""
COMMAND_TIMEOUT_S: Final = 10.0
"""Seconds in which the engine must take, or answer, a command."""
DEATHS_MAX: Final = 5
"""Deaths within ``DEATHS_WINDOW_S`` after which the engine is given up."""
DEATHS_WINDOW_S: Final = 60.0
RESTART_DELAY_MAX_S: Final = 5.0
RESTART_DELAY_S: Final = 0.1
"""Seconds before the first restart; doubled for each further death in the window."""
BANS_KEPT_MAX: Final = 1024
"""Banned addresses that a new engine is told."""

log = logging.getLogger(__name__)


class Engine:
    """One BitTorrent engine for all contents.

    Not started in the constructor: a process is only worth its memory while there is something to carry.
    Commands may be given before ``start``; they are carried out when the engine runs.

    Args:
        on_event: called in the event loop for everything that happens; must not block, and must not
            raise. After ``Ready`` the listening address is a new one; after ``Died`` another ``Ready``
            follows, or ``GaveUp``.
        upload_limit: bytes per second for all contents together; 0 is unlimited.
        download_limit: likewise.
    """

    def __init__(
        self, on_event: Callable[[Event], None], *, upload_limit: int = 0, download_limit: int = 0
    ) -> None:
        self._on_event = on_event
        self._limits = protocol.SetLimits(upload=upload_limit, download=download_limit)
        self._wanted: dict[Digest, Wanted] = {}
        self._bans: dict[str, None] = {}
        self._progress: dict[Digest, Progress] = {}
        self._renames: dict[Digest, asyncio.Future[None]] = {}
        self._child: Child | None = None
        self._address = ("", 0)
        """Where the newest engine listens; port 0 until it has said so."""
        self._supervisor: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._stopping = False

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine and wait until it listens. Does nothing when it runs.

        Raises:
            EngineFailed: it does not start, or not in ``START_TIMEOUT_S``.
        """
        async with self._starting:
            if self._supervisor is not None and not self._supervisor.done():
                return
            self._stopping = False
            child = await self._spawn()
            self._supervisor = asyncio.create_task(self._supervise(child), name="engine supervisor")

    async def stop(self) -> None:
        """End the engine, at the latest killed after ``STOP_TIMEOUT_S``. What it carried is not forgotten."""
        self._stopping = True
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        child = self._child
        if child is None:
            supervisor.cancel()  # between two engines
        else:
            with contextlib.suppress(OSError):  # it has just died, which is what is wanted
                child.tell(protocol.Stop())
            done, _ = await asyncio.wait({supervisor}, timeout=STOP_TIMEOUT_S)
            if not done:
                child.kill()
        await asyncio.wait({supervisor})
        if not supervisor.cancelled() and (error := supervisor.exception()) is not None:
            raise error

    @property
    def running(self) -> bool:
        """Whether the engine listens now."""
        return self._child is not None

    @property
    def pid(self) -> int | None:
        """Process id of the engine, when it runs."""
        return None if self._child is None else self._child.pid

    @property
    def listen_address(self) -> tuple[str, int]:
        """Where the engine accepts BitTorrent connections; another port after each start.

        Raises:
            EngineFailed: it does not run (now).
        """
        if self._child is None:
            raise EngineFailed("the BitTorrent engine is not running")
        return self._address

    # --- what to carry --------------------------------------------------------------------------

    @property
    def carried(self) -> frozenset[Digest]:
        """Contents that the engine carries, or will when it runs."""
        return frozenset(self._wanted)

    @property
    def progress(self) -> Mapping[Digest, Progress]:
        """The newest progress of each content."""
        return MappingProxyType(self._progress)

    async def fetch(self, torrent: VerifiedTorrent, directory: Path) -> None:
        """Fetch a content into ``directory/SHA256.unverified``, and serve what is there of it.

        A file that is there already is checked piece by piece and what is good is kept. Ends with a
        ``Completed``, after which the file is flushed to the system but not to the disk.

        An empty content is complete at once: BitTorrent cannot describe it.

        Raises:
            DiskFull, OSError: for an empty content only: its file cannot be made.
        """
        sha256 = Digest(torrent.artifact.sha256)
        filename = sha256 + PARTIAL_SUFFIX
        if torrent.artifact.length == 0:
            await asyncio.to_thread(files.atomic_write, directory / filename, b"")
            self._on_event(protocol.Completed(sha256=sha256))
            return
        await self._want(
            protocol.Add(
                sha256=sha256,
                torrent=torrent.data,
                directory=os.fspath(directory),
                filename=filename,
                whole=False,
            )
        )

    async def seed(self, torrent: VerifiedTorrent, path: Path, *, super_seed: bool = False) -> None:
        """Serve a complete file whose SHA-256 was verified, wherever it is and whatever it is called.

        Args:
            torrent: what it is.
            path: the file.
            super_seed: libtorrent's super-seeding. It spares a scarce uplink the last tenth of a copy
                and costs every new peer ten seconds (``division.py``), so it pays only for contents
                that take minutes.
        """
        sha256 = Digest(torrent.artifact.sha256)
        if torrent.artifact.length:
            await self._want(
                protocol.Add(
                    sha256=sha256,
                    torrent=torrent.data,
                    directory=os.fspath(path.parent),
                    filename=path.name,
                    whole=True,
                    super_seed=super_seed,
                )
            )

    async def remove(self, sha256: Digest) -> None:
        """Stop carrying a content; the file stays. Does nothing when it is not carried."""
        if self._wanted.pop(sha256, None) is not None:
            self._progress.pop(sha256, None)
            await self._send(protocol.Remove(sha256=sha256))

    async def connect_peer(self, sha256: Digest, ip: str, port: int) -> None:
        """Connect to a peer that carries a content; again after each restart of the engine.

        Does nothing when the content is not carried. At most ``limits.SWARM_PEERS_MAX`` addresses of a
        content are remembered, the newest ones.
        """
        wanted = self._wanted.get(sha256)
        if wanted is None:
            return
        wanted.remember(ip, port)
        await self._send(protocol.ConnectPeer(sha256=sha256, ip=ip, port=port))

    def forget_peer(self, sha256: Digest, ip: str, port: int) -> None:
        """Do not connect to this address after a restart: its tunnel is gone."""
        if wanted := self._wanted.get(sha256):
            wanted.peers.pop((ip, port), None)

    async def rename(self, sha256: Digest, filename: str) -> None:
        """Rename a complete content's file within its directory while it goes on being served.

        libtorrent does it between two reads, so no connection notices. The caller makes the rename
        durable. Content that is not carried is not touched.

        Raises:
            EngineFailed: the engine does not run, died, cannot rename, or did not answer in
                ``COMMAND_TIMEOUT_S``; the file may have either name.
        """
        wanted = self._wanted.get(sha256)
        if wanted is None or self._child is None:
            raise EngineFailed(f"the BitTorrent engine does not carry {sha256}")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._renames[sha256] = done
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._send(protocol.Rename(sha256=sha256, filename=filename))
                await done
        except TimeoutError:
            raise EngineFailed(f"the BitTorrent engine did not rename {sha256} in time") from None
        finally:
            self._renames.pop(sha256, None)
        wanted.add = msgspec.structs.replace(wanted.add, filename=filename, whole=True)

    async def resume(self, sha256: Digest) -> None:
        """Go on after ``StorageFailed``: there is space again.

        The content is added anew, with a check of what is on the disk. libtorrent can go on by itself, but keeps
        in its books blocks that never came to the disk, and does not ask for them again: one full disk in five
        ended just short of the whole.
        """
        wanted = self._wanted.get(sha256)
        if wanted is not None:
            await self._send(protocol.Remove(sha256=sha256))
            for command in wanted.commands():
                await self._send(command)

    async def set_super_seed(self, sha256: Digest, *, on: bool) -> None:
        """Switch super-seeding of a content that is served."""
        wanted = self._wanted.get(sha256)
        if wanted is not None and wanted.add.super_seed != on:
            wanted.add = msgspec.structs.replace(wanted.add, super_seed=on)
            await self._send(protocol.SuperSeed(sha256=sha256, on=on))

    async def set_limits(self, upload: int, download: int) -> None:
        """Set bytes per second for all contents together; 0 is unlimited."""
        self._limits = protocol.SetLimits(upload=upload, download=download)
        await self._send(self._limits)

    async def _want(self, add: protocol.Add) -> None:
        sha256 = Digest(add.sha256)
        known = self._wanted.get(sha256)
        if known is not None:
            if known.add == msgspec.structs.replace(add, super_seed=known.add.super_seed):
                await self.set_super_seed(sha256, on=add.super_seed)
                return
            await self.remove(sha256)
        self._wanted[sha256] = Wanted(add, {} if known is None else known.peers)
        await self._send(add)

    async def _send(self, command: protocol.Command) -> None:
        """Tell the engine, if it runs; otherwise it is told when it does."""
        child = self._child
        if child is None:
            return
        try:
            child.tell(command)
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await child.drain()
        except TimeoutError:
            # Alive but deaf: the supervisor starts one that listens, and tells it this too.
            log.warning("the BitTorrent engine takes no commands and is killed")
            child.kill()
        except OSError:
            log.debug("the BitTorrent engine died before it took a command")

    # --- its processes, one after the other -------------------------------------------------------

    async def _spawn(self) -> Child:
        self._address = ("", 0)
        child = await Child.spawn()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self._address[1]:
                    await self._receive(child)
                self._replay(child)
                self._child = child  # from here on commands go to it: none may fall between
                await child.drain()
        except (TimeoutError, EOFError, OSError, ValueError) as error:
            self._child = None
            _, said = await child.reap()
            raise EngineFailed(
                f"the BitTorrent engine does not start: {said or str(error) or type(error).__name__}",
                hint="python -c 'import libtorrent' must work for the user that runs the agent",
            ) from error
        except asyncio.CancelledError:
            self._child = None
            await child.reap()
            raise
        ip, port = self._address
        self._on_event(protocol.Ready(ip=ip, port=port))
        return child

    def _replay(self, child: Child) -> None:
        """Tell a new engine all that the last one knew."""
        commands: list[protocol.Command] = [self._limits]
        commands += (protocol.Ban(ip=ip) for ip in self._bans)
        for wanted in self._wanted.values():
            commands += wanted.commands()
        for command in commands:
            child.tell(command)

    async def _supervise(self, child: Child) -> None:
        deaths: deque[float] = deque()
        while True:
            status, said = await self._serve(child)
            if self._stopping:
                return
            log.warning("the BitTorrent engine died with status %d: %s", status, said)
            self._on_event(protocol.Died(status=status, message=protocol.clip(said)))
            while True:
                now = time.monotonic()
                deaths.append(now)
                while deaths[0] < now - DEATHS_WINDOW_S:
                    deaths.popleft()
                if len(deaths) > DEATHS_MAX:
                    self._on_event(protocol.GaveUp(message=protocol.clip(said)))
                    return
                await asyncio.sleep(min(RESTART_DELAY_MAX_S, RESTART_DELAY_S * 2 ** (len(deaths) - 1)))
                try:
                    child = await self._spawn()
                except EngineFailed as error:
                    said = error.message
                    continue
                break

    async def _serve(self, child: Child) -> tuple[int, str]:
        """Pass on what the engine says until it ends; return its exit status and last words."""
        problem = ""
        try:
            while True:
                await self._receive(child)
        except EOFError:
            log.debug("the BitTorrent engine closed its socket")
        except (OSError, ValueError) as error:
            problem = f"it sent what is no event: {error}"
        finally:
            self._child = None
            status, said = await child.reap()
            for done in self._renames.values():
                if not done.done():
                    done.set_exception(EngineFailed("the BitTorrent engine died while renaming"))
        return status, problem or said

    async def _receive(self, child: Child) -> None:
        for event in await child.receive():
            self._handle(event)

    def _handle(self, event: protocol.EngineEvent) -> None:
        match event:
            case protocol.Ready():
                self._address = (event.ip, event.port)
                return  # told when it knows what to carry
            case protocol.Progress():
                if event.sha256 not in self._wanted:
                    return  # said before it was told to remove it
                self._progress[Digest(event.sha256)] = event
            case protocol.Banned():
                if len(self._bans) < BANS_KEPT_MAX:
                    self._bans[event.ip] = None
            case protocol.Renamed():
                self._renamed(event.sha256, None)
            case protocol.Failed():
                self._renamed(event.sha256, EngineFailed(f"the BitTorrent engine: {event.message}"))
            case _:
                pass
        self._on_event(event)

    def _renamed(self, sha256: str, error: EngineFailed | None) -> None:
        done = self._renames.get(Digest(sha256))
        if done is None or done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
