"""Where a bundle can go: to an agent that runs, or into the data directory of one that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from driftseed.core import limits
from driftseed.core.errors import MetadataReplayed
from driftseed.core.ids import Digest, FleetId
from driftseed.core.model import Artifact
from driftseed.node.home import Home
from driftseed.publish.bundle import Readable
from driftseed.store.files import DirectoryLock
from driftseed.swarm.content import ContentStore
from driftseed.trust.device import FleetTrust
from driftseed.trust.source import FilesSource

_CHUNK: Final = 1 * limits.MIB


class LocalApi(Protocol):
    """The local API of a running agent."""

    def request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """One request with a JSON body. Raises DriftseedError."""

    def send_file(self, path: str, data: bytes | Path) -> dict[str, Any]:
        """One PUT of raw bytes. Raises DriftseedError."""

    def send_stream(self, path: str, body: Readable, length: int) -> dict[str, Any]:
        """One PUT of as many bytes of an open file. Raises DriftseedError."""


class RunningAgent:
    """An agent that runs takes a bundle as a submission."""

    def __init__(self, api: LocalApi) -> None:
        self._api = api
        self.fleet = FleetId(str(api.request("GET", "/v1/status")["fleet"]))
        self.first_root: bytes | None = None
        self._submission = ""

    def metadata(self, files: Mapping[str, bytes]) -> None:
        """Submit the metadata."""
        self._submission = str(self._api.request("POST", "/v1/submit")["submission"])
        for name, data in files.items():
            self._api.send_file(f"/v1/submit/{self._submission}/files/{name}", data)

    def content(self, artifact: Artifact, body: Readable) -> None:
        """Submit a content."""
        path = f"/v1/submit/{self._submission}/content/{artifact.sha256}"
        self._api.send_stream(path, body, artifact.length)

    def commit(self) -> int:
        """Have the agent take it over."""
        answer = self._api.request("POST", f"/v1/submit/{self._submission}/commit")
        return int(answer["timestamp_version"])


class RestingAgent:
    """The data directory of an agent that does not run; use ``resting_agent``."""

    def __init__(self, home: Home, clock: Callable[[], float]) -> None:
        record = home.member()
        self.fleet = FleetId(record.fleet)
        self.first_root: bytes | None = record.root
        self._trust = FleetTrust(home.directory / "trust", record.root, clock)
        self._store = ContentStore(home.directory / "content", limits.CONTENT_QUOTA_DEFAULT)
        self._directory = home.directory
        self._version = 0

    def metadata(self, files: Mapping[str, bytes]) -> None:
        """Trust it from now on; metadata that the device knows newer is no hindrance to content it still wants."""
        try:
            fleet = self._trust.refresh(FilesSource(files.get))
        except MetadataReplayed:
            known = self._trust.load()
            if known is None:
                raise
            fleet = known
        self._version = fleet.timestamp_version

    def content(self, artifact: Artifact, body: Readable) -> None:
        """Keep it, if it is what it should be."""
        digest = Digest(artifact.sha256)
        if self._store.has(digest):
            return
        self._store.make_room(digest, artifact.length)
        scratch = self._directory / "content" / f".{digest[:16]}.bundle"
        try:
            with scratch.open("wb") as file:
                while chunk := body.read(_CHUNK):
                    file.write(chunk)
            self._store.add_file(scratch, digest)
        finally:
            scratch.unlink(missing_ok=True)

    def commit(self) -> int:
        """All of it is on the disk."""
        return self._version


@contextmanager
def resting_agent(home: Home, clock: Callable[[], float]) -> Iterator[RestingAgent]:
    """An agent's data directory, for as long as this lasts. Raises AlreadyRunning or NotFound."""
    lock = DirectoryLock(home.directory)
    lock.acquire()
    try:
        yield RestingAgent(home, clock)
    finally:
        lock.release()
