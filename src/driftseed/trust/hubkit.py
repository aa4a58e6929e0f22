"""The hub kit: what a hub needs of a fleet directory, and nothing more.

Two private keys: ``enrolment``, to make devices members, and ``timestamp``, to renew it. Neither can make a
device install anything. Beside them the public, signed files, so that a hub can serve newcomers before
anything was published to it. The file is a secret: 0600, sent to the hub over a trusted way.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from driftseed.core.errors import MetadataInvalid, Misuse, WrongFleet
from driftseed.core.ids import FleetId
from driftseed.core.model import FORMAT, Hex64
from driftseed.core.tickets import fleet_of
from driftseed.trust.chain import verify_chain
from driftseed.trust.repository import FleetRepository
from driftseed.trust.tufapi import Timestamp


class HubKit(Struct, frozen=True, kw_only=True):
    """What is in the file; printing it shows no key."""

    fleet: Hex64
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    first_root: bytes
    enrolment: Hex64
    """Private key, 32 bytes."""
    timestamp: Hex64
    """Private key, 32 bytes."""
    files: dict[str, bytes]
    """Signed metadata and small targets by repository name, as they were when the kit was made."""
    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT

    def __repr__(self) -> str:
        return f"HubKit(fleet={self.fleet!r}, name={self.name!r})"

    @property
    def fleet_id(self) -> FleetId:
        """The fleet's id."""
        return FleetId(self.fleet)

    def enrolment_key(self) -> Ed25519PrivateKey:
        """Signs certificates."""
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.enrolment))

    def timestamp_key(self) -> Ed25519PrivateKey:
        """Renews the timestamp."""
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.timestamp))


def export_hub_kit(repository: FleetRepository) -> bytes:
    """Make a kit. Write it with ``store.files.write_secret``.

    Raises:
        NotFound: the directory lacks one of the two keys.
        WrongPassphrase: a key does not open.
    """
    kit = HubKit(
        fleet=repository.fleet_id,
        name=repository.name,
        first_root=repository.first_root,
        enrolment=repository.enrolment_key().private_bytes_raw().hex(),
        timestamp=repository.role_key(Timestamp.type).private_bytes_raw().hex(),
        files=repository.files(),
    )
    return msgspec.json.encode(kit) + b"\n"


def parse_hub_kit(data: bytes) -> HubKit:
    """Read a kit. Read its file with ``store.files.read_secret``.

    Raises:
        Misuse: it is damaged.
        WrongFleet: its root is not that of the fleet that it names.
    """
    try:
        kit = msgspec.json.decode(data, type=HubKit)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Misuse(f"not a hub kit, or a damaged one: {error}", hint="copy it again, whole") from None
    if fleet_of(kit.first_root) != kit.fleet:
        raise WrongFleet(f"the kit's root is not that of fleet {kit.fleet[:16]}", hint="make a new kit")
    try:
        verify_chain(kit.first_root, kit.files.get)
    except MetadataInvalid as error:
        raise Misuse(f"the kit's metadata does not verify: {error.message}", hint="make a new kit") from None
    return kit
