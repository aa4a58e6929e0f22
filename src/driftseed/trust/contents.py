"""What a fleet directory holds, read without any key: every file verified from the first root down."""

from __future__ import annotations

import hashlib
from pathlib import Path

from driftseed.core.errors import MetadataInvalid, Misuse, NotFound, StoreDamaged
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
    decode_document,
    manifest_target,
    torrent_target,
)
from driftseed.core.tickets import fleet_of
from driftseed.core.verified import VerifiedRelease
from driftseed.trust.agreement import DocumentT
from driftseed.trust.chain import (
    DEPLOYMENTS,
    FLEET,
    Chain,
    metadata_name,
    sha256_of,
    target_name,
    verify_chain,
)
from driftseed.trust.layout import CONTENT, FleetDirectory
from driftseed.trust.tufapi import Root, TargetFile


class FleetContents:
    """A fleet directory as it is on disk; ``FleetRepository`` adds what changes it.

    Args:
        directory: where the files are.

    Raises:
        NotFound: this is no fleet directory.
        StoreDamaged: its files do not follow from its first root. Every method raises it for a document that
            is missing or changed.
    """

    def __init__(self, directory: FleetDirectory) -> None:
        self._directory = directory
        self._record = directory.record()
        self.first_root = self._read_first_root()
        self._chain = self._read_chain()

    @property
    def fleet_id(self) -> FleetId:
        """SHA-256 of the first root."""
        return FleetId(self._record.fleet)

    @property
    def name(self) -> str:
        """The fleet's name, for people."""
        return self._record.name

    @property
    def labels(self) -> frozenset[str]:
        """Label keys that operators have declared."""
        return frozenset(self._record.labels)

    @property
    def timestamp_version(self) -> int:
        """Version of the newest timestamp signed here."""
        return self._chain.timestamp.version

    @property
    def chain(self) -> Chain:
        """The verified metadata."""
        return self._chain

    def enrolment_keys(self) -> list[str]:
        """Enrolment keys as signed, public, hexadecimal, the newest last."""
        return list(self._document(FLEET, ENROLMENT_TARGET, EnrolmentKeys).keys)

    def devices(self) -> Devices:
        """What is signed of single devices."""
        if self._chain.find(FLEET, DEVICES_TARGET) is None:
            return Devices()
        return self._document(FLEET, DEVICES_TARGET, Devices)

    def hubs(self) -> tuple[NodeAddress, ...]:
        """Where the hubs are, as signed."""
        return tuple(self._document(FLEET, HUBS_TARGET, Hubs).hubs)

    def releases(self) -> tuple[VerifiedRelease, ...]:
        """Every release, by name and version in text order."""
        found = [
            (path, role, target)
            for role in self._chain.release_roles
            for path in self._chain.paths(role)
            if path.rpartition("/")[2] == "release.json"
            and (target := self._chain.find(role, path)) is not None
        ]
        return tuple(
            VerifiedRelease(
                manifest=self._document(role, path, ReleaseManifest), digest=Digest(str(sha256_of(target)))
            )
            for path, role, target in sorted(found, key=lambda one: one[0])
        )

    def release_role(self, name: str, version: str) -> str:
        """The role that signs a release: ``releases``, or the team whose paths it falls under.

        Raises:
            Misuse: no role may sign releases of this name.
        """
        role = self._chain.owner(manifest_target(name, version))
        if role not in self._chain.release_roles:
            raise Misuse(
                f"no role of this fleet signs releases of {name}",
                hint="see who signs what: driftseed fleet verify DIR",
            )
        return role

    def release(self, name: str, version: str) -> VerifiedRelease:
        """One release. Raises NotFound, which names the versions there are."""
        releases = self.releases()
        for release in releases:
            if (release.manifest.name, release.manifest.version) == (name, version):
                return release
        versions = ", ".join(one.manifest.version for one in releases if one.manifest.name == name)
        raise NotFound(
            f"there is no release {name} {version}",
            hint=f"versions of {name}: {versions}" if versions else "see driftseed release list",
        )

    def deployments(self) -> tuple[Deployment, ...]:
        """Deployments in force, by growing sequence."""
        documents = [self._document(DEPLOYMENTS, path, Deployment) for path in self._chain.paths(DEPLOYMENTS)]
        return tuple(sorted(documents, key=lambda one: one.sequence))

    def metadata_files(self) -> dict[str, bytes]:
        """The current metadata, every root included, by repository name."""
        return dict(self._chain.files)

    def target_files(self) -> dict[str, bytes]:
        """Documents and torrents (every TUF target that is not an artifact), by repository name."""
        paths = [(role, path) for role in (FLEET, DEPLOYMENTS) for path in self._chain.paths(role)]
        for release in self.releases():
            manifest = release.manifest
            role = self.release_role(manifest.name, manifest.version)
            paths.append((role, manifest_target(manifest.name, manifest.version)))
            paths.extend(
                (role, torrent_target(manifest.name, manifest.version, artifact))
                for artifact in manifest.artifacts
            )
        files = {}
        for role, path in paths:
            target = self._chain.delegated[role].targets[path]
            files[target_name(path, str(sha256_of(target)))] = self._target_bytes(path, target)
        return files

    def files(self) -> dict[str, bytes]:
        """``metadata_files`` and ``target_files`` together: what a device needs besides content."""
        return {**self.metadata_files(), **self.target_files()}

    @property
    def content_directory(self) -> Path:
        """Where the artifacts are, each under its SHA-256."""
        return self._directory.path / CONTENT

    def content(self, artifact: Artifact) -> Path:
        """The artifact's file. Raises NotFound when this copy of the directory lacks it."""
        path = self._directory.content(artifact.sha256)
        if not path.is_file():
            raise NotFound(
                f"the content of {artifact.filename} ({artifact.sha256[:16]}) is not in {path.parent}"
            )
        return path

    def _reload(self) -> None:
        """Read what another process, or this one, has changed."""
        self._record = self._directory.record()
        self._chain = self._read_chain()

    def _read_first_root(self) -> bytes:
        data = self._directory.read(metadata_name(Root.type, 1))
        if data is None or fleet_of(data) != self._record.fleet:
            raise StoreDamaged(
                f"{self._directory.path}: the first root is missing or not this fleet's",
                hint="restore metadata/1.root.json from your backup",
            )
        return data

    def _read_chain(self) -> Chain:
        try:
            return verify_chain(self.first_root, self._directory.read)
        except MetadataInvalid as error:
            raise StoreDamaged(
                f"{self._directory.path}: {error.message}", hint="restore metadata/ from your backup"
            ) from error

    def _document(self, role: str, path: str, kind: type[DocumentT]) -> DocumentT:
        data = self._target_bytes(path, self._chain.delegated[role].targets[path])
        try:
            return decode_document(data, kind)
        except ValueError as error:
            raise StoreDamaged(f"{path} is signed but malformed: {error}") from None

    def _target_bytes(self, path: str, target: TargetFile) -> bytes:
        name = target_name(path, str(sha256_of(target)))
        data = self._directory.read(name)
        if data is None or hashlib.sha256(data).hexdigest() != sha256_of(target):
            raise StoreDamaged(
                f"{self._directory.path / name} is missing or changed", hint="restore it from your backup"
            )
        return data
