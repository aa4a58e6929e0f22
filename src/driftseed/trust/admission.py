"""How a device becomes a member without any machine on the network holding the enrolment key.

A ticket carries a key of its own. Its public half is in an *invitation* that the offline enrolment key has signed,
with the uses, expiry, role and labels of the ticket. The device that holds the ticket signs an *entry* for itself
with the ticket's key, and forgets that key. A hub sees both, counts the use, and countersigns with its own device
key: the *receipt*. The hub's own certificate, signed by the enrolment key, says that it is a hub. Together::

    enrolment key ──signs──> invitation (ticket's key, uses, labels) ──> entry (device) ─┐
                └──signs──> hub's certificate ──────────────────────────> receipt (device, until when)

Every peer demands all four. So a stolen hub key makes no member without a ticket, a ticket makes none without a hub
that counts, and a member's own key makes none at all. A hub extends a membership by a new receipt over the same
invitation and entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import Misuse, NotAMember, TicketExpired, TicketRefused
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import Hex64, Labels, Role
from driftseed.trust.envelope import EnvelopeError, decode_envelope, decode_payload, seal
from driftseed.trust.times import Instant, describe_time

INVITATION_CONTEXT: Final = b"driftseed invitation v2"
ENTRY_CONTEXT: Final = b"driftseed entry v1"
RECEIPT_CONTEXT: Final = b"driftseed receipt v1"

RECEIPT_LIFETIME_S: Final = 3 * 365 * 86400.0
"""Seconds that a hub's receipt lasts; renewed when half of it is over, so that a year offline ends no membership."""

InvitationId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Signed = Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]


class Invitation(Struct, frozen=True, kw_only=True):
    """What a ticket is good for, signed by the enrolment key."""

    fleet: Hex64
    id: InvitationId
    """128 random bits: hubs count uses by it."""
    key: Hex64
    """The ticket's own key, public: its holder signs entries."""
    uses: Annotated[int, Meta(ge=1, le=1_000_000)]
    expires: Instant
    role: Role = "agent"
    labels: Labels = {}
    """Given to every device that joins by it."""


class Entry(Struct, frozen=True, kw_only=True):
    """A device that joins by a ticket, signed by the ticket's key."""

    fleet: Hex64
    invitation: InvitationId
    device: Hex64


class Receipt(Struct, frozen=True, kw_only=True):
    """A hub's word that it has counted a use for a device, signed by the hub's device key."""

    fleet: Hex64
    invitation: InvitationId
    device: Hex64
    at: Instant
    expires: Instant


class TicketSecret(Struct, frozen=True, kw_only=True):
    """What a ticket carries: the invitation, and the private half of its key."""

    invitation: Signed
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]

    def __repr__(self) -> str:
        return "TicketSecret()"


class Application(Struct, frozen=True, kw_only=True):
    """What a device shows a hub to join."""

    invitation: Signed
    entry: Signed


class Chain(Struct, frozen=True, kw_only=True):
    """What a member shows everybody: the application and a hub's answer."""

    invitation: Signed
    entry: Signed
    receipt: Signed
    hub: Signed
    """The hub's certificate (``trust/membership.py``)."""


PartT = TypeVar("PartT", bound=Struct)


