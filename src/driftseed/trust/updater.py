"""python-tuf's client, which runs the specification's workflow, fitted with our fetcher, clock and disk.

What is added to ``tuf.ngclient.Updater``: files come from a MetadataSource; the time is the caller's; the
delegated roles are loaded with the top-level ones; the cache is written durably; a floor under the timestamp's
version outlives the cache; and errors say which file, which versions, which times, in this project's classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from tuf.ngclient import (  # type: ignore[attr-defined]  # public, but re-exported implicitly
    FetcherInterface,
    Updater,
    UpdaterConfig,
)

from driftseed.core import limits
from driftseed.core.errors import (
    FileMissing,
    MetadataExpired,
    MetadataInvalid,
    MetadataReplayed,
    StoreDamaged,
    TrustError,
)
from driftseed.store.files import atomic_write, disk_full_as_error
from driftseed.trust.chain import TIMESTAMP_NAME, TUF_FAULTS, delegated_roles, parse
from driftseed.trust.kept import KeptFiles
from driftseed.trust.membership import describe_time
from driftseed.trust.source import MetadataSource, fetch_bounded
from driftseed.trust.tufapi import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)

_BASE: Final = "metadata"
"""python-tuf appends ``/N.role.json`` to its base URL: what comes out is the file's repository name."""
_CONFIG: Final = UpdaterConfig(
    root_max_length=limits.METADATA_BYTES_MAX,
    timestamp_max_length=limits.TIMESTAMP_BYTES_MAX,
    snapshot_max_length=limits.METADATA_BYTES_MAX,
    targets_max_length=limits.METADATA_BYTES_MAX,
)


class _Fetcher(FetcherInterface):
    """Bounded fetching; remembers the last file, so that an error can say what was wrong with it."""

    def __init__(self, source: MetadataSource) -> None:
        self._source = source
        self.last: tuple[str, bytes] = ("", b"")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As python-tuf's own, but without a temporary file, and with the bound told to the source."""
        try:
            data = fetch_bounded(self._source, url, min(max_length, limits.METADATA_BYTES_MAX))
        except FileMissing as error:
            # What ends the walk up the chain of roots (TUF 5.3.3).
            raise DownloadHTTPError(error.message, 404) from error
        self.last = (url, data)
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.download_bytes(url, limits.METADATA_BYTES_MAX)


class FleetUpdater(Updater):
    """One refresh.

    Args:
        kept: where the cache and the floor are.
        first_root: the trust anchor.
        source: where files come from.
        now: this device's time.

    Raises:
        MetadataInvalid: the first root is not one.
        StoreDamaged: the cache cannot be written.
        DiskFull: likewise.
    """

    def __init__(self, kept: KeptFiles, first_root: bytes, source: MetadataSource, now: datetime) -> None:
        self._kept = kept
        self._now = now
        self._fleet_fetcher = _Fetcher(source)
        with disk_full_as_error(kept.cache):
            super().__init__(
                str(kept.cache), _BASE, fetcher=self._fleet_fetcher, config=_CONFIG, bootstrap=first_root
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
        try:
            with disk_full_as_error(self._kept.cache):
                self.refresh()
                for role in delegated_roles(self._trusted_set.targets):
                    self._load_targets(role, Targets.type)
        except DownloadHTTPError as error:
            raise FileMissing(f"{error}: newer metadata names it") from error.__cause__
        except ExpiredMetadataError:
            raise self._expired() from None
        except BadVersionNumberError as error:
            raise self._rolled_back(error) from None
        except TUF_FAULTS as error:
            raise MetadataInvalid(f"{self._fleet_fetcher.last[0]} does not verify: {error}") from None
        except OSError as error:
            raise StoreDamaged(f"cannot use the metadata cache {self._kept.cache}: {error}") from error

    def held(self, name: str) -> bytes | None:
        """A file of the cache by its repository name."""
        cache = self._kept.cache
        version, _, role = name.removeprefix(f"{_BASE}/").removesuffix(".json").rpartition(".")
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

    # --- python-tuf's own steps, refined ----------------------------------------------------------

    def _load_timestamp(self) -> None:
        super()._load_timestamp()
        version = self._trusted_set.timestamp.version
        keys = self.root.roles[Timestamp.type].keyids
        floor = self._kept.floor_under(keys)
        if version < floor:
            raise _replayed(TIMESTAMP_NAME, version, floor)
        self._kept.raise_floor(version, keys)

    def _persist_file(self, filename: str, data: bytes) -> None:
        # python-tuf renames without fsync: after a power cut there could be an empty file under the new name.
        atomic_write(Path(filename), data, mode=0o600)

    # --- errors -----------------------------------------------------------------------------------

    def _expired(self) -> MetadataExpired:
        name, data = self._fleet_fetcher.last
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
        name, data = self._fleet_fetcher.last
        trusted = self._trusted_set
        if name == TIMESTAMP_NAME and Timestamp.type in trusted:
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
