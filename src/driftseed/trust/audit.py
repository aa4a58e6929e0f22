"""A look at a whole fleet directory: who may sign what, whether all of it holds, and what needs attention.

Reads no private key. A directory whose chain of signatures is broken cannot be opened at all; what is found here
is what can be wrong besides: expiry, content that is missing or changed, deployments on which roles disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from driftseed.core import limits
from driftseed.core.errors import DriftseedError, StoreDamaged
from driftseed.trust.agreement import judge
from driftseed.trust.chain import DEPLOYMENTS, FLEET, RELEASES, target_name, verify_roots
from driftseed.trust.founding import ENROLMENT
from driftseed.trust.repository import FleetRepository
from driftseed.trust.signing import TIMESTAMP_LIFETIME, Clock, instant
from driftseed.trust.tufapi import Role, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

SOON: Final = timedelta(days=30)
"""How long before a role's expiry it is said; for the timestamp, half of its lifetime."""
_READ_BYTES: Final = limits.MIB

_MEANS: Final[Mapping[str, str]] = {
    Root.type: "names the keys of root, targets, snapshot and timestamp, and so can change everything",
    Targets.type: "says whose releases, deployments and fleet documents count",
    Snapshot.type: "says which versions of all other metadata belong together",
    Timestamp.type: "says which state is the newest; hubs have it, to keep the fleet fresh",
    RELEASES: "signs what can be installed; it makes no device install anything",
    DEPLOYMENTS: "says which devices shall have which signed release; it cannot make one",
    FLEET: "names enrolment keys and hubs, expels and relabels devices; it installs nothing",
    ENROLMENT: "certifies tickets and hubs: makes members; it installs nothing",
}


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key of one role."""

    role: str
    keyid: str
    """Of an enrolment key: its public half."""
    kind: str
    uri: str
    """Where the private half is said to be; empty when nobody said."""
    here: bool
    """Whether it can be used on this machine; a device or service is believed."""
    threshold: int
    expires: datetime | None
    """When the role's metadata ends; enrolment keys have none."""


@dataclass(frozen=True, slots=True)
class RoleFinding:
    """What one role may do."""

    role: str
    version: int
    threshold: int
    keys: int
    expires: datetime | None
    paths: tuple[str, ...]
    """What it may sign; a role that stands before it takes its own out of these."""
    targets: int
    """Files that it has signed."""
    means: str
    """In words."""