def create_invitation(
    enrolment_key: Ed25519PrivateKey,
    *,
    fleet: FleetId,
    invitation_id: str,
    uses: int,
    expires: float,
    role: Role = "agent",
    labels: Mapping[str, str],
) -> bytes:
    """Make a ticket's admission secret, with a new key of its own.

    Args:
        enrolment_key: one whose public half the signed metadata names.
        fleet: the fleet that it lets into.
        invitation_id: ``uuid4().hex``; hubs count uses by it.
        uses: devices that may join by it at each hub, 1 to 1000000.
        expires: seconds since 1970.
        role: what the devices become.
        labels: what they are all given.

    Raises:
        Misuse: ``uses`` or the labels are out of bounds.
    """
    if not 1 <= uses <= 1_000_000:
        raise Misuse(f"a ticket for {uses} devices", hint="1 to 1000000")
    key = Ed25519PrivateKey.generate()
    invitation = seal(
        enrolment_key,
        INVITATION_CONTEXT,
        Invitation(
            fleet=fleet,
            id=invitation_id,
            key=key.public_key().public_bytes_raw().hex(),
            uses=uses,
            expires=expires,
            role=role,
            labels=check_labels(labels),
        ),
    )
    if len(invitation) > limits.INVITATION_BYTES_MAX:
        raise Misuse(
            f"an invitation of {len(invitation)} bytes with these labels",
            hint=f"use fewer or shorter labels; it may have {limits.INVITATION_BYTES_MAX}",
        )
    return msgspec.msgpack.encode(TicketSecret(invitation=invitation, key=key.private_bytes_raw()))


def apply_for(secret: bytes, device: DeviceId) -> bytes:
    """Sign a device's entry with its ticket's key; returns the application that a hub is shown.

    Raises:
        TicketRefused: the ticket's secret is malformed or forged.
    """
    ticket, invitation = _open_secret(secret)
    entry = seal(
        Ed25519PrivateKey.from_private_bytes(ticket.key),
        ENTRY_CONTEXT,
        Entry(fleet=invitation.fleet, invitation=invitation.id, device=device),
    )
    return msgspec.msgpack.encode(Application(invitation=ticket.invitation, entry=entry))


def invitation_signer(secret: bytes) -> str:
    """The enrolment key by which a ticket's invitation was signed, public, hexadecimal.

    Whoever got the ticket from an operator believes this key until signed metadata names the fleet's.

    Raises:
        TicketRefused: the secret is malformed, or not signed by the key that it names.
    """
    ticket, _ = _open_secret(secret)
    return decode_envelope(ticket.invitation, limits.INVITATION_BYTES_MAX).signer


def _open_secret(secret: bytes) -> tuple[TicketSecret, Invitation]:
    try:
        ticket = decode_part(secret, TicketSecret)
        envelope = decode_envelope(ticket.invitation, limits.INVITATION_BYTES_MAX)
        envelope.verify(INVITATION_CONTEXT)
        return ticket, decode_payload(envelope, Invitation)
    except EnvelopeError as error:
        raise TicketRefused(f"the ticket's admission secret is forged or damaged: {error}") from None


def decode_part(data: bytes, kind: type[PartT]) -> PartT:
    """Decode a map of envelopes, verifying nothing. Raises EnvelopeError."""
    if len(data) > limits.CERTIFICATE_BYTES_MAX:
        raise EnvelopeError(f"{len(data)} bytes where {limits.CERTIFICATE_BYTES_MAX} are allowed")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"does not decode: {error}") from None


def open_invitation(data: bytes, keys: frozenset[str], fleet: FleetId) -> Invitation:
    """Verify an invitation, except for its expiry.

    Raises:
        NotAMember: forged, malformed, another fleet's, or not signed by a key that enrols.
    """
    try:
        envelope = decode_envelope(data, limits.INVITATION_BYTES_MAX)
        if envelope.signer not in keys:
            raise NotAMember("the ticket is not signed by a key that enrols this fleet's devices")
        envelope.verify(INVITATION_CONTEXT)
        invitation = decode_payload(envelope, Invitation)
    except EnvelopeError as error:
        raise NotAMember(f"the ticket is forged or damaged: {error}") from None
    if invitation.fleet != fleet:
        raise NotAMember(f"the ticket is of fleet {invitation.fleet[:16]}, this is {fleet[:16]}")
    return invitation


