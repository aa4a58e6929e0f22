"""Making a fleet: its keys and the first version of every metadata file, all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftseed.core.errors import Misuse, WouldOverwrite
from driftseed.core.ids import parse_safe_name
from driftseed.core.model import ENROLMENT_TARGET, HUBS_TARGET, EnrolmentKeys, Hubs, encode_document
from driftseed.core.tickets import fleet_of
from driftseed.store.files import DirectoryLock, sync_directory, write_secret
from driftseed.trust.chain import (
    DELEGATED,
    FLEET,
    TIMESTAMP_NAME,
    metadata_name,
    target_name,
    verify_chain,
)
from driftseed.trust.keys import encode_key, public_hex, signer_for
from driftseed.trust.layout import CONTENT, KEYS, FleetDirectory, FleetRecord
from driftseed.trust.signing import (
    ROLE_LIFETIME,
    ROOT_LIFETIME,
    Clock,
    expiry,
    meta_file,
    sign,
    sign_timestamp,
)
from driftseed.trust.tufapi import (
    CryptoSigner,
    DelegatedRole,
    Delegations,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

ROOT_KEYS_MAX: Final = 16
"""Root keys of one fleet."""
ENROLMENT: Final = "enrolment"
_ROLES: Final = (Targets.type, Snapshot.type, Timestamp.type, *DELEGATED)


def found_fleet(
    directory: Path, *, name: str, root_keys: int, threshold: int, passphrase: bytes | None, clock: Clock
) -> None:
    """Make a fleet directory.

    It is built in a hidden sibling and given its name when all of it is on disk: a power cut leaves no half
    of a fleet under that name. What an earlier cut left in the sibling is removed.

    Args:
        directory: where; it may be there if it is empty.
        name: for people.
        root_keys: how many root keys to make, at most ROOT_KEYS_MAX.
        threshold: how many of them must sign a root.
        passphrase: encrypts every key; None leaves them unencrypted.
        clock: seconds since 1970.

    Raises:
        WouldOverwrite: there is something.
        Misuse: the name or the numbers of keys cannot be used.
        AlreadyRunning: another process is making this directory.
        DiskFull: nothing was made.
    """
    parse_safe_name(name, "fleet name")
    if not 1 <= threshold <= root_keys <= ROOT_KEYS_MAX:
        raise Misuse(
            f"{root_keys} root keys of which {threshold} must sign",
            hint=f"1 <= threshold <= root keys <= {ROOT_KEYS_MAX}",
        )
    directory = directory.resolve()
    _refuse_to_overwrite(directory)
    staging = directory.with_name(f".{directory.name}.unfinished")
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = DirectoryLock(staging)
    lock.acquire()
    try:
        _fill(staging, name, root_keys, threshold, passphrase, clock)
        _refuse_to_overwrite(directory)
        # The lock goes along: it is the fleet directory's own from here on. Renaming onto an empty directory
        # replaces it; onto one that has become something else meanwhile, it fails and changes nothing.
        staging.rename(directory)
    except BaseException:
        # Also on KeyboardInterrupt: private keys of a fleet that never was are not left behind.
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        lock.release()
    sync_directory(directory.parent)


def _refuse_to_overwrite(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise WouldOverwrite(
            f"{directory} exists and is not empty",
            hint="choose another directory: keys that are replaced cannot be had back",
        )


def _fill(
    staging: Path, name: str, root_keys: int, threshold: int, passphrase: bytes | None, clock: Clock
) -> None:
    for leftover in (KEYS, CONTENT, "metadata", "targets"):
        shutil.rmtree(staging / leftover, ignore_errors=True)
    roots = [f"root-{number}" for number in range(1, root_keys + 1)]
    keys = {key: Ed25519PrivateKey.generate() for key in (*roots, *_ROLES, ENROLMENT)}
    first_root, files = first_files(keys, threshold, clock)
    fleet = FleetDirectory(staging)
    (staging / KEYS).mkdir(mode=0o700)
    (staging / CONTENT).mkdir()
    for key_name, key in keys.items():
        write_secret(fleet.key(key_name), encode_key(key, passphrase))
    for file_name, data in files.items():
        fleet.write(file_name, data)
    fleet.save_record(FleetRecord(name=name, fleet=fleet_of(first_root), keys=_recorded(keys)))
    # Names made by mkdir reach the disk with their parents.
    for parent in (*(path for path in staging.rglob("*") if path.is_dir()), staging):
        sync_directory(parent)


def _recorded(keys: Mapping[str, Ed25519PrivateKey]) -> dict[str, str]:
    return {
        public_hex(key) if name == ENROLMENT else signer_for(key).public_key.keyid: f"file:{KEYS}/{name}.pem"
        for name, key in keys.items()
    }


def first_files(
    keys: Mapping[str, Ed25519PrivateKey], threshold: int, clock: Clock
) -> tuple[bytes, dict[str, bytes]]:
    """Version 1 of every metadata file, and the ``fleet`` role's documents.

    Args:
        keys: by name: ``root-…``, each role's, and ``enrolment``.
        threshold: root keys that must sign a root.
        clock: seconds since 1970.

    Returns:
        The first root, and all files by repository name.
    """
    signers = {key_name: signer_for(key) for key_name, key in keys.items()}
    roots = [signer for key_name, signer in signers.items() if key_name.startswith("root-")]
    files: dict[str, bytes] = {}

    root = Root(expires=expiry(clock, ROOT_LIFETIME), consistent_snapshot=True)
    for signer in roots:
        root.add_key(signer.public_key, Root.type)
    root.roles[Root.type].threshold = threshold
    for role in (Targets.type, Snapshot.type, Timestamp.type):
        root.add_key(signers[role].public_key, role)
    first_root = files[metadata_name(Root.type, 1)] = sign(root, roots)

    snapshot = Snapshot(expires=expiry(clock, ROLE_LIFETIME), meta={})
    targets = Targets(expires=expiry(clock, ROLE_LIFETIME), delegations=_delegations(signers))
    for role, payload in (
        (Targets.type, targets),
        *((role, _first_role(role, keys, files, clock)) for role in DELEGATED),
    ):
        data = files[metadata_name(role, 1)] = sign(payload, [signers[role]])
        snapshot.meta[f"{role}.json"] = meta_file(1, data)
    data = files[metadata_name(Snapshot.type, 1)] = sign(snapshot, [signers[Snapshot.type]])
    files[TIMESTAMP_NAME] = sign_timestamp(1, meta_file(1, data), clock, [signers[Timestamp.type]])
    verify_chain(first_root, files.get)
    return first_root, files


def _delegations(signers: Mapping[str, CryptoSigner]) -> Delegations:
    delegated = {
        role: DelegatedRole(role, [signers[role].public_key.keyid], 1, terminating=True, paths=[pattern])
        for role, pattern in DELEGATED.items()
    }
    return Delegations(
        {signers[role].public_key.keyid: signers[role].public_key for role in DELEGATED}, delegated
    )


def _first_role(
    role: str, keys: Mapping[str, Ed25519PrivateKey], files: dict[str, bytes], clock: Clock
) -> Targets:
    payload = Targets(expires=expiry(clock, ROLE_LIFETIME))
    if role == FLEET:
        for path, document in (
            (ENROLMENT_TARGET, EnrolmentKeys(keys=[public_hex(keys[ENROLMENT])])),
            (HUBS_TARGET, Hubs()),
        ):
            data = encode_document(document)
            target = TargetFile.from_data(path, data, ["sha256"])
            payload.targets[path] = target
            files[target_name(path, target.hashes["sha256"])] = data
    return payload
