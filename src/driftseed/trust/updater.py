"""python-tuf's client, which runs the specification's workflow, fitted with our fetcher, clock and disk.

What is added to ``tuf.ngclient.Updater``: files come from a MetadataSource; the time is the caller's; the
delegated roles are loaded with the top-level ones; the cache is written durably; a floor under the timestamp's
version outlives the cache; and errors say which file, which versions, which times, in this project's classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from driftseed.core import limits
from driftseed.core.errors import (
    ContentMismatch,
    FileMissing,
    MetadataExpired,
    MetadataInvalid,
    MetadataReplayed,
    NotFound,
    StoreDamaged,
    TrustError,
)
from driftseed.store.files import atomic_write, disk_full_as_error
from driftseed.trust.chain import TIMESTAMP_NAME, TUF_FAULTS, delegated_roles, parse
from driftseed.trust.kept import KeptFiles
from driftseed.trust.ngclient import FetcherInterface, Updater, UpdaterConfig
from driftseed.trust.source import MetadataSource, fetch_bounded
from driftseed.trust.times import describe_time
from driftseed.trust.tufapi import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

BASE: Final = "metadata"
"""python-tuf appends ``/N.role.json`` to its base URL: what comes out is the file's repository name."""
_CONFIG: Final = UpdaterConfig(
    root_max_length=limits.METADATA_BYTES_MAX,
    timestamp_max_length=limits.TIMESTAMP_BYTES_MAX,
    snapshot_max_length=limits.METADATA_BYTES_MAX,
    targets_max_length=limits.METADATA_BYTES_MAX,
    max_delegations=limits.DELEGATIONS_MAX,
)


class _Fetcher(FetcherInterface):
    """Bounded fetching; remembers the last metadata file, so that an error can say what was wrong with it."""

    def __init__(self, source: MetadataSource) -> None:
        self._source = source
        self.last: tuple[str, bytes] = ("", b"")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As python-tuf's own, but without a temporary file, and with the bound told to the source."""
        data = self._bounded(url, min(max_length, limits.METADATA_BYTES_MAX))
        self.last = (url, data)
        return data

    def target(self, url: str, max_length: int) -> bytes:
        """A target file."""
        return self._bounded(url, max_length)

    def _bounded(self, url: str, max_length: int) -> bytes:
        try:
            return fetch_bounded(self._source, url, max_length)
        except FileMissing as error:
            # What ends the walk up the chain of roots (TUF 5.3.3).
            raise DownloadHTTPError(error.message, 404) from error

    def _fetch(self, url: str) -> Iterator[bytes]:
        # Asked for by python-tuf's download_target alone, which is not used here.
        yield self._bounded(url, limits.METADATA_BYTES_MAX)


