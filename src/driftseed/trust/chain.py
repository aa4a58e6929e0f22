"""One consistent set of TUF metadata: its names, its roles, and the chain of signatures from the first root.

The set of a fleet is::

    metadata/1.root.json, 2.root.json, …    every root, each signed by its predecessor's keys and its own
    metadata/timestamp.json                 names the snapshot; the only file whose name stays the same
    metadata/N.snapshot.json                names the versions of all others
    metadata/N.targets.json                 delegates to the roles below, each terminating; the first that matches
    metadata/N.TEAM.json                    such as releases/camera/*/*   a team's own releases, if there are teams
    metadata/N.releases.json                releases/*/*/*   the build system's: all others
    metadata/N.deployments.json             deployments/*    the operators'
    metadata/N.fleet.json                   fleet/*          who enrols, where hubs are

(TUF specification 1.0, consistent snapshots.) As every name but one has a version or hash in it, and every
file names the next by version, length and SHA-256, whoever has the timestamp has the set.

``verify_chain`` checks signatures, versions, lengths and hashes of a set that is at hand, at any time: it does
not look at expiry, because a set that was trusted stays what it was. The client workflow of the
specification, with its expiry and rollback checks, is python-tuf's (``trust/updater.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

from driftseed.core import limits
from driftseed.core.errors import MetadataInvalid
from driftseed.trust.tufapi import (
    Metadata,
    MetaFile,
    RepositoryError,
    Root,
    Signed,
    SignedT,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

RELEASES: Final = "releases"
DEPLOYMENTS: Final = "deployments"
FLEET: Final = "fleet"
DELEGATED: Final[Mapping[str, str]] = {
    RELEASES: "releases/*/*/*",
    DEPLOYMENTS: "deployments/*",
    FLEET: "fleet/*",
}
"""The roles that every fleet delegates to, and the path pattern of each (python-tuf matches segment by segment).
Teams come before them, so that their paths are theirs alone."""

TIMESTAMP_NAME: Final = "metadata/timestamp.json"

TUF_FAULTS: Final = (RepositoryError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What python-tuf raises for metadata that is wrong in any way: its own errors for what it foresaw, built-in
ones for signed values of an unforeseen type and for roles that are not delegated."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")

Read = Callable[[str], bytes | None]
"""Gives a file's bytes by its repository name, or None."""


def metadata_name(role: str, version: int) -> str:
    """Repository name of a versioned metadata file."""
    return f"metadata/{version}.{role}.json"


def target_name(path: str, sha256: str) -> str:
    """Repository name of a target file: its path with the hash before the last part (TUF section 6.2)."""
    parent, _, base = path.rpartition("/")
    return f"targets/{parent}/{sha256}.{base}" if parent else f"targets/{sha256}.{base}"


def sha256_of(target: TargetFile) -> str | None:
    """The SHA-256 that is signed for a target; None if its metadata has only other hashes, or no hash there.

    It becomes part of file names, and whoever stole a role's key can sign any text in its place.
    """
    digest = target.hashes.get("sha256")
    return digest if isinstance(digest, str) and _SHA256.fullmatch(digest) else None


def parse(data: bytes, kind: type[SignedT], name: str) -> Metadata[SignedT]:
    """Decode a metadata file, verifying nothing.

    Raises:
        MetadataInvalid: not metadata of this type.
    """
    try:
        metadata = cast("Metadata[SignedT]", Metadata[Any].from_bytes(data))
    except TUF_FAULTS as error:
        raise MetadataInvalid(f"{name} is not TUF metadata: {error}") from None
    if not isinstance(metadata.signed, kind):
        raise MetadataInvalid(f"{name} is {metadata.signed.type} metadata, not {kind.type}")
    return metadata


def verified(data: bytes, kind: type[SignedT], name: str, delegator: Root | Targets, role: str) -> SignedT:
    """Decode a metadata file that the role's keys signed up to its threshold, as the delegator says.

    Raises:
        MetadataInvalid: malformed, of another type, or not signed so.
    """
    metadata = parse(data, kind, name)
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except TUF_FAULTS as error:
        raise MetadataInvalid(f"{name} is not signed as the role {role} must be: {error}") from None
    return metadata.signed