def open_entry(data: bytes, invitation: Invitation, device: DeviceId) -> None:
    """Verify that the ticket's key let this device in.

    Raises:
        NotAMember: forged, malformed, or another device's.
    """
    try:
        envelope = decode_envelope(data, limits.CERTIFICATE_BYTES_MAX)
        if envelope.signer != invitation.key:
            raise NotAMember("the entry is not signed by the ticket's key")
        envelope.verify(ENTRY_CONTEXT)
        entry = decode_payload(envelope, Entry)
    except EnvelopeError as error:
        raise NotAMember(f"the entry is forged or damaged: {error}") from None
    if (entry.fleet, entry.invitation) != (invitation.fleet, invitation.id):
        raise NotAMember("the entry is of another ticket")
    if entry.device != device:
        raise NotAMember(f"device {device[:16]} shows the entry of device {entry.device[:16]}")


def open_receipt(data: bytes, invitation: Invitation, device: DeviceId) -> tuple[DeviceId, Receipt]:
    """Verify a receipt under the key that it names; whether that is a hub's is the caller's question.

    Returns:
        Who signed it, and what it says; its expiry was not looked at.

    Raises:
        NotAMember: forged, malformed, of another device or ticket.
    """
    try:
        envelope = decode_envelope(data, limits.CERTIFICATE_BYTES_MAX)
        envelope.verify(RECEIPT_CONTEXT)
        receipt = decode_payload(envelope, Receipt)
    except EnvelopeError as error:
        raise NotAMember(f"the hub's receipt is forged or damaged: {error}") from None
    if (receipt.fleet, receipt.invitation, receipt.device) != (invitation.fleet, invitation.id, device):
        raise NotAMember(f"device {device[:16]} shows a receipt that is not for it and its ticket")
    return DeviceId(envelope.signer), receipt


def countersign(
    hub_key: Ed25519PrivateKey,
    hub_certificate: bytes,
    invitation: Invitation,
    application: Application,
    *,
    device: DeviceId,
    now: float,
    lifetime: float = RECEIPT_LIFETIME_S,
) -> bytes:
    """A hub's answer to an application that it has verified and counted: the whole chain.

    Args:
        hub_key: the hub's device key.
        hub_certificate: signed by the enrolment key.
        invitation: verified.
        application: as the device showed it.
        device: the key that the transport has proved it to hold.
        now: seconds since 1970.
        lifetime: seconds.
    """
    receipt = Receipt(
        fleet=invitation.fleet, invitation=invitation.id, device=device, at=now, expires=now + lifetime
    )
    return msgspec.msgpack.encode(
        Chain(
            invitation=application.invitation,
            entry=application.entry,
            receipt=seal(hub_key, RECEIPT_CONTEXT, receipt),
            hub=hub_certificate,
        )
    )


def check_unexpired(invitation: Invitation, now: float) -> None:
    """Raise TicketExpired when an invitation is not good any more."""
    if invitation.expires <= now:
        raise TicketExpired(
            f"the ticket expired at {describe_time(invitation.expires)}; here it is {describe_time(now)}",
            hint="ask for a new ticket: driftseed fleet invite",
        )


def receipt_validity(certificate: bytes) -> tuple[float, float] | None:
    """From when until when a member's own chain is good; None for a certificate that no hub renews."""
    try:
        chain = decode_part(certificate, Chain)
        receipt = decode_payload(decode_envelope(chain.receipt, limits.CERTIFICATE_BYTES_MAX), Receipt)
    except EnvelopeError:
        return None
    return receipt.at, receipt.expires


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels within the bounds of a certificate. Raises Misuse."""
    if len(labels) > limits.LABELS_MAX:
        raise Misuse(f"{len(labels)} labels", hint=f"a device has at most {limits.LABELS_MAX}")
    for key, value in labels.items():
        if not key or len(key) > limits.LABEL_CHARS_MAX or len(value) > limits.LABEL_CHARS_MAX:
            raise Misuse(
                f"label {key[:80]!r}={value[:80]!r} is too long or has no name",
                hint=f"at most {limits.LABEL_CHARS_MAX} characters each",
            )
    return dict(labels)
