"""Fleets for tests: a publisher's directory, and neighbours that serve it well or ill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from driftseed.core.errors import FileMissing
from driftseed.core.model import Artifact, ReleaseManifest
from driftseed.trust.chain import TIMESTAMP_NAME, metadata_name, parse, target_name, verify_chain
from driftseed.trust.keys import signer_for
from driftseed.trust.repository import FleetRepository
from driftseed.trust.signing import meta_file, sign
from driftseed.trust.tufapi import MetaFile, Root, SignedT, Snapshot, TargetFile, Targets, Timestamp

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


# --- thieves of keys --------------------------------------------------------------------------------


@dataclass
class Thief:
    """Signs metadata with the keys of a fleet directory that it has, asking nobody's rules.

    ``files`` is the whole repository as the thief would serve it.
    """

    repository: FleetRepository
    sign_as: dict[str, str] = field(default_factory=dict)
    """For a role whose key it lacks, the key that it signs with instead."""
    keep_keyid: bool = False
    """Put the right key's id on the false signatures."""

    def __post_init__(self) -> None:
        self.files = self.repository.files()
        self.chain = verify_chain(self.repository.first_root, self.files.get)

    def publish(
        self,
        changes: Mapping[str, Callable[[Targets], None]],
        *,
        timestamp_version: int | None = None,
        snapshot_changes: Callable[[Snapshot], None] = lambda _: None,
    ) -> dict[str, bytes]:
        """Change roles, then sign them, a snapshot and a timestamp."""
        name = metadata_name("snapshot", self.chain.snapshot.version)
        snapshot = parse(self.files[name], Snapshot, name).signed
        for role, change in changes.items():
            old = self.chain.targets if role == "targets" else self.chain.delegated[role]
            name = metadata_name(role, old.version)
            payload = parse(self.files[name], Targets, name).signed
            change(payload)
            payload.version += 1
            data = self.files[metadata_name(role, payload.version)] = self.sign(role, payload)
            snapshot.meta[f"{role}.json"] = meta_file(payload.version, data)
        snapshot.version += 1
        snapshot_changes(snapshot)
        data = self.files[metadata_name("snapshot", snapshot.version)] = self.sign("snapshot", snapshot)
        self.stamp(meta_file(snapshot.version, data), timestamp_version)
        return self.files

    def stamp(self, snapshot: MetaFile, version: int | None = None) -> dict[str, bytes]:
        """Sign a timestamp over a snapshot."""
        payload = Timestamp(
            version=version or self.chain.timestamp.version + 1,
            expires=self.chain.timestamp.expires,
            snapshot_meta=snapshot,
        )
        self.files[TIMESTAMP_NAME] = self.sign("timestamp", payload)
        return self.files

    def rotate_root(self, change: Callable[[Root], None], signed_by: list[str]) -> dict[str, bytes]:
        """Change the newest root and sign it with these key files."""
        chain = verify_chain(self.repository.first_root, self.files.get)
        name = metadata_name("root", chain.root.version)
        payload = parse(self.files[name], Root, name).signed
        change(payload)
        payload.version += 1
        signers = [signer_for(self.repository.private_key(key)) for key in signed_by]
        self.files[metadata_name("root", payload.version)] = sign(payload, signers)
        return self.files

    def add_document(self, payload: Targets, path: str, data: bytes) -> None:
        """List a small file in a role, and serve it."""
        target = TargetFile.from_data(path, data, ["sha256"])
        payload.targets[path] = target
        self.files[target_name(path, target.hashes["sha256"])] = data

    def sign(self, role: str, payload: SignedT) -> bytes:
        data = sign(payload, [signer_for(self.repository.private_key(self.sign_as.get(role, role)))])
        if self.keep_keyid and role in self.sign_as:
            document = json.loads(data)
            document["signatures"][0]["keyid"] = signer_for(
                self.repository.private_key(role)
            ).public_key.keyid
            data = json.dumps(document).encode()
        return data


def tree(directory: Path) -> dict[str, bytes]:
    """Every file under a directory with its content."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != "lock"
    }
