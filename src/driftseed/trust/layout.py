"""The fleet directory: what is where, and how it is read and written.

::

    DIR/fleet.json          name, id, declared labels, counters: what is nobody's to sign
    DIR/pending/root.json   the next root while it is being signed (``trust/proposal.py``)
    DIR/keys/ROLE.pem       root-1 … root-n, targets, snapshot, timestamp, releases, deployments, fleet, enrolment
    DIR/metadata/           TUF metadata by repository name (``trust/chain.py``)
    DIR/targets/            documents and torrents, hash-prefixed: releases/N/V/HASH.release.json
    DIR/content/SHA256      artifacts

``metadata/timestamp.json`` is written last and says which of the other files count, so that a command that was
cut short changed nothing: running it again replaces what it left. Older metadata stays, as a history.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import ArtifactUnreadable, NotFound, StoreDamaged
from driftseed.core.model import FORMAT, Artifact, Hex64, encode_document
from driftseed.store.files import adopt, atomic_write, disk_full_as_error, remove_unfinished, sync_directory

RECORD: Final = "fleet.json"
KEYS: Final = "keys"
CONTENT: Final = "content"

_COPY_BYTES: Final = limits.MIB
_UNVERIFIED: Final = ".unverified"
"""Ending of content that is being copied in and hashed."""


class FleetRecord(Struct, frozen=True, kw_only=True):
    """``fleet.json``."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    fleet: Hex64
    labels: list[str] = []
    """Label keys that operators have declared, besides the conventional ones."""
    sequence: Annotated[int, Meta(ge=0)] = 0
    """The highest sequence that a deployment was ever given."""
    keys: dict[str, str] = {}
    """Where each private key is, as a URI (``trust/keyring.py``), by key id; an enrolment key by its public half.
    ``file:`` paths are relative to DIR."""
    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT


class FleetDirectory:
    """Paths, reading and writing; nothing here is verified.

    Args:
        path: DIR.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def key(self, name: str) -> Path:
        """The file of a key."""
        return self.path / KEYS / f"{name}.pem"

    def root_keys(self) -> list[Path]:
        """The root keys' files that are here, by number."""
        return sorted((self.path / KEYS).glob("root-*.pem"), key=lambda path: (len(path.name), path.name))

    def content(self, sha256: str) -> Path:
        """The file of an artifact."""
        return self.path / CONTENT / sha256

    def read(self, name: str) -> bytes | None:
        """A metadata file or small target by its repository name; None when it is not here."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreDamaged(f"cannot read {self.path / name}: {error.strerror}") from error

    def write(self, name: str, data: bytes) -> None:
        """Write a file by its repository name. Raises DiskFull."""
        target = self.path / name
        new = [parent for parent in target.parents if not parent.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, data)
        for directory in new:
            sync_directory(directory.parent)

    def record(self) -> FleetRecord:
        """Read ``fleet.json``.

        Raises:
            NotFound: this is no fleet directory.
            StoreDamaged: it does not decode.
        """
        data = self.read(RECORD)
        if data is None:
            raise NotFound(
                f"{self.path} is not a fleet directory: it has no {RECORD}",
                hint=f"make one: driftseed fleet init {self.path}",
            )
        try:
            return msgspec.json.decode(data, type=FleetRecord)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StoreDamaged(
                f"{self.path / RECORD} cannot be read: {error}", hint="restore it from your backup"
            ) from None

    def save_record(self, record: FleetRecord) -> None:
        """Write ``fleet.json``. Raises DiskFull."""
        self.write(RECORD, encode_document(record))

    def tidy(self) -> None:
        """Remove what a command that was cut short had not finished. The caller holds the lock."""
        for leftover in (self.path / CONTENT).glob(f"*{_UNVERIFIED}"):
            leftover.unlink(missing_ok=True)
        for directory in (self.path, self.path / KEYS, self.path / "metadata", self.path / CONTENT):
            remove_unfinished(directory)

    def keep_content(self, source: Path, artifact: Artifact) -> None:
        """Copy an artifact in, hashing it on the way; nothing happens when it is here.

        Raises:
            ArtifactUnreadable: it cannot be read, or is not what the manifest says.
            DiskFull: nothing was kept.
        """
        target = self.content(artifact.sha256)
        if target.is_file() and target.stat().st_size == artifact.length:
            return
        copy = target.with_name(target.name + _UNVERIFIED)
        try:
            digest, length = _copy(source, copy)
            if (digest, length) != (artifact.sha256, artifact.length):
                raise ArtifactUnreadable(
                    f"{source} has changed since it was read: {length} bytes, SHA-256 {digest[:16]}; "
                    f"the manifest says {artifact.length} bytes, {artifact.sha256[:16]}",
                    hint="release it again when nothing writes to it any more",
                )
            adopt(copy, target)
        finally:
            copy.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    length = 0
    try:
        reading = source.open("rb")
    except OSError as error:
        raise ArtifactUnreadable(f"cannot read {source}: {error.strerror}") from error
    with reading, disk_full_as_error(target), target.open("wb") as writing:
        while chunk := _read_chunk(reading, source):
            digest.update(chunk)
            length += len(chunk)
            writing.write(chunk)
    return digest.hexdigest(), length


def _read_chunk(reading: BinaryIO, source: Path) -> bytes:
    try:
        return reading.read(_COPY_BYTES)
    except OSError as error:
        raise ArtifactUnreadable(f"cannot read {source}: {error.strerror}") from error
