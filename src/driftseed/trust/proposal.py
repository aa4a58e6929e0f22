"""The next root while people sign it, one after the other, on different machines, without any network.

A proposal is one JSON file that holds the root in force and the next one with the signatures it has so far, both
whole, so that each signer sees by themselves what would change and who is missing::

    {"format": 1, "fleet": "…", "name": "…", "previous": "<N.root.json>", "next": "<N+1.root.json>"}

It is no secret, and needs no protection on its way: a signature counts only under keys that the root in force
names, and who signs is shown, in words, what they sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import Misuse
from driftseed.core.model import FORMAT, Hex64, encode_document
from driftseed.trust.chain import TUF_FAULTS, parse
from driftseed.trust.signing import add_signature
from driftseed.trust.tufapi import Metadata, Root, Signer, Snapshot, Targets, Timestamp

PROPOSAL: Final = "pending/root.json"
"""Where it is in a fleet directory."""
_TOP_LEVEL: Final = (Root.type, Targets.type, Snapshot.type, Timestamp.type)


class ProposalFile(Struct, frozen=True, kw_only=True):
    """The file."""

    fleet: Hex64
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    previous: Annotated[str, Meta(max_length=limits.METADATA_BYTES_MAX)]
    next: Annotated[str, Meta(max_length=limits.METADATA_BYTES_MAX)]
    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT


@dataclass(frozen=True, slots=True)
class Signatures:
    """How far one of the two sets of keys has signed."""

    of: str
    """``the root in force`` or ``the next root``."""
    threshold: int
    signed: tuple[str, ...]
    """Key ids."""
    missing: tuple[str, ...]
    """Key ids that have not signed; any of them will do."""

    @property
    def wanting(self) -> int:
        """Signatures that are still needed."""
        return max(0, self.threshold - len(self.signed))


class Proposal:
    """The next root, and the one before.

    Args:
        fleet: the fleet's id.
        name: its name, for people.
        previous: the root in force, as it is on disk.
        following: the next one; signatures are added to it.
    """

    def __init__(self, fleet: str, name: str, previous: bytes, following: Metadata[Root]) -> None:
        self.fleet = fleet
        self.name = name
        self._previous_bytes = previous
        self.previous = parse(previous, Root, "the root in force").signed
        self._next = following
        if following.signed.version != self.previous.version + 1:
            raise Misuse(
                f"root {following.signed.version} cannot follow root {self.previous.version}",
                hint="the fleet has gone on since: begin again, driftseed root cancel DIR",
            )

    @classmethod
    def decode(cls, data: bytes) -> Proposal:
        """Read a proposal, from anybody. Raises Misuse or MetadataInvalid when it is malformed."""
        try:
            file = msgspec.json.decode(data, type=ProposalFile)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Misuse(
                f"not a root that waits for signatures: {error}",
                hint="it is made by: driftseed root export DIR FILE",
            ) from None
        following = parse(file.next.encode(), Root, "the next root")
        return cls(file.fleet, file.name, file.previous.encode(), following)

    def encode(self) -> bytes:
        """The file."""
        return encode_document(
            ProposalFile(
                fleet=self.fleet,
                name=self.name,
                previous=self._previous_bytes.decode(),
                next=self._next.to_bytes().decode(),
            )
        )

    @property
    def root(self) -> Root:
        """The next root."""
        return self._next.signed

    @property
    def previous_bytes(self) -> bytes:
        """The root in force, as it is on disk."""
        return self._previous_bytes

    @property
    def data(self) -> bytes:
        """The next root's metadata file, with the signatures it has."""
        return self._next.to_bytes()

    @property
    def signers(self) -> tuple[str, ...]:
        """Ids of all keys whose signature may count."""
        return tuple(
            dict.fromkeys((*self.previous.roles[Root.type].keyids, *self.root.roles[Root.type].keyids))
        )

    def status(self) -> tuple[Signatures, Signatures]:
        """Who has signed and who has not: of the root in force, and of the next (TUF 5.3.4)."""
        result = []
        for of, root in (("the root in force", self.previous), ("the next root", self.root)):
            verdict = root.get_verification_result(Root.type, self._next.signed_bytes, self._next.signatures)
            result.append(
                Signatures(
                    of, verdict.threshold, tuple(sorted(verdict.signed)), tuple(sorted(verdict.unsigned))
                )
            )
        return result[0], result[1]

    @property
    def complete(self) -> bool:
        """Both thresholds are reached."""
        return not any(one.wanting for one in self.status())

    def sign(self, signer: Signer) -> bool:
        """Add a signature; returns whether it is a new one. Raises Misuse for a key that no root key is."""
        keyid = signer.public_key.keyid
        if keyid not in self.signers:
            raise Misuse(
                f"key {keyid[:16]} is none of the root keys, old or new",
                hint="driftseed root status shows whose signatures count",
            )
        new = keyid not in {each for one in self.status() for each in one.signed}
        add_signature(self._next, signer)
        return new

    def merge(self, other: Proposal) -> int:
        """Take over the signatures of another copy; returns how many are new here.

        Raises:
            Misuse: it is not the same root that was signed there.
        """
        if other._next.signed_bytes != self._next.signed_bytes:
            raise Misuse(
                "what was signed there is another root than the one that waits here",
                hint="export it again, and have that signed",
            )
        before = {each for one in self.status() for each in one.signed}
        for keyid, signature in other._next.signatures.items():
            if keyid in self.signers and keyid not in before:
                self._next.signatures[keyid] = signature
        return len({each for one in self.status() for each in one.signed} - before)

    def changes(self) -> list[str]:
        """What the next root changes, in words, for those who sign it."""
        words: list[str] = []
        for role in _TOP_LEVEL:
            words.extend(_role_changes(role, self.previous, self.root))
        if self.previous.consistent_snapshot != self.root.consistent_snapshot:
            words.append("switches consistent snapshots, on which devices rely")
        words.append(
            f"is good until {self.root.expires:%Y-%m-%d} instead of {self.previous.expires:%Y-%m-%d}"
        )
        return words


def describe_key(root: Root | Targets, keyid: str) -> str:
    """A key for people: type and the beginning of its id."""
    try:
        return f"{root.get_key(keyid).keytype} {keyid[:16]}"
    except TUF_FAULTS:
        return keyid[:16]


def _role_changes(role: str, before: Root, after: Root) -> Iterator[str]:
    old, new = before.roles[role], after.roles[role]
    for keyid in new.keyids:
        if keyid not in old.keyids:
            yield f"{role}: key {describe_key(after, keyid)} is added"
    for keyid in old.keyids:
        if keyid not in new.keyids:
            yield f"{role}: key {describe_key(before, keyid)} is removed"
    if old.threshold != new.threshold:
        yield f"{role}: {new.threshold} of {len(new.keyids)} keys must sign instead of {old.threshold}"
