"""Made-up fleets for the pure core. The constructors of Verified values stand in for what trust/ verified."""

from __future__ import annotations

import hashlib

from driftseed.core.ids import DeviceId, Digest, FleetId
from driftseed.core.model import Artifact, Deployment, ReleaseManifest
from driftseed.core.verified import VerifiedDeployment, VerifiedFleet, VerifiedRelease

NOW = 1_800_000_000.0


def device(number: int) -> DeviceId:
    return DeviceId(f"{number:064x}")


def digest(text: str) -> Digest:
    return Digest(hashlib.sha256(text.encode()).hexdigest())


def artifact(filename: str = "app.bin", selector: str = "", length: int = 1000) -> Artifact:
    return Artifact(
        filename=filename,
        length=length,
        sha256=digest(filename),
        torrent_sha256=digest(f"{filename}.torrent"),
        selector=selector,
    )


def release(
    name: str = "app", version: str = "1.0", *artifacts: Artifact, module: str = "directory"
) -> VerifiedRelease:
    manifest = ReleaseManifest(
        name=name,
        version=version,
        module=module,
        artifacts=list(artifacts) or [artifact()],
        created="2027-01-15T08:00:00Z",
    )
    return VerifiedRelease(manifest=manifest, digest=digest(f"{name} {version} {manifest.artifacts}"))


def deployment(
    of: VerifiedRelease, sequence: int = 1, selector: str = "", *, allow_downgrade: bool = False
) -> VerifiedDeployment:
    document = Deployment(
        id=f"{sequence:032x}",
        sequence=sequence,
        release=of.manifest.name,
        version=of.manifest.version,
        manifest_sha256=of.digest,
        selector=selector,
        allow_downgrade=allow_downgrade,
    )
    return VerifiedDeployment(deployment=document, release=of)


def fleet(*deployments: VerifiedDeployment, expires: float = NOW + 3600) -> VerifiedFleet:
    return VerifiedFleet(
        fleet=FleetId("f" * 64),
        root_version=1,
        timestamp_version=7,
        snapshot_version=3,
        expires=expires,
        enrolment_keys=frozenset(),
        hubs=(),
        deployments=deployments,
    )
