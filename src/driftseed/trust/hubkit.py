"""The hub kit: what a hub needs of a fleet directory, and nothing more.

Two private keys: the hub's own device key, with a certificate that says it is a hub, and ``timestamp``, to renew it.
Neither can make a device install anything, nor make a member of anybody who has no ticket. Beside them the public,
signed files, so that a hub can serve newcomers before anything was published to it. The file is a secret: 0600, sent
to the hub over a trusted way. A kit is one hub's: another hub needs another kit.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import MetadataInvalid, Misuse, WrongFleet
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import FORMAT, Hex64
from driftseed.core.tickets import fleet_of
from driftseed.trust.chain import verify_chain
from driftseed.trust.envelope import EnvelopeError, decode_envelope
from driftseed.trust.keys import public_hex
from driftseed.trust.membership import issue_certificate
from driftseed.trust.repository import FleetRepository
from driftseed.trust.tufapi import Timestamp


class HubKit(Struct, frozen=True, kw_only=True):
    """What is in the file; printing it shows no key."""

    fleet: Hex64
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    first_root: bytes
    identity: Hex64 | None
    """The hub's private device key, 32 bytes; None in a kit for a hub that has its own."""
    certificate: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]
    """Of that key, signed by the enrolment key."""
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

    @property
    def enrolment_key(self) -> str:
        """The enrolment key that signed the certificate, public, hexadecimal."""
        return decode_envelope(self.certificate, limits.CERTIFICATE_BYTES_MAX).signer

    @property
    def secret(self) -> bytes | None:
        """The hub's device key, 32 bytes."""
        return None if self.identity is None else bytes.fromhex(self.identity)

    def timestamp_key(self) -> Ed25519PrivateKey:
        """Renews the timestamp."""
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.timestamp))


def export_hub_kit(repository: FleetRepository, device: DeviceId | None = None) -> bytes:
    """Make a kit. Write it with ``store.files.write_secret``.

    Args:
        repository: the fleet.
        device: a hub that keeps its own key; None makes a new one for a new hub.

    Raises:
        NotFound: the enrolment or timestamp key is not in a file here.
        WrongPassphrase: a key does not open.
    """
    identity = None
    if device is None:
        identity = Ed25519PrivateKey.generate()
        device = DeviceId(public_hex(identity))
    certificate = issue_certificate(
        repository.enrolment_key(),
        fleet=repository.fleet_id,
        device=device,
        role="hub",
        labels={},
        now=repository.now(),
    )
    kit = HubKit(
        fleet=repository.fleet_id,
        name=repository.name,
        first_root=repository.first_root,
        identity=None if identity is None else identity.private_bytes_raw().hex(),
        certificate=certificate,
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
        decode_envelope(kit.certificate, limits.CERTIFICATE_BYTES_MAX)
    except (MetadataInvalid, EnvelopeError) as error:
        raise Misuse(f"the kit's contents do not verify: {error}", hint="make a new kit") from None
    return kit
