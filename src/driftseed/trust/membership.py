"""Who belongs to a fleet: certificates that the enrolment key signs, and invitations to get one.

Both are envelopes (``trust/envelope.py``). The enrolment keys are named by the signed metadata
(``fleet/enrolment.json``), so an operator replaces them as everything else is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import MembershipExpired, Misuse, NotAMember, TicketExpired, TicketRefused
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import Hex64, Labels
from driftseed.core.verified import VerifiedMember
from driftseed.trust.envelope import EnvelopeError, decode_envelope, decode_payload, seal

MEMBERSHIP_CONTEXT: Final = b"driftseed membership v1"
INVITATION_CONTEXT: Final = b"driftseed invitation v1"

CERTIFICATE_LIFETIME_S: Final = 365 * 86400.0
"""Seconds that a hub makes a certificate last; a device renews it at a hub long before."""

Role = Literal["agent", "hub", "publisher"]
Instant = Annotated[float, Meta(ge=0.0, le=253402300799.0)]
"""Seconds since 1970, UTC, up to the year 9999."""


class Certificate(Struct, frozen=True, kw_only=True):
    """A device's key and labels, as the enrolment key describes them."""

    fleet: Hex64
    device: Hex64
    role: Role
    labels: Labels = {}
    not_before: Instant
    expires: Instant


class Invitation(Struct, frozen=True, kw_only=True):
    """A ticket's admission secret: whoever holds it may become a member, ``uses`` times in all."""

    fleet: Hex64
    id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    """128 random bits: hubs count uses by it."""
    uses: Annotated[int, Meta(ge=1, le=1_000_000)]
    expires: Instant
    role: Role = "agent"
    labels: Labels = {}
    """Given to every device that joins by it."""