@dataclass(slots=True)
class Findings:
    """What came of a look."""

    roles: list[RoleFinding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Broken: devices will refuse something."""
    warnings: list[str] = field(default_factory=list)
    """Will break, or is worth a look."""
    roots: int = 0
    files: int = 0
    """Documents and torrents whose hashes hold."""
    contents: int = 0
    """Artifacts whose lengths and hashes hold."""


def list_keys(repository: FleetRepository) -> list[KeyRow]:
    """Every key of every role, and where it is."""
    ring = repository.keyring()
    rows = [
        KeyRow(
            role,
            keyid,
            delegator.get_key(keyid).keytype,
            ring.uri(keyid) or "",
            ring.is_here(keyid),
            named.threshold,
            signed.expires,
        )
        for role, delegator, named, signed in _roles(repository)
        for keyid in named.keyids
    ]
    rows.extend(
        KeyRow(ENROLMENT, public, "ed25519", ring.uri(public) or "", ring.is_here(public), 1, None)
        for public in repository.enrolment_keys()
    )
    return rows


def audit(repository: FleetRepository, clock: Clock) -> Findings:
    """Look at everything in a fleet directory; reads all of its content."""
    found = Findings()
    now = instant(clock)
    chain = repository.chain
    _, roots = verify_roots(repository.first_root, chain.files.get)
    found.roots = len(roots)
    for role, _, named, signed in _roles(repository):
        found.roles.append(_role_finding(repository, role, named, signed))
        _look_at_expiry(found, role, signed, now)
        if named.threshold == 1 and role in {Root.type, Targets.type}:
            found.warnings.append(
                f"{role}: one key alone can sign; ask for two: driftseed key rotate --threshold 2"
            )
    enrolling = len(repository.enrolment_keys())
    found.roles.append(RoleFinding(ENROLMENT, 0, 1, enrolling, None, (), 0, _MEANS[ENROLMENT]))
    _look_at_agreement(repository, found)
    _look_at_content(repository, found)
    return found


def _roles(repository: FleetRepository) -> Iterator[tuple[str, Root | Targets, Role, Signed]]:
    chain = repository.chain
    top: dict[str, Signed] = {
        Root.type: chain.root,
        Targets.type: chain.targets,
        Snapshot.type: chain.snapshot,
        Timestamp.type: chain.timestamp,
    }
    for role, signed in top.items():
        yield role, chain.root, chain.root.roles[role], signed
    for role, signed in chain.delegated.items():
        yield role, chain.targets, chain.targets.get_delegated_role(role), signed


def _role_finding(repository: FleetRepository, role: str, named: Role, signed: Signed) -> RoleFinding:
    paths = tuple(getattr(named, "paths", None) or ())
    means = (
        _MEANS.get(role)
        or f"a team: alone signs releases under {', '.join(paths)}; it makes no device install"
    )
    return RoleFinding(
        role,
        signed.version,
        named.threshold,
        len(named.keyids),
        signed.expires,
        paths,
        len(repository.chain.paths(role)) if role in repository.chain.delegated else 0,
        means,
    )


def _look_at_expiry(found: Findings, role: str, signed: Signed, now: datetime) -> None:
    left = signed.expires - now
    renew = (
        "a hub renews it, or: driftseed fleet renew DIR"
        if role == Timestamp.type
        else f"driftseed fleet renew DIR {role}"
    )
    soon = TIMESTAMP_LIFETIME / 4 if role == Timestamp.type else SOON
    if left <= timedelta(0):
        found.problems.append(f"{role} expired at {signed.expires:%Y-%m-%d %H:%M} UTC: {renew}")
    elif left < soon:
        found.warnings.append(f"{role} expires in {left.days} days: {renew}")


def _look_at_agreement(repository: FleetRepository, found: Findings) -> None:
    chain = repository.chain
    held: dict[str, bytes] = {}
    try:
        held = repository.target_files()
    except StoreDamaged as error:
        found.problems.append(error.message)
        return
    found.files = len(held)

    def read(path: str, target: TargetFile) -> bytes:
        data = held.get(target_name(path, target.hashes.get("sha256", "")))
        if data is None:
            raise StoreDamaged(f"{path} is signed and not here")
        return data

    def need(path: str, target: TargetFile) -> None:
        read(path, target)

    try:
        fleet = judge(repository.fleet_id, chain, read, need)
    except DriftseedError as error:
        found.problems.append(f"devices would refuse all of it: {error.message}")
        return
    found.problems.extend(f"devices would refuse {each}" for each in fleet.disagreements)
    for role in chain.delegated:
        for path in chain.paths(role):
            if chain.owner(path) != role:
                found.problems.append(
                    f"{role} signed {path}, which is {chain.owner(path) or 'nobody'}'s to sign"
                )


def _look_at_content(repository: FleetRepository, found: Findings) -> None:
    for release in repository.releases():
        for artifact in release.manifest.artifacts:
            what = f"{release.manifest.name} {release.manifest.version}: {artifact.filename}"
            try:
                with repository.content(artifact).open("rb") as file:
                    digest = hashlib.sha256()
                    while chunk := file.read(_READ_BYTES):
                        digest.update(chunk)
            except (DriftseedError, OSError) as error:
                # A machine that only deploys needs no content.
                found.warnings.append(f"{what} is not here: {error}")
                continue
            if digest.hexdigest() == artifact.sha256:
                found.contents += 1
            else:
                found.problems.append(f"{what} is not the signed file: restore content/{artifact.sha256}")
