"""Fleets for tests: a publisher's directory, and neighbours that serve it well or ill."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from driftseed.core.errors import FileMissing
from driftseed.core.model import Artifact, ReleaseManifest
from driftseed.trust.repository import FleetRepository

NOW = 1_800_000_000.0
DAY = 86400.0


@dataclass
class FakeClock:
    """A clock that stands until it is set."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def make_fleet(
    directory: Path, clock: Callable[[], float], *, root_keys: int = 1, threshold: int = 1
) -> FleetRepository:
    return FleetRepository.create(
        directory, name="harbour", root_keys=root_keys, threshold=threshold, passphrase=None, clock=clock
    )


def make_artifact(content: bytes, *, filename: str = "app.bin", selector: str = "") -> tuple[Artifact, bytes]:
    """An artifact and its torrent: for trust, a torrent is a small file with a signed hash."""
    sha256 = hashlib.sha256(content).hexdigest()
    torrent = b"torrent of " + sha256.encode()
    artifact = Artifact(
        filename=filename,
        length=len(content),
        sha256=sha256,
        torrent_sha256=hashlib.sha256(torrent).hexdigest(),
        selector=selector,
    )
    return artifact, torrent


def add_release(
    repository: FleetRepository,
    scratch: Path,
    name: str = "app",
    version: str = "1.0",
    contents: Mapping[str, bytes] | None = None,
) -> ReleaseManifest:
    """Release some contents, by selector."""
    artifacts = []
    files = {}
    for selector, content in (contents or {"": f"{name} {version}".encode()}).items():
        artifact, torrent = make_artifact(content, selector=selector)
        path = scratch / artifact.sha256
        path.write_bytes(content)
        artifacts.append(artifact)
        files[artifact.sha256] = (path, torrent)
    manifest = ReleaseManifest(
        name=name, version=version, module="single-file", artifacts=artifacts, created="2027-01-15T08:00:00Z"
    )
    return repository.add_release(manifest, files).manifest


@dataclass
class Neighbour:
    """A MetadataSource over files in memory: the repository's, or what an attacker makes of them."""

    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    fail_at: int | None = None
    """Number of the fetch that fails."""
    failure: BaseException | None = None

    def fetch(self, name: str, max_length: int) -> bytes:
        self.asked.append(name)
        if self.failure is not None and len(self.asked) - 1 == self.fail_at:
            raise self.failure
        try:
            return self.files[name]
        except KeyError:
            raise FileMissing(f"no {name}") from None