class TufClient(Updater):
    """The specification's client workflow over any source: a fleet's devices and ``driftseed tuf`` run this.

    Args:
        cache: python-tuf's own directory, whose names it chooses.
        base: before the name of a metadata file, when it is asked for.
        first_root: the trust anchor.
        source: where files come from.
        now: this device's time.

    Raises:
        MetadataInvalid: the first root is not one.
        StoreDamaged: the cache cannot be written.
        DiskFull: likewise.
    """

    def __init__(
        self, cache: Path, base: str, first_root: bytes, source: MetadataSource, now: datetime
    ) -> None:
        self.cache = cache
        self._base = base
        self._now = now
        self._source_fetcher = _Fetcher(source)
        with self._errors_as_ours():
            super().__init__(
                str(cache), base, fetcher=self._source_fetcher, config=_CONFIG, bootstrap=first_root
            )
        self._trusted_set.reference_time = now

    @property
    def root(self) -> Root:
        """The newest root that verified, also after a run that failed later on."""
        return self._trusted_set.root

    def run(self) -> None:
        """Bring the cache to the newest state that the source has.

        Raises:
            MetadataInvalid: not signed as it must be, or malformed.
            MetadataReplayed: older than what was trusted.
            MetadataExpired: past its expiry by this device's clock.
            TransportError: the source failed; FileMissing: it lacks a file that newer metadata names.
            StoreDamaged: the cache cannot be written.
            DiskFull: likewise; what was trusted before still is.
        """
        with self._errors_as_ours():
            self.refresh()

    def download(self, path: str, base: str, directory: Path) -> Path:
        """Download a target of up to TORRENT_BYTES_MAX bytes, unless it is there with the signed hashes.

        Args:
            path: the TUF target path.
            base: before the name of a target file, when it is asked for.
            directory: of the files, each under its target path, URL-encoded.

        Raises:
            NotFound: no role that may has signed such a target.
            ContentMismatch: the source gave another file; none was written.
            TrustError, TransportError, DeviceError: as ``run``.
        """
        with self._errors_as_ours():
            info = self.get_targetinfo(path)
            if info is None:
                raise NotFound(f"no role has signed {path}", hint="check its spelling")
            file = directory / quote(path, "")
            if self.find_cached_target(info, str(file)) is None:
                self._download(info, file, base)
            return file

    def _download(self, info: TargetFile, file: Path, base: str) -> None:
        # Not download_target: it writes in place, so that a power cut could leave half of a file.
        parent, separator, name = info.path.rpartition("/")
        if self.root.consistent_snapshot:
            name = f"{next(iter(info.hashes.values()))}.{name}"
        url = f"{base.rstrip('/')}/{parent}{separator}{name}"
        data = self._source_fetcher.target(url, min(info.length, limits.TORRENT_BYTES_MAX))
        try:
            info.verify_length_and_hashes(data)
        except LengthOrHashMismatchError as error:
            raise ContentMismatch(f"{url} is not the signed file: {error}") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, data)

    @contextlib.contextmanager
    def _errors_as_ours(self) -> Iterator[None]:
        try:
            with disk_full_as_error(self.cache):
                yield
        except DownloadHTTPError as error:
            raise FileMissing(f"{error}: newer metadata names it") from error.__cause__
        except ExpiredMetadataError:
            raise self._expired() from None
        except BadVersionNumberError as error:
            raise self._rolled_back(error) from None
        except TUF_FAULTS as error:
            name = self._source_fetcher.last[0] or "the first root"
            raise MetadataInvalid(f"{name} does not verify: {error}") from None
        except OSError as error:
            raise StoreDamaged(f"cannot use the metadata cache {self.cache}: {error}") from error

    # --- python-tuf's own steps, refined ----------------------------------------------------------

    def _persist_file(self, filename: str, data: bytes) -> None:
        # python-tuf renames without fsync: after a power cut there could be an empty file under the new name.
        atomic_write(Path(filename), data, mode=0o600)

    # --- errors -----------------------------------------------------------------------------------

    def _expired(self) -> MetadataExpired:
        name, data = self._source_fetcher.last
        held: list[tuple[str, Signed]] = [
            (role, self._trusted_set[role])
            for role in (Root.type, Timestamp.type, Snapshot.type)
            if role in self._trusted_set
        ]
        for role, signed in held:
            if signed.is_expired(self._now):
                return expired_error(f"{role} {signed.version}", signed.expires, self._now)
        return expired_error(name, parse(data, Targets, name).signed.expires, self._now)

    def _rolled_back(self, error: BadVersionNumberError) -> TrustError:
        # python-tuf's own text for this swaps what was offered and what was trusted.
        name, data = self._source_fetcher.last
        trusted = self._trusted_set
        if name == f"{self._base}/timestamp.json" and Timestamp.type in trusted:
            timestamp = parse(data, Timestamp, name).signed
            if timestamp.version < trusted.timestamp.version:
                return _replayed(name, timestamp.version, trusted.timestamp.version)
            return _replayed(
                f"the snapshot that {name} names",
                timestamp.snapshot_meta.version,
                trusted.timestamp.snapshot_meta.version,
            )
        if name.endswith(f".{Snapshot.type}.json") and Snapshot.type in trusted:
            offered = parse(data, Snapshot, name).signed.meta
            for file, meta in trusted.snapshot.meta.items():
                if file in offered and offered[file].version < meta.version:
                    return _replayed(f"{file} that {name} names", offered[file].version, meta.version)
        return MetadataInvalid(f"{name} holds another version than its name says: {error}")


class FleetUpdater(TufClient):
    """One refresh of a fleet's metadata: all of its roles, above the floor that outlives the cache.

    Args:
        kept: where the cache and the floor are.
        first_root: the trust anchor.
        source: where files come from.
        now: this device's time.

    Raises:
        MetadataInvalid, StoreDamaged, DiskFull: as ``TufClient``.
    """

    def __init__(self, kept: KeptFiles, first_root: bytes, source: MetadataSource, now: datetime) -> None:
        self._kept = kept
        super().__init__(kept.cache, BASE, first_root, source, now)

    def run(self) -> None:
        """As ``TufClient.run``, with the roles that ``targets`` delegates to."""
        super().run()
        with self._errors_as_ours():
            for role in delegated_roles(self._trusted_set.targets):
                self._load_targets(role, Targets.type)

    def held(self, name: str) -> bytes | None:
        """A file of the cache by its repository name."""
        cache = self._kept.cache
        version, _, role = name.removeprefix(f"{BASE}/").removesuffix(".json").rpartition(".")
        if role == Root.type:
            if int(version) > self.root.version:
                return None
            path = cache / "root_history" / f"{version}.root.json"
        else:
            path = cache / f"{role}.json"
        try:
            return path.read_bytes()
        except OSError:
            return None

    def _load_timestamp(self) -> None:
        super()._load_timestamp()
        version = self._trusted_set.timestamp.version
        keys = self.root.roles[Timestamp.type].keyids
        floor = self._kept.floor_under(keys)
        if version < floor:
            raise _replayed(TIMESTAMP_NAME, version, floor)
        self._kept.raise_floor(version, keys)


def _replayed(what: str, offered: int, trusted: int) -> MetadataReplayed:
    return MetadataReplayed(
        f"{what} is version {offered}; this device has trusted version {trusted} already",
        hint="ask another neighbour: this one is behind, or replays old files",
    )


def expired_error(what: str, expires: datetime, now: datetime) -> MetadataExpired:
    """An expiry, with the two times that a person compares."""
    return MetadataExpired(
        f"{what} expired at {describe_time(expires.timestamp())}; "
        f"this device's clock says {describe_time(now.timestamp())}",
        hint="check this device's clock; if it is right, the fleet's operator must renew the metadata",
    )
