"""What a device has verified, on its disk: an index that is replaced as a whole, and the files it names.

::

    DIR/index.json       repository name -> SHA-256, of one consistent verified set; replaced atomically
    DIR/files/SHA256     the files; one name, one content, so nothing that the index names is ever written to
    DIR/floor.json       the newest timestamp version ever trusted, and the keys it was trusted under
    DIR/tuf/             python-tuf's own cache

A crash at any point leaves the old index with all its files, or the new one with all of its: files go first,
then the index, then what no index names any more is removed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from driftseed.core.errors import StoreDamaged, WrongFleet
from driftseed.core.model import Hex64, encode_document
from driftseed.store.files import atomic_write, remove_unfinished

_log = logging.getLogger(__name__)

_INDEX: Final = "index.json"
_FLOOR: Final = "floor.json"
_FILES: Final = "files"


KindT = TypeVar("KindT", bound=Struct)


class Index(Struct, frozen=True, kw_only=True):
    """``index.json``."""

    fleet: Hex64
    files: dict[str, Hex64]


class Floor(Struct, frozen=True, kw_only=True):
    """``floor.json``: rollback protection that outlives a damaged cache."""

    version: Annotated[int, Meta(ge=0)] = 0
    keys: list[str] = []
    """Sorted ids of the timestamp role's keys. When the root replaces them, the floor falls: a thief's huge
    version must not keep the fleet from its new key (TUF 5.3.11, recovery from a fast-forward attack)."""


class KeptFiles:
    """The directory. One writer at a time; readers need no lock, as the index in memory is replaced whole.

    Args:
        directory: made when it is not there, 0700.
        fleet: whose files these are.
    """

    def __init__(self, directory: Path, fleet: str) -> None:
        self._directory = directory
        self._files = directory / _FILES
        self._fleet = fleet
        self.cache = directory / "tuf"
        """For python-tuf."""
        for path in (directory, self._files, self.cache):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._index: Mapping[str, str] = self._load_index()
        self.floor = self._load(_FLOOR, Floor) or Floor()

    def names(self) -> frozenset[str]:
        """Names of the set."""
        return frozenset(self._index)

    def read(self, name: str) -> bytes | None:
        """A file of the set by its repository name; None when it is not one, or its bytes are damaged."""
        sha256 = self._index.get(name)
        return None if sha256 is None else self.read_digest(sha256)

    def read_digest(self, sha256: str) -> bytes | None:
        """A file by its hash, of the set or left over from a refresh that did not end."""
        path = self._files / sha256
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("cannot read %s: %s", path, error.strerror)
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            _log.warning("%s is damaged: it is fetched again at the next refresh", path)
            return None
        return data

    def keep(self, data: bytes) -> str:
        """Write a verified file; it belongs to no set yet. Returns its SHA-256. Raises DiskFull."""
        sha256 = hashlib.sha256(data).hexdigest()
        if self.read_digest(sha256) is None:
            atomic_write(self._files / sha256, data, mode=0o600)
        return sha256

    def commit(self, files: Mapping[str, str]) -> None:
        """Make these files the set.

        Args:
            files: repository name to SHA-256, each kept before.

        Raises:
            DiskFull: the set is what it was.
        """
        if files != self._index:
            index = Index(fleet=self._fleet, files=dict(files))
            atomic_write(self._directory / _INDEX, encode_document(index), mode=0o600)
            self._index = dict(files)
        self._prune(set(files.values()))

    def raise_floor(self, version: int, keys: Iterable[str]) -> None:
        """Remember a timestamp version that was trusted under these keys."""
        floor = Floor(version=version, keys=sorted(keys))
        if floor != self.floor:
            atomic_write(self._directory / _FLOOR, encode_document(floor), mode=0o600)
            self.floor = floor

    def floor_under(self, keys: Iterable[str]) -> int:
        """The floor that holds while these are the timestamp role's keys; 0 for others."""
        return self.floor.version if self.floor.keys == sorted(keys) else 0

    def _prune(self, needed: set[str]) -> None:
        for directory in (self._directory, self._files, self.cache):
            remove_unfinished(directory)
        for path in self._files.iterdir():
            if path.name not in needed:
                path.unlink(missing_ok=True)

    def _load_index(self) -> Mapping[str, str]:
        index = self._load(_INDEX, Index)
        if index is None:
            return {}
        if index.fleet != self._fleet:
            raise WrongFleet(
                f"{self._directory} belongs to fleet {index.fleet[:16]}, not {self._fleet[:16]}",
                hint="use another data directory",
            )
        return index.files

    def _load(self, name: str, kind: type[KindT]) -> KindT | None:
        path = self._directory / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreDamaged(f"cannot read {path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # Not fatal: all of it can be had again from neighbours, verified from the first root.
            _log.warning("%s is damaged (%s): it is made anew at the next refresh", path, error)
            return None
