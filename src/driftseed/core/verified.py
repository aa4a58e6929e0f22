"""Values whose type says that they were verified.

Only ``trust/`` calls these constructors; ``tests/test_architecture.py`` reads the source of every
other package to keep it so. Whoever holds such a value need not, and must not, check again who signed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from driftseed.core.ids import DeviceId, Digest, FleetId
from driftseed.core.model import Artifact, Deployment, Devices, NodeAddress, ReleaseManifest


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A manifest that the ``releases`` role signed."""

    manifest: ReleaseManifest
    digest: Digest
    """SHA-256 of the manifest file: what a deployment must name."""


@dataclass(frozen=True, slots=True)
class VerifiedDeployment:
    """A deployment that the ``deployments`` role signed, with the release that both roles agree on."""

    deployment: Deployment
    release: VerifiedRelease


@dataclass(frozen=True, slots=True)
class VerifiedTorrent:
    """A torrent file whose hash the ``releases`` role signed, bound to its artifact."""

    artifact: Artifact
    data: bytes
    """The bencoded torrent (BEP 52, v2 only), one file named by the artifact's SHA-256."""


@dataclass(frozen=True, slots=True)
class VerifiedArtifact:
    """A file on this device that has the signed length and SHA-256."""

    artifact: Artifact
    path: PurePath


@dataclass(frozen=True, slots=True)
class VerifiedNotice:
    """A timestamp.json whose signature holds; its version may be newer than what is trusted, or not."""

    version: int
    snapshot_version: int
    data: bytes


@dataclass(frozen=True, slots=True)
class VerifiedMember:
    """The other side of a connection, as the enrolment key describes it."""

    device: DeviceId
    role: str
    """``agent``, ``hub`` or ``publisher``."""
    labels: Mapping[str, str]
    expires: float
    """Seconds since 1970, UTC."""


@dataclass(frozen=True, slots=True)
class VerifiedReport:
    """A report that the device's own key signed."""

    device: DeviceId
    sequence: int
    data: bytes
    """The envelope as it travels."""


@dataclass(frozen=True, slots=True)
class VerifiedFleet:
    """All that one consistent set of TUF metadata says."""

    fleet: FleetId
    root_version: int
    timestamp_version: int
    snapshot_version: int
    expires: float
    """Seconds since 1970, UTC: the earliest expiry of the metadata it was made from."""
    enrolment_keys: frozenset[str]
    """Ed25519 public keys, hexadecimal."""
    hubs: tuple[NodeAddress, ...]
    deployments: tuple[VerifiedDeployment, ...]
    """In force, by growing sequence."""
    disagreements: tuple[str, ...] = ()
    """Deployments that name something ``releases`` did not sign, in words: refused, reported."""
    devices: Devices = field(default_factory=Devices)
    """Who is expelled, approved and relabelled."""
