"""The device's side of trust: what the fleet's keys say, verified, kept, and handed on to neighbours."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Final

from driftseed.core import limits
from driftseed.core.errors import ContentMismatch, MetadataInvalid, RolesDisagree, StoreDamaged
from driftseed.core.ids import FleetId
from driftseed.core.model import Artifact, torrent_target
from driftseed.core.tickets import fleet_of
from driftseed.core.verified import (
    VerifiedArtifact,
    VerifiedFleet,
    VerifiedNotice,
    VerifiedRelease,
    VerifiedTorrent,
)
from driftseed.trust.agreement import judge
from driftseed.trust.chain import TUF_FAULTS, sha256_of, target_name, verified, verify_chain, verify_roots
from driftseed.trust.kept import KeptFiles
from driftseed.trust.signing import Clock, instant
from driftseed.trust.source import MetadataSource, fetch_bounded
from driftseed.trust.tufapi import Root, TargetFile, Timestamp
from driftseed.trust.updater import FleetUpdater, expired_error

__all__ = ["FleetTrust", "MetadataSource"]

_log = logging.getLogger(__name__)

_READ_BYTES: Final = limits.MIB


class FleetTrust:
    """What one device trusts.

    ``refresh`` blocks on its source and is called in a worker thread, one at a time; the other methods may be
    called meanwhile, and see the state before it until it returns.

    Args:
        directory: this device's own, 0700; made when it is not there (layout: ``trust/kept.py``).
        first_root: the trust anchor, from a ticket or kit.
        clock: seconds since 1970.

    Raises:
        MetadataInvalid: the first root is not one.
        WrongFleet: the directory holds another fleet's metadata.
    """

    def __init__(self, directory: Path, first_root: bytes, clock: Clock) -> None:
        self.fleet: FleetId = fleet_of(first_root)
        self._first_root = first_root
        self._clock = clock
        self._root, _ = verify_roots(first_root, lambda _: None)
        self._kept = KeptFiles(directory, self.fleet)

    @property
    def root(self) -> Root:
        """The newest root that was verified."""
        return self._root

    def load(self) -> VerifiedFleet | None:
        """What was trusted before a restart, from disk alone; signatures and hashes are checked anew.

        Expiry is not looked at: what was trusted stays what it was, and a device that was long offline still
        knows its fleet. Whoever acts on it looks at ``VerifiedFleet.expires``.

        Returns:
            None when there is nothing, or it is damaged (logged): the next refresh makes it whole.
        """
        if not self._kept.names():
            return None
        try:
            chain = verify_chain(self._first_root, self._kept.read)
            fleet = judge(self.fleet, chain, self._read_kept, self._need_kept)
        except (MetadataInvalid, StoreDamaged) as error:
            _log.warning("the metadata on disk is damaged and is fetched again: %s", error.message)
            return None
        self._root = chain.root
        return fleet

    def refresh(self, source: MetadataSource) -> VerifiedFleet:
        """Run the TUF client workflow (specification, section 5) and keep what it verified.

        A deployment on which the roles disagree does not stop the others: it is in ``disagreements``.

        Args:
            source: asked for metadata first, then for documents and torrents that are not here yet.

        Returns:
            The newest trusted state; the same as before when there is nothing newer.

        Raises:
            MetadataInvalid: not signed as it must be (``metadata-unsigned``).
            MetadataReplayed: older than what was trusted.
            MetadataExpired: past its expiry by this device's clock.
            ContentMismatch: the source gave a document or torrent that is not the signed one.
            TransportError: the source failed; FileMissing: it lacks a file.
            DiskFull, StoreDamaged: this device cannot keep it.
            ClockWrong: the clock says what no calendar has.
            In every case what was trusted before is still trusted, served and loaded.
        """
        updater = FleetUpdater(self._kept, self._first_root, source, instant(self._clock))
        try:
            updater.run()
        finally:
            # Also when what comes after the roots failed: a notice signed under a newer root is then known.
            self._root = updater.root
        chain = verify_chain(self._first_root, updater.held)
        files: dict[str, str] = {}

        def take(path: str, target: TargetFile) -> bytes:
            name = target_name(path, str(sha256_of(target)))
            data = self._kept.read_digest(str(sha256_of(target)))
            if data is None:
                data = _check_target(name, target, fetch_bounded(source, name, target.length))
            files[name] = self._kept.keep(data)
            return data

        def need(path: str, target: TargetFile) -> None:
            take(path, target)

        fleet = judge(self.fleet, chain, take, need)
        for name, data in chain.files.items():
            files[name] = self._kept.keep(data)
        self._kept.commit(files)
        return fleet

    def check_notice(self, data: bytes) -> VerifiedNotice:
        """Verify a timestamp.json that a neighbour passes on.

        It may be newer than what is trusted, or not: the caller compares versions. One that is signed with a
        timestamp key that only a newer root names is invalid here until a refresh has learnt that root.

        Raises:
            MetadataInvalid: too large, malformed, not a timestamp, or not signed as the trusted root says.
            MetadataExpired: its time is over by this device's clock.
            ClockWrong: the clock says what no calendar has.
        """
        if len(data) > limits.TIMESTAMP_BYTES_MAX:
            raise MetadataInvalid(
                f"a notice of {len(data)} bytes where {limits.TIMESTAMP_BYTES_MAX} are allowed"
            )
        timestamp = verified(data, Timestamp, "the notice", self._root, Timestamp.type)
        now = instant(self._clock)
        if timestamp.is_expired(now):
            raise expired_error(f"the notice (timestamp {timestamp.version})", timestamp.expires, now)
        return VerifiedNotice(
            version=timestamp.version, snapshot_version=timestamp.snapshot_meta.version, data=data
        )

    def serve(self, name: str) -> bytes | None:
        """A file of the trusted state by its repository name, for neighbours; None for any other name."""
        return self._kept.read(name)

    def names(self) -> frozenset[str]:
        """Repository names of all files of the trusted state."""
        return self._kept.names()

    def torrent(self, release: VerifiedRelease, artifact: Artifact) -> VerifiedTorrent:
        """The torrent of one of a release's artifacts.

        Raises:
            RolesDisagree: the artifact is not one of the release's.
            StoreDamaged: it is not here: the release is not deployed any more, or the file is damaged, in
                which case the next refresh fetches it again.
        """
        if artifact not in release.manifest.artifacts:
            raise RolesDisagree(f"{artifact.filename} is not an artifact of {release.manifest.name}")
        path = torrent_target(release.manifest.name, release.manifest.version, artifact)
        data = self._kept.read(target_name(path, artifact.torrent_sha256))
        if data is None:
            raise StoreDamaged(f"{path} is not on this device", hint="it is fetched at the next refresh")
        return VerifiedTorrent(artifact=artifact, data=data)

    def verify_artifact(self, artifact: Artifact, path: Path) -> VerifiedArtifact:
        """Check a file against the signed length and SHA-256: the only authority on content.

        Reads the whole file; call it in a worker thread.

        Raises:
            ContentMismatch: it is another file.
            StoreDamaged: it cannot be read.
        """
        digest = hashlib.sha256()
        length = 0
        try:
            with path.open("rb") as file:
                while length <= artifact.length and (chunk := file.read(_READ_BYTES)):
                    digest.update(chunk)
                    length += len(chunk)
        except OSError as error:
            raise StoreDamaged(f"cannot read {path}: {error.strerror}") from error
        if (length, digest.hexdigest()) != (artifact.length, artifact.sha256):
            raise ContentMismatch(
                f"{artifact.filename} is not the signed file: {length} bytes with SHA-256 "
                f"{digest.hexdigest()[:16]}, signed are {artifact.length} with {artifact.sha256[:16]}"
            )
        return VerifiedArtifact(artifact=artifact, path=path)

    def renamed(self, artifact: VerifiedArtifact, path: Path) -> VerifiedArtifact:
        """A verified file under the name that it was given since: renaming changes no byte of it.

        Args:
            artifact: verified under its old name, which it does not have any more.
            path: its new name, in this device's own content directory.

        Raises:
            StoreDamaged: there is no file of that length at ``path``.
        """
        try:
            length = path.stat().st_size
        except OSError as error:
            raise StoreDamaged(f"cannot read {path}: {error.strerror}") from error
        if length != artifact.artifact.length:
            raise StoreDamaged(f"{path} has {length} bytes, not the {artifact.artifact.length} verified ones")
        return VerifiedArtifact(artifact=artifact.artifact, path=path)

    def _read_kept(self, path: str, target: TargetFile) -> bytes:
        data = self._kept.read(target_name(path, str(sha256_of(target))))
        if data is None:
            raise StoreDamaged(f"{path} is missing or damaged on this device")
        return data

    def _need_kept(self, path: str, target: TargetFile) -> None:
        if target_name(path, str(sha256_of(target))) not in self._kept.names():
            raise StoreDamaged(f"{path} is missing on this device")


def _check_target(name: str, target: TargetFile, data: bytes) -> bytes:
    try:
        target.verify_length_and_hashes(data)
    except TUF_FAULTS as error:
        raise ContentMismatch(f"{name} is not the signed file: {error}") from None
    return data