def describe_time(seconds: float) -> str:
    """An instant for people: RFC 3339, UTC, whole seconds; the number itself where a calendar has no such day."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s since 1970"


def issue_certificate(
    enrolment_key: Ed25519PrivateKey,
    *,
    fleet: FleetId,
    device: DeviceId,
    role: Role,
    labels: Mapping[str, str],
    now: float,
    lifetime: float = CERTIFICATE_LIFETIME_S,
) -> bytes:
    """Make a device a member.

    Args:
        enrolment_key: one whose public half the signed metadata names.
        fleet: the fleet it becomes a member of.
        device: its public key.
        role: what it may be taken for.
        labels: what operators say of it, at most LABELS_MAX.
        now: seconds since 1970; the certificate is good from then on.
        lifetime: seconds.

    Raises:
        Misuse: the labels do not fit into a certificate.
    """
    certificate = Certificate(
        fleet=fleet,
        device=device,
        role=role,
        labels=check_labels(labels),
        not_before=now,
        expires=now + lifetime,
    )
    return _bounded(seal(enrolment_key, MEMBERSHIP_CONTEXT, certificate))


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
    """Make a ticket's admission secret.

    Args:
        enrolment_key: one whose public half the signed metadata names.
        fleet: the fleet that it lets into.
        invitation_id: ``uuid4().hex``; hubs count uses by it.
        uses: devices that may join by it, 1 to 1000000.
        expires: seconds since 1970.
        role: what the devices become.
        labels: what they are all given.

    Raises:
        Misuse: ``uses`` or the labels are out of bounds.
    """
    if not 1 <= uses <= 1_000_000:
        raise Misuse(f"a ticket for {uses} devices", hint="1 to 1000000")
    invitation = Invitation(
        fleet=fleet, id=invitation_id, uses=uses, expires=expires, role=role, labels=check_labels(labels)
    )
    return _bounded(seal(enrolment_key, INVITATION_CONTEXT, invitation))


def check_invitation(data: bytes, *, keys: Iterable[str], fleet: FleetId, now: float) -> Invitation:
    """Verify an invitation that a newcomer shows. The caller counts its uses.

    Raises:
        TicketRefused: malformed, forged, or another fleet's.
        TicketExpired: it was good once.
    """
    try:
        envelope = decode_envelope(data, limits.CERTIFICATE_BYTES_MAX)
        if envelope.signer not in frozenset(keys):
            raise TicketRefused(
                "the ticket is not signed by a key that enrols this fleet's devices",
                hint="ask for a new ticket: driftseed fleet invite",
            )
        envelope.verify(INVITATION_CONTEXT)
        invitation = decode_payload(envelope, Invitation)
    except EnvelopeError as error:
        raise TicketRefused(f"the ticket's admission secret is forged or damaged: {error}") from None
    if invitation.fleet != fleet:
        raise TicketRefused(
            f"the ticket is of fleet {invitation.fleet[:16]}, this is {fleet[:16]}",
            hint="join through a hub of the ticket's fleet",
        )
    if invitation.expires <= now:
        raise TicketExpired(
            f"the ticket expired at {describe_time(invitation.expires)}; here it is {describe_time(now)}",
            hint="ask for a new ticket: driftseed fleet invite",
        )
    return invitation


def invitation_signer(data: bytes) -> str:
    """The enrolment key by which an invitation was signed, public, hexadecimal.

    Whoever got the ticket from an operator believes this key until signed metadata names the fleet's.

    Raises:
        TicketRefused: the invitation is malformed, or its signature is not by the key that it names.
    """
    try:
        envelope = decode_envelope(data, limits.CERTIFICATE_BYTES_MAX)
        envelope.verify(INVITATION_CONTEXT)
    except EnvelopeError as error:
        raise TicketRefused(f"the ticket's admission secret is forged or damaged: {error}") from None
    return envelope.signer


class Membership:
    """Checks the certificates of others.

    Args:
        fleet: the only fleet whose members are let in.
        keys: enrolment keys, public, hexadecimal, as the signed metadata names them.
        clock: seconds since 1970.
    """

    def __init__(self, fleet: FleetId, keys: Iterable[str], clock: Callable[[], float]) -> None:
        self.fleet = fleet
        self._keys = frozenset(keys)
        self._clock = clock

    def replace_keys(self, keys: Iterable[str]) -> None:
        """Follow newer signed metadata: only these keys enrol from now on."""
        self._keys = frozenset(keys)

    def check(self, certificate: bytes, device: DeviceId) -> VerifiedMember:
        """Verify a certificate that the other side of a connection shows.

        Args:
            certificate: as it travelled; anything.
            device: the key that the transport has proved the other side to hold.

        Raises:
            MembershipExpired: it was a member once; the message names both clocks' times.
            NotAMember: every other fault: size, shape, key, signature, fleet, another device's, not yet valid.
        """
        try:
            envelope = decode_envelope(certificate, limits.CERTIFICATE_BYTES_MAX)
            if envelope.signer not in self._keys:
                raise NotAMember(f"device {device[:16]}: its certificate is not signed by an enrolment key")
            envelope.verify(MEMBERSHIP_CONTEXT)
            claims = decode_payload(envelope, Certificate)
        except EnvelopeError as error:
            raise NotAMember(f"device {device[:16]}: its certificate is no proof: {error}") from None
        if claims.fleet != self.fleet:
            raise NotAMember(
                f"device {device[:16]} is of fleet {claims.fleet[:16]}, this is {self.fleet[:16]}"
            )
        if claims.device != device:
            raise NotAMember(f"device {device[:16]} shows the certificate of device {claims.device[:16]}")
        now = self._clock()
        if claims.not_before > now + limits.CLOCK_SKEW_MAX_S:
            raise NotAMember(
                f"device {device[:16]}: its certificate is good from {describe_time(claims.not_before)}; "
                f"here it is {describe_time(now)}",
                hint="check this device's clock",
            )
        if claims.expires <= now:
            raise MembershipExpired(
                f"device {device[:16]}: its certificate expired at {describe_time(claims.expires)}; "
                f"here it is {describe_time(now)}",
                hint="join again with a new ticket; if that is wrong, check this device's clock",
            )
        return VerifiedMember(
            device=device, role=claims.role, labels=dict(claims.labels), expires=claims.expires
        )


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


def _bounded(envelope: bytes) -> bytes:
    if len(envelope) > limits.CERTIFICATE_BYTES_MAX:
        raise Misuse(
            f"a certificate of {len(envelope)} bytes with these labels",
            hint=f"use fewer or shorter labels; it may have {limits.CERTIFICATE_BYTES_MAX}",
        )
    return envelope
