"""What a verified set of metadata tells a device to do: only that on which both roles agree.

A deployment (``deployments`` role) names a release and the SHA-256 of its manifest; the manifest, every
artifact in it and every torrent must be targets of the ``releases`` role with the same lengths and hashes.
Whoever has stolen one of the two keys can therefore make no device install anything: it could only make
deployments on which the roles disagree. Each of those is refused by itself, with its reason in words; the
others stay in force.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

from driftseed.core import limits
from driftseed.core.errors import MetadataInvalid, RolesDisagree
from driftseed.core.ids import Digest, FleetId
from driftseed.core.model import (
    DEVICES_TARGET,
    ENROLMENT_TARGET,
    HUBS_TARGET,
    Artifact,
    Deployment,
    Devices,
    EnrolmentKeys,
    Hubs,
    NodeAddress,
    ReleaseManifest,
    artifact_target,
    decode_document,
    deployment_target,
    manifest_target,
    torrent_target,
)
from driftseed.core.verified import VerifiedDeployment, VerifiedFleet, VerifiedRelease
from driftseed.trust.chain import DEPLOYMENTS, FLEET, Chain, sha256_of
from driftseed.trust.tufapi import TargetFile

Read = Callable[[str, TargetFile], bytes]
"""Gives a target's bytes, length and hashes already checked."""
Need = Callable[[str, TargetFile], None]
"""Told of a target that must be kept and served, though nobody reads it now."""

DocumentT = TypeVar("DocumentT", bound=Struct)


def judge(fleet: FleetId, chain: Chain, read: Read, need: Need) -> VerifiedFleet:
    """Make a fleet's trusted state from a verified set.

    Args:
        fleet: the fleet's id.
        chain: the verified metadata.
        read: for documents.
        need: for torrents.

    Raises:
        MetadataInvalid: the set does not say who enrols; nothing can be done without.
        Exception: whatever ``read`` and ``need`` raise.
    """
    return _Judge(fleet, chain, read, need).verdict()


