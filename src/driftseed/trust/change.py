"""One change of a fleet's metadata: what is signed anew, in the order in which it must reach the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from driftseed.core import limits
from driftseed.core.errors import Misuse
from driftseed.core.model import encode_document
from driftseed.trust.chain import (
    TIMESTAMP_NAME,
    Chain,
    metadata_name,
    parse,
    sha256_of,
    target_name,
    verify_chain,
)
from driftseed.trust.signing import (
    ROLE_LIFETIME,
    ROOT_LIFETIME,
    Clock,
    expiry,
    meta_file,
    sign,
    sign_timestamp,
)
from driftseed.trust.tufapi import MetaFile, Root, Signer, Snapshot, TargetFile, Targets, Timestamp


class Change:
    """Collects what is new, then signs it.

    Args:
        chain: the set to start from.
        signers: of every role that the change will sign, by role; ``root`` may have several.
        clock: seconds since 1970.
    """

    def __init__(self, chain: Chain, signers: Mapping[str, Iterable[Signer]], clock: Clock) -> None:
        self._chain = chain
        self._signers = {role: list(some) for role, some in signers.items()}
        self._clock = clock
        self._roles: dict[str, Targets] = {}
        self._targets: dict[str, bytes] = {}
        self._root: Root | None = None

    def role(self, role: str) -> Targets:
        """A copy of a role's metadata, to be changed; it is signed with the rest."""
        if role not in self._roles:
            old = self._chain.targets if role == Targets.type else self._chain.delegated[role]
            name = metadata_name(role, old.version)
            self._roles[role] = parse(self._chain.files[name], Targets, name).signed
        return self._roles[role]

    def root(self) -> Root:
        """A copy of the root, to be changed; it is signed with the rest."""
        if self._root is None:
            name = metadata_name(Root.type, self._chain.root.version)
            self._root = parse(self._chain.files[name], Root, name).signed
        return self._root

    def add_target(self, role: str, target: TargetFile) -> None:
        """Sign a file that lives elsewhere."""
        self.role(role).targets[target.path] = target

    def add_file(self, role: str, path: str, data: bytes) -> None:
        """Sign a small file, and keep it."""
        target = TargetFile.from_data(path, data, ["sha256"])
        self.add_target(role, target)
        self._targets[target_name(path, str(sha256_of(target)))] = data

    def add_document(self, role: str, path: str, document: Struct) -> None:
        """Sign a document. Raises Misuse when it is larger than devices read."""
        data = encode_document(document)
        if len(data) > limits.DOCUMENT_BYTES_MAX:
            raise Misuse(
                f"{path} would have {len(data)} bytes; devices read {limits.DOCUMENT_BYTES_MAX}",
                hint="use fewer variants, or less meta-data",
            )
        self.add_file(role, path, data)

    def sign(self, first_root: bytes, *, timestamp_above: int = 0) -> dict[str, bytes]:
        """Sign all that is new, up to the timestamp.

        Args:
            first_root: the fleet's trust anchor: the result is verified from there before anybody sees it.
            timestamp_above: the new timestamp's version is greater than this, and than its predecessor's.

        Returns:
            Files by repository name, in the order in which they must be written: the timestamp is the last.

        Raises:
            MetadataInvalid: the keys are not those that the metadata names.
            Misuse: a file would be larger than devices read.
        """
        files = dict(self._targets)
        if self._root is not None:
            self._root.version += 1
            self._root.expires = expiry(self._clock, ROOT_LIFETIME)
            files[metadata_name(Root.type, self._root.version)] = sign(self._root, self._signers[Root.type])
        snapshot_meta = self._sign_roles(files) if self._roles else self._chain.timestamp.snapshot_meta
        version = max(self._chain.timestamp.version, timestamp_above) + 1
        signer = self._signers[Timestamp.type][0]
        files[TIMESTAMP_NAME] = sign_timestamp(version, snapshot_meta, self._clock, signer)
        for name, data in files.items():
            if len(data) > limits.METADATA_BYTES_MAX and name.startswith("metadata/"):
                raise Misuse(f"{name} would have {len(data)} bytes; devices read {limits.METADATA_BYTES_MAX}")
        verify_chain(first_root, lambda name: files.get(name) or self._chain.files.get(name))
        return files

    def _sign_roles(self, files: dict[str, bytes]) -> MetaFile:
        name = metadata_name(Snapshot.type, self._chain.snapshot.version)
        snapshot = parse(self._chain.files[name], Snapshot, name).signed
        for role, payload in self._roles.items():
            payload.version += 1
            payload.expires = expiry(self._clock, ROLE_LIFETIME)
            data = files[metadata_name(role, payload.version)] = sign(payload, self._signers[role])
            snapshot.meta[f"{role}.json"] = meta_file(payload.version, data)
        snapshot.version += 1
        snapshot.expires = expiry(self._clock, ROLE_LIFETIME)
        data = files[metadata_name(Snapshot.type, snapshot.version)] = sign(
            snapshot, self._signers[Snapshot.type]
        )
        return meta_file(snapshot.version, data)
