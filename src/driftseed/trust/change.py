"""One change of a fleet's metadata: what is signed anew, in the order in which it must reach the disk."""

from __future__ import annotations

from msgspec import Struct

from driftseed.core import limits
from driftseed.core.errors import MetadataInvalid, Misuse
from driftseed.core.model import encode_document
from driftseed.trust.chain import (
    TIMESTAMP_NAME,
    Chain,
    delegated_roles,
    metadata_name,
    parse,
    sha256_of,
    target_name,
    verified,
    verify_chain,
)
from driftseed.trust.keyring import Keyring
from driftseed.trust.signing import ROLE_LIFETIME, Clock, expiry, meta_file, sign, sign_timestamp
from driftseed.trust.tufapi import MetaFile, Root, SignedT, Signer, Snapshot, TargetFile, Targets, Timestamp


class Change:
    """Collects what is new, then signs it.

    A role whose keys the change replaces is signed anew by its new keys, without being asked for.

    Args:
        chain: the set to start from.
        keyring: the private keys that can be used.
        clock: seconds since 1970.
    """

    def __init__(self, chain: Chain, keyring: Keyring, clock: Clock) -> None:
        self._chain = chain
        self._keyring = keyring
        self._clock = clock
        self._roles: dict[str, Targets] = {}
        self._targets: dict[str, bytes] = {}
        self._root = chain.root
        self._new_root: bytes | None = None

    def load_keys(self, *roles: str) -> None:
        """Load the keys of roles now: nothing long is begun with a wrong passphrase."""
        for role in roles:
            self._signers(role)

    def role(self, role: str) -> Targets:
        """A copy of a role's metadata, to be changed; it is signed with the rest."""
        if role not in self._roles:
            old = self._chain.targets if role == Targets.type else self._chain.delegated[role]
            name = metadata_name(role, old.version)
            self._roles[role] = parse(self._chain.files[name], Targets, name).signed
        return self._roles[role]

    def new_role(self, role: str) -> Targets:
        """The empty metadata of a role that ``targets`` begins to delegate to; it is signed with the rest."""
        payload = Targets(expires=expiry(self._clock, ROLE_LIFETIME))
        # A team that was there before goes on from its last version, which devices remember (TUF 5.5.5).
        before = self._chain.snapshot.meta.get(f"{role}.json")
        payload.version = 0 if before is None else before.version
        self._roles[role] = payload
        return payload

    def set_root(self, data: bytes) -> None:
        """Take over the next root, which its signers have signed."""
        name = metadata_name(Root.type, self._chain.root.version + 1)
        self._root = parse(data, Root, name).signed
        self._new_root = data

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

    def sign(
        self, first_root: bytes, *, timestamp_above: int = 0, new_snapshot: bool = False
    ) -> dict[str, bytes]:
        """Sign all that is new, up to the timestamp.

        Args:
            first_root: the fleet's trust anchor: the result is verified from there before anybody sees it.
            timestamp_above: the new timestamp's version is greater than this, and than its predecessor's.
            new_snapshot: sign a snapshot even when no role has changed.

        Returns:
            Files by repository name, in the order in which they must be written: the timestamp is the last.

        Raises:
            MetadataInvalid: the keys are not those that the metadata names.
            NotFound: fewer keys of a role are here than must sign.
            Misuse: a file would be larger than devices read.
        """
        files = dict(self._targets)
        if self._new_root is not None:
            files[metadata_name(Root.type, self._root.version)] = self._new_root
        self._follow_replaced_keys()
        stale = new_snapshot or not self._holds(self._chain.snapshot, Snapshot, self._root, Snapshot.type)
        snapshot_meta = (
            self._sign_roles(files) if self._roles or stale else self._chain.timestamp.snapshot_meta
        )
        version = max(self._chain.timestamp.version, timestamp_above) + 1
        signers = self._signers(Timestamp.type)
        files[TIMESTAMP_NAME] = sign_timestamp(version, snapshot_meta, self._clock, signers)
        for name, data in files.items():
            if len(data) > limits.METADATA_BYTES_MAX and name.startswith("metadata/"):
                raise Misuse(f"{name} would have {len(data)} bytes; devices read {limits.METADATA_BYTES_MAX}")
        verify_chain(first_root, lambda name: files.get(name) or self._chain.files.get(name))
        return files

    def _signers(self, role: str) -> list[Signer]:
        targets = self._roles.get(Targets.type, self._chain.targets)
        top_level = role in {Root.type, Targets.type, Snapshot.type, Timestamp.type}
        delegator: Root | Targets = self._root if top_level else targets
        named = delegator.get_delegated_role(role)
        keys = [delegator.get_key(keyid) for keyid in named.keyids]
        return self._keyring.signers(role, named.threshold, keys)

    def _holds(self, signed: SignedT, kind: type[SignedT], delegator: Root | Targets, role: str) -> bool:
        """Whether the role's present metadata is signed as its delegator now wants it."""
        name = metadata_name(role, signed.version)
        try:
            verified(self._chain.files[name], kind, name, delegator, role)
        except MetadataInvalid:
            return False
        return True

    def _follow_replaced_keys(self) -> None:
        if not self._holds(self._chain.targets, Targets, self._root, Targets.type):
            self.role(Targets.type)
        targets = self._roles.get(Targets.type, self._chain.targets)
        for role in delegated_roles(targets):
            old = self._chain.delegated.get(role)
            if old is not None and not self._holds(old, Targets, targets, role):
                self.role(role)

    def _sign_roles(self, files: dict[str, bytes]) -> MetaFile:
        name = metadata_name(Snapshot.type, self._chain.snapshot.version)
        snapshot = parse(self._chain.files[name], Snapshot, name).signed
        for role, payload in self._roles.items():
            payload.version += 1
            payload.expires = expiry(self._clock, ROLE_LIFETIME)
            data = files[metadata_name(role, payload.version)] = sign(payload, self._signers(role))
            snapshot.meta[f"{role}.json"] = meta_file(payload.version, data)
        snapshot.version += 1
        snapshot.expires = expiry(self._clock, ROLE_LIFETIME)
        data = files[metadata_name(Snapshot.type, snapshot.version)] = sign(
            snapshot, self._signers(Snapshot.type)
        )
        return meta_file(snapshot.version, data)