class _Judge:
    def __init__(self, fleet: FleetId, chain: Chain, read: Read, need: Need) -> None:
        self._fleet = fleet
        self._chain = chain
        self._read = read
        self._need = need
        self._releases: dict[str, VerifiedRelease | RolesDisagree] = {}
        self._disagreements: list[str] = []

    def verdict(self) -> VerifiedFleet:
        enrolment = self._enrolment()
        hubs = self._hubs()
        deployments = self._deployments()
        return VerifiedFleet(
            fleet=self._fleet,
            root_version=self._chain.root.version,
            timestamp_version=self._chain.timestamp.version,
            snapshot_version=self._chain.snapshot.version,
            expires=self._chain.expires.timestamp(),
            enrolment_keys=enrolment,
            hubs=hubs,
            deployments=deployments,
            devices=self._devices(),
            disagreements=tuple(self._disagreements),
        )

    def _enrolment(self) -> frozenset[str]:
        try:
            return frozenset(self._document(FLEET, ENROLMENT_TARGET, EnrolmentKeys).keys)
        except RolesDisagree as error:
            raise MetadataInvalid(f"the fleet does not say who enrols: {error.message}") from None

    def _hubs(self) -> tuple[NodeAddress, ...]:
        try:
            return tuple(self._document(FLEET, HUBS_TARGET, Hubs).hubs)
        except RolesDisagree as error:
            self._disagreements.append(f"{HUBS_TARGET}: {error.message}")
            return ()

    def _devices(self) -> Devices:
        if self._chain.find(FLEET, DEVICES_TARGET) is None:
            return Devices()
        try:
            return self._document(FLEET, DEVICES_TARGET, Devices)
        except RolesDisagree as error:
            # Not passed over as other documents are: whoever is expelled would be a member again.
            raise MetadataInvalid(f"the fleet does not say whom it expels: {error.message}") from None

    def _deployments(self) -> tuple[VerifiedDeployment, ...]:
        agreed = []
        paths = self._chain.paths(DEPLOYMENTS)
        if len(paths) > limits.DEPLOYMENTS_MAX:
            self._disagreements.append(
                f"deployments: {len(paths)} are signed, only {limits.DEPLOYMENTS_MAX} are looked at"
            )
        for path in paths[: limits.DEPLOYMENTS_MAX]:
            try:
                agreed.append(self._deployment(path))
            except RolesDisagree as error:
                self._disagreements.append(f"{path}: {error.message}")
        return tuple(sorted(agreed, key=lambda one: (one.deployment.sequence, one.deployment.id)))

    def _deployment(self, path: str) -> VerifiedDeployment:
        deployment = self._document(DEPLOYMENTS, path, Deployment)
        if path != deployment_target(deployment.id):
            raise RolesDisagree(f"the document is deployment {deployment.id}, not what its path says")
        release = self._release(deployment.release, deployment.version)
        if release.digest != deployment.manifest_sha256:
            raise RolesDisagree(
                f"names release {deployment.release} {deployment.version} with manifest "
                f"{deployment.manifest_sha256[:16]}; the role releases signed {release.digest[:16]}"
            )
        return VerifiedDeployment(deployment=deployment, release=release)

    def _release(self, name: str, version: str) -> VerifiedRelease:
        path = manifest_target(name, version)
        if path not in self._releases:
            try:
                self._releases[path] = self._check_release(path, name, version)
            except RolesDisagree as error:
                self._releases[path] = error
        known = self._releases[path]
        if isinstance(known, RolesDisagree):
            raise RolesDisagree(known.message)
        return known

    def _check_release(self, path: str, name: str, version: str) -> VerifiedRelease:
        role = self._chain.owner(path)
        if role not in self._chain.release_roles:
            raise RolesDisagree(f"no role for releases may sign {path}: it is given to {role or 'nobody'}")
        target = self._target(role, path, limits.DOCUMENT_BYTES_MAX)
        manifest = self._document(role, path, ReleaseManifest)
        if (manifest.name, manifest.version) != (name, version):
            raise RolesDisagree(f"{path} is the manifest of {manifest.name} {manifest.version}")
        # All of a release is one role's: a team signs no file of a release of which another signed the manifest.
        torrents = [self._check_artifact(role, manifest, artifact) for artifact in manifest.artifacts]
        for torrent_path, torrent in torrents:
            self._need(torrent_path, torrent)
        return VerifiedRelease(manifest=manifest, digest=Digest(str(sha256_of(target))))

    def _check_artifact(
        self, role: str, manifest: ReleaseManifest, artifact: Artifact
    ) -> tuple[str, TargetFile]:
        path = artifact_target(manifest.name, manifest.version, artifact)
        target = self._target(role, path, limits.ARTIFACT_BYTES_MAX)
        if (target.length, sha256_of(target)) != (artifact.length, artifact.sha256):
            raise RolesDisagree(f"the manifest and the role {role} give {path} different lengths or hashes")
        torrent_path = torrent_target(manifest.name, manifest.version, artifact)
        torrent = self._target(role, torrent_path, limits.TORRENT_BYTES_MAX)
        if sha256_of(torrent) != artifact.torrent_sha256:
            raise RolesDisagree(f"the manifest and the role {role} give {torrent_path} different hashes")
        return torrent_path, torrent

    def _target(self, role: str, path: str, max_length: int) -> TargetFile:
        target = self._chain.find(role, path)
        if target is None:
            raise RolesDisagree(f"the role {role} did not sign {path}")
        if sha256_of(target) is None:
            raise RolesDisagree(f"{path} is signed without a SHA-256")
        if target.length > max_length:
            raise RolesDisagree(f"{path} has {target.length} bytes where {max_length} are allowed")
        return target

    def _document(self, role: str, path: str, kind: type[DocumentT]) -> DocumentT:
        target = self._target(role, path, limits.DOCUMENT_BYTES_MAX)
        data = self._read(path, target)
        try:
            return decode_document(data, kind)
        except ValueError as error:
            raise RolesDisagree(f"{path} is signed but malformed: {error}") from None