@dataclass(frozen=True, slots=True)
class Chain:
    """A set whose signatures, versions, lengths and hashes hold together."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    delegated: Mapping[str, Targets]
    files: Mapping[str, bytes]
    """Every metadata file by its repository name."""

    @property
    def expires(self) -> datetime:
        """The earliest expiry."""
        signed: list[Signed] = [self.root, self.timestamp, self.snapshot, self.targets]
        return min(one.expires for one in (*signed, *self.delegated.values()))

    def find(self, role: str, path: str) -> TargetFile | None:
        """A target that this role signed and may sign: another role's word for the path does not count."""
        if self.owner(path) != role:
            return None
        return self.delegated[role].targets.get(path)

    def owner(self, path: str) -> str | None:
        """The only role that may sign a path: the first delegation that matches, as each is terminating."""
        delegations = self.targets.delegations
        owner = next(iter(delegations.get_roles_for_target(path)), None) if delegations is not None else None
        return None if owner is None else owner[0]

    @property
    def release_roles(self) -> tuple[str, ...]:
        """``releases`` and the teams: the roles that may sign releases, in order of precedence."""
        return tuple(role for role in self.delegated if role not in {DEPLOYMENTS, FLEET})

    def paths(self, role: str) -> list[str]:
        """Paths that this role signed, sorted; those that it may not sign too."""
        return sorted(self.delegated[role].targets)


def verify_roots(first_root: bytes, read: Read) -> tuple[Root, dict[str, bytes]]:
    """Follow the chain of roots (TUF 5.3) as far as it is at hand.

    Returns:
        The newest root, and the files by name.

    Raises:
        MetadataInvalid: a root is not signed by its own and its predecessor's keys, or is not the next version.
    """
    unverified = parse(first_root, Root, "the first root")
    root = verified(first_root, Root, "the first root", unverified.signed, Root.type)
    files = {metadata_name(Root.type, root.version): first_root}
    while (data := read(name := metadata_name(Root.type, root.version + 1))) is not None:
        following = verified(data, Root, name, root, Root.type)
        verified(data, Root, name, following, Root.type)
        if following.version != root.version + 1:
            raise MetadataInvalid(f"{name} is version {following.version}")
        root = following
        files[name] = data
    return root, files


def verify_chain(first_root: bytes, read: Read) -> Chain:
    """Verify a set that is at hand, from the first root down. Expiry is not looked at.

    Raises:
        MetadataInvalid: a file is missing or does not follow from the one before.
    """
    root, files = verify_roots(first_root, read)
    loader = _Loader(read, files)
    timestamp = verified(loader.data(TIMESTAMP_NAME), Timestamp, TIMESTAMP_NAME, root, Timestamp.type)
    snapshot = loader.load(Snapshot, timestamp.snapshot_meta, root, Snapshot.type)
    targets = loader.load(Targets, _named(snapshot, Targets.type), root, Targets.type)
    delegated = {
        role: loader.load(Targets, _named(snapshot, role), targets, role) for role in delegated_roles(targets)
    }
    return Chain(root, timestamp, snapshot, targets, delegated, files)


def delegated_roles(targets: Targets) -> tuple[str, ...]:
    """The roles that ``targets`` delegates to, in order of precedence.

    Raises:
        MetadataInvalid: one that every fleet has is missing, or there are more than devices follow.
    """
    delegations = targets.delegations
    roles = tuple(delegations.roles or ()) if delegations is not None else ()
    if missing := sorted(DELEGATED.keys() - set(roles)):
        raise MetadataInvalid(f"targets {targets.version} does not delegate to {', '.join(missing)}")
    if len(roles) > limits.DELEGATIONS_MAX:
        raise MetadataInvalid(
            f"targets {targets.version} delegates to {len(roles)} roles; {limits.DELEGATIONS_MAX} are followed"
        )
    return roles


def _named(snapshot: Snapshot, role: str) -> MetaFile:
    meta = snapshot.meta.get(f"{role}.json")
    if meta is None:
        raise MetadataInvalid(f"snapshot {snapshot.version} does not name {role}")
    return meta


class _Loader:
    """Loads files that other files name, and keeps their bytes."""

    def __init__(self, read: Read, files: dict[str, bytes]) -> None:
        self._read = read
        self._files = files

    def data(self, name: str) -> bytes:
        data = self._read(name)
        if data is None:
            raise MetadataInvalid(f"{name} is missing")
        self._files[name] = data
        return data

    def load(self, kind: type[SignedT], meta: MetaFile, delegator: Root | Targets, role: str) -> SignedT:
        name = metadata_name(role, meta.version)
        data = self.data(name)
        try:
            meta.verify_length_and_hashes(data)
        except TUF_FAULTS as error:
            raise MetadataInvalid(f"{name} is not the file that was signed: {error}") from None
        signed = verified(data, kind, name, delegator, role)
        if signed.version != meta.version:
            raise MetadataInvalid(f"{name} is version {signed.version}")
        return signed
