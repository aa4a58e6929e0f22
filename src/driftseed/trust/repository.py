"""The publisher's side: a fleet directory, and the commands that change it.

Each command reads only the keys that it needs, so that nobody has to hold them all:

===================================== ===========================================
command                               keys besides ``snapshot`` and ``timestamp``
===================================== ===========================================
add_release (a build system, a team)  ``releases``, or the team's
add_deployment (operators)            ``deployments``
change_hubs, change_devices           ``fleet``
renew                                 the roles' own
bump_timestamp                        none, and no ``snapshot``
===================================== ===========================================

A machine that builds needs a copy of the directory with these three key files and no others; what it signs
makes no device do anything until ``deployments`` names it. Every file's layout: ``trust/layout.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftseed.core import limits
from driftseed.core.errors import (
    ArtifactUnreadable,
    Misuse,
    WouldOverwrite,
)
from driftseed.core.model import (
    DEVICES_TARGET,
    HUBS_TARGET,
    Deployment,
    Devices,
    Hubs,
    NodeAddress,
    ReleaseManifest,
    artifact_target,
    deployment_target,
    manifest_target,
    torrent_target,
)
from driftseed.core.verified import VerifiedRelease
from driftseed.store.files import DirectoryLock
from driftseed.trust.chain import (
    DEPLOYMENTS,
    FLEET,
    sha256_of,
    target_name,
)
from driftseed.trust.change import Change
from driftseed.trust.contents import FleetContents
from driftseed.trust.founding import ENROLMENT, found_fleet
from driftseed.trust.keyring import Keyring, NamedKey
from driftseed.trust.keys import Passphrase, load_private
from driftseed.trust.layout import FleetDirectory
from driftseed.trust.signing import Clock, instant
from driftseed.trust.tufapi import Snapshot, TargetFile, Targets, Timestamp


class FleetRepository(FleetContents):
    """A fleet directory; use ``create`` or ``open``.

    Every method that changes it takes the directory's lock (AlreadyRunning) and first reads what another
    process may have changed; it writes the timestamp last, so that after a crash it can simply be run again.
    Besides the errors that they name, all raise NotFound for a key file that is not here, WrongPassphrase,
    UnsafePermissions, DiskFull and ClockWrong. What it holds is read through ``FleetContents``.
    """

    def __init__(self, directory: FleetDirectory, passphrase: Passphrase, clock: Clock) -> None:
        super().__init__(directory)
        self.passphrase = passphrase
        """Asked for the passphrases of keys."""
        self._clock = clock

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        name: str,
        root_keys: int,
        threshold: int,
        passphrase: bytes | None,
        clock: Clock,
    ) -> Self:
        """Make a fleet and open it. Arguments and errors as ``trust.founding.found_fleet``."""
        found_fleet(
            directory, name=name, root_keys=root_keys, threshold=threshold, passphrase=passphrase, clock=clock
        )
        return cls.open(directory, lambda _: passphrase or b"", clock)

    @classmethod
    def open(cls, directory: Path, passphrase: Passphrase, clock: Clock) -> Self:
        """Open a fleet directory. No key is read yet.

        Args:
            directory: DIR.
            passphrase: asked when a key that is needed is encrypted.
            clock: seconds since 1970.

        Raises:
            NotFound: this is no fleet directory.
            StoreDamaged: its files do not follow from its first root.
        """
        return cls(FleetDirectory(directory), passphrase, clock)

    def private_key(self, name: str) -> Ed25519PrivateKey:
        """A key of this directory by its file's name without ``.pem``, such as ``enrolment``."""
        return load_private(self._directory.key(name), self.passphrase)

    def enrolment_key(self) -> Ed25519PrivateKey:
        """The newest of the keys that certify invitations and hubs. Raises NotFound when it is not here."""
        return self.keyring().private(self.enrolment_keys()[-1], ENROLMENT)

    def role_key(self, role: str) -> Ed25519PrivateKey:
        """A private key of a role that ``root`` names, itself. Raises NotFound when none is in a file here."""
        keyids = self._chain.root.roles[role].keyids
        keyring = self.keyring()
        usable = [keyid for keyid in keyids if keyring.path(keyid) is not None and keyring.is_here(keyid)]
        return keyring.private((usable or keyids)[0], role)

    # --- what changes it ------------------------------------------------------------------------

    def add_release(
        self, manifest: ReleaseManifest, files: Mapping[str, tuple[Path, bytes]]
    ) -> VerifiedRelease:
        """Sign a release and keep its content.

        Args:
            manifest: what it says.
            files: of each artifact, by its SHA-256: the file, which is copied, and its torrent.

        Raises:
            WouldOverwrite: there is such a version: devices may have it, it is never changed.
            ArtifactUnreadable: a file cannot be read, or is not what the manifest says.
            Misuse: the manifest is too large for devices.
        """
        role = self.release_role(manifest.name, manifest.version)
        with self._changing(role) as change:
            path = manifest_target(manifest.name, manifest.version)
            if path in self._chain.delegated[role].targets:
                raise WouldOverwrite(
                    f"release {manifest.name} {manifest.version} exists",
                    hint="devices may have it already: choose another version",
                )
            for artifact in manifest.artifacts:
                source, torrent = files[artifact.sha256]
                if hashlib.sha256(torrent).hexdigest() != artifact.torrent_sha256:
                    raise ArtifactUnreadable(f"the torrent of {artifact.filename} is not the manifest's")
                self._directory.keep_content(source, artifact)
                change.add_target(
                    role,
                    TargetFile(
                        artifact.length,
                        {"sha256": artifact.sha256},
                        artifact_target(manifest.name, manifest.version, artifact),
                    ),
                )
                change.add_file(role, torrent_target(manifest.name, manifest.version, artifact), torrent)
            change.add_document(role, path, manifest)
            self._commit(change)
        return self.release(manifest.name, manifest.version)

    def add_deployment(
        self,
        *,
        deployment_id: str,
        release: str,
        version: str,
        selector: str = "",
        allow_downgrade: bool = False,
    ) -> Deployment:
        """Sign a deployment. Older ones of the same release name and selector are superseded and removed.

        Args:
            deployment_id: ``uuid4().hex``.
            release: its name.
            version: its version.
            selector: devices; the caller has parsed it. Empty means all.
            allow_downgrade: also devices that have a newer version.

        Raises:
            NotFound: there is no such release.
            Misuse: DEPLOYMENTS_MAX are in force.
        """
        with self._changing(DEPLOYMENTS) as change:
            manifest_sha256 = self.release(release, version).digest
            before = self.deployments()
            superseded = [one for one in before if (one.release, one.selector) == (release, selector)]
            if len(before) - len(superseded) >= limits.DEPLOYMENTS_MAX:
                raise Misuse(
                    f"{len(before)} deployments are in force; devices look at {limits.DEPLOYMENTS_MAX}"
                )
            deployment = Deployment(
                id=deployment_id,
                sequence=max([self._record.sequence, *(one.sequence for one in before)]) + 1,
                release=release,
                version=version,
                manifest_sha256=manifest_sha256,
                selector=selector,
                created=instant(self._clock).strftime("%Y-%m-%dT%H:%M:%SZ"),
                allow_downgrade=allow_downgrade,
            )
            # Before it is signed: a sequence that was given once is not given again, whatever happens next.
            self._save(sequence=deployment.sequence)
            for one in superseded:
                del change.role(DEPLOYMENTS).targets[deployment_target(one.id)]
            change.add_document(DEPLOYMENTS, deployment_target(deployment_id), deployment)
            self._commit(change)
        return deployment

    def set_hubs(self, hubs: Sequence[NodeAddress]) -> None:
        """Sign where the fleet's hubs are. Raises Misuse for more than TICKET_HUBS_MAX."""
        self.change_hubs(lambda _before: hubs)

    def change_hubs(self, change: Callable[[tuple[NodeAddress, ...]], Sequence[NodeAddress]]) -> None:
        """Sign other hubs than before.

        Args:
            change: makes of the hubs that are signed now those to sign. It is asked while this process has the
                directory to itself, so that nothing of another one's change is lost; what it raises leaves all as it was.

        Raises:
            Misuse: they are more than TICKET_HUBS_MAX.
        """
        with self._changing(FLEET) as signing:
            hubs = list(change(self.hubs()))
            if len(hubs) > limits.TICKET_HUBS_MAX:
                raise Misuse(
                    f"{len(hubs)} hubs", hint=f"at most {limits.TICKET_HUBS_MAX} are told to devices"
                )
            signing.add_document(FLEET, HUBS_TARGET, Hubs(hubs=hubs))
            self._commit(signing)

    def change_devices(self, change: Callable[[Devices], Devices]) -> None:
        """Sign who is expelled, approved and relabelled; ``change`` as in ``change_hubs``."""
        with self._changing(FLEET) as signing:
            signing.add_document(FLEET, DEVICES_TARGET, change(self.devices()))
            self._commit(signing)

    def now(self) -> float:
        """Seconds since 1970 by the clock that signatures are dated by."""
        return self._clock()

    def declare_labels(self, keys: Collection[str]) -> None:
        """Remember label keys that operators use, so that a selector that names them is no slip."""
        with self._locked():
            self._save(labels=sorted({*self._record.labels, *keys}))

    def bump_timestamp(self, at_least: int = 0) -> int:
        """Sign a new timestamp over the same state, its version above ``at_least`` and its own.

        Returns:
            The new version.
        """
        with self._changing() as change:
            self._commit(change, timestamp_above=at_least)
        return self.timestamp_version

    def renew(self, *roles: str) -> None:
        """Sign roles' metadata anew for another lifetime, and what names it. The root: ``trust/ceremony.py``.

        Args:
            roles: ``targets``, or roles that it delegates to; ``snapshot`` and ``timestamp`` are renewed anyway.

        Raises:
            Misuse: there is no such role.
        """
        for role in roles:
            if role not in {Targets.type, *self._chain.delegated}:
                raise Misuse(f"there is no role {role}", hint=f"targets, {', '.join(self._chain.delegated)}")
        with self._changing() as change:
            change.load_keys(Snapshot.type, *roles)
            for role in roles:
                change.role(role)
            self._commit(change, new_snapshot=True)

    # --- how ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = DirectoryLock(self._directory.path)
        lock.acquire()
        try:
            self._directory.tidy()
            self._reload()
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _changing(self, role: str | None = None, *, keys: Iterable[NamedKey] = ()) -> Iterator[Change]:
        """Lock, and load the keys first: nothing long is begun with a wrong passphrase."""
        with self._locked():
            change = Change(self._chain, self.keyring(keys), self._clock)
            change.load_keys(Timestamp.type)
            if role is not None:
                change.load_keys(Snapshot.type, role)
            yield change

    def keyring(self, brought: Iterable[NamedKey] = ()) -> Keyring:
        """The private keys that can be used here.

        Args:
            brought: keys that a person named for one command.
        """
        return Keyring(self._directory.path, self._record.keys, self.passphrase, brought)

    def _commit(self, change: Change, *, timestamp_above: int = 0, new_snapshot: bool = False) -> None:
        old = set(self._document_names())
        files = change.sign(self.first_root, timestamp_above=timestamp_above, new_snapshot=new_snapshot)
        for name, data in files.items():
            self._directory.write(name, data)
        self._reload()
        for name in old - set(self._document_names()):
            (self._directory.path / name).unlink(missing_ok=True)

    def _document_names(self) -> Iterator[str]:
        for path, target in self._chain.delegated[DEPLOYMENTS].targets.items():
            yield target_name(path, str(sha256_of(target)))

    def _save(self, **changes: object) -> None:
        record = msgspec.structs.replace(self._record, **changes)
        self._directory.save_record(record)
        self._record = record
