"""Who belongs to a fleet: what a member shows, and how everybody checks it, offline, before anything else.

A member shows one of two proofs. Hubs and publishers have a *certificate* that the offline enrolment key signed for
their device key. Devices that joined by a ticket have a *chain* that ends at the same key (``trust/admission.py``).
The signed metadata names the enrolment keys (``fleet/enrolment.json``) and has the last word on single devices
(``fleet/devices.json``): who is expelled, who is a member whatever it shows, and whose labels are others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from driftseed.core import limits
from driftseed.core.errors import MemberRevoked, MembershipExpired, Misuse, NotAMember, TicketRefused
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import Devices, Hex64, Labels, Role
from driftseed.core.verified import VerifiedFleet, VerifiedMember
from driftseed.trust.admission import (
    Application,
    Chain,
    Invitation,
    Receipt,
    check_labels,
    check_unexpired,
    countersign,
    create_invitation,
    decode_part,
    invitation_signer,
    open_entry,
    open_invitation,
    open_receipt,
)
from driftseed.trust.envelope import EnvelopeError, decode_envelope, decode_payload, seal
from driftseed.trust.times import Instant, describe_time

__all__ = [
    "Certificate",
    "Invitation",
    "Membership",
    "Role",
    "countersign",
    "create_invitation",
    "describe_time",
    "invitation_signer",
    "issue_certificate",
]

MEMBERSHIP_CONTEXT: Final = b"driftseed membership v1"

CERTIFICATE_LIFETIME_S: Final = 5 * 365 * 86400.0
"""Seconds that a hub's certificate lasts; its kit is made anew before: ``fleet hub-kit --for DEVICE``."""


class Certificate(Struct, frozen=True, kw_only=True):
    """A device's key and labels, as the enrolment key describes them."""

    fleet: Hex64
    device: Hex64
    role: Role
    labels: Labels = {}
    not_before: Instant
    expires: Instant


@dataclass(frozen=True, slots=True)
class Applicant:
    """A device at a hub's door whose papers are in order; what is left is to count it."""

    device: DeviceId
    invitation: Invitation
    application: Application
    renewal: bool
    """A hub has counted it before."""


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
    """Make a device a member, by the enrolment key itself.

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
    envelope = seal(enrolment_key, MEMBERSHIP_CONTEXT, certificate)
    if len(envelope) > limits.INVITATION_BYTES_MAX:
        raise Misuse(
            f"a certificate of {len(envelope)} bytes with these labels",
            hint=f"use fewer or shorter labels; it may have {limits.INVITATION_BYTES_MAX}",
        )
    return envelope


class Membership:
    """Checks what others show.

    Args:
        fleet: the only fleet whose members are let in.
        keys: enrolment keys, public, hexadecimal, as the signed metadata names them.
        clock: seconds since 1970.
    """

    def __init__(self, fleet: FleetId, keys: Iterable[str], clock: Callable[[], float]) -> None:
        self.fleet = fleet
        self._keys = frozenset(keys)
        self._clock = clock
        self._devices = Devices()

    def replace_keys(self, keys: Iterable[str]) -> None:
        """Only these keys enrol from now on."""
        self._keys = frozenset(keys)

    def follow(self, fleet: VerifiedFleet) -> None:
        """Go by newer signed metadata from now on."""
        self._keys = fleet.enrolment_keys
        self._devices = fleet.devices

    def check(self, certificate: bytes, device: DeviceId) -> VerifiedMember:
        """Verify what the other side of a connection shows.

        Args:
            certificate: a certificate or chain, as it travelled; anything.
            device: the key that the transport has proved the other side to hold.

        Raises:
            MemberRevoked: signed metadata expels it, or the hub or ticket that let it in.
            MembershipExpired: it was a member once; the message names both clocks' times.
            NotAMember: every other fault: size, shape, key, signature, fleet, another device's, not yet valid.
        """
        self._refuse_revoked(device)
        approval = self._devices.approved.get(device)
        if approval is not None and approval.expires > self._clock():
            return VerifiedMember(
                device=device,
                role=approval.role,
                labels=self.labels(device, approval.labels),
                expires=approval.expires,
            )
        chain = _as_chain(certificate)
        if chain is None:
            claims = self._certificate(certificate, device)
            self._refuse_expired(device, claims.expires)
            role, labels, expires = claims.role, claims.labels, claims.expires
        else:
            invitation, receipt = self._chain(chain, device)
            self._refuse_expired(device, receipt.expires)
            role, labels, expires = invitation.role, invitation.labels, receipt.expires
        return VerifiedMember(device=device, role=role, labels=self.labels(device, labels), expires=expires)

    def applicant(self, shown: bytes, device: DeviceId) -> Applicant:
        """Verify what a device shows a hub in order to join, or to have its membership extended.

        Args:
            shown: an application, or the device's chain, which may have expired.
            device: the key that the transport has proved it to hold.

        Raises:
            TicketRefused: forged, malformed, another fleet's or another device's.
            TicketExpired: the ticket was good once.
            MemberRevoked: the device, its ticket, or the hub that let it in is expelled.
        """
        self._refuse_revoked(device)
        chain = _as_chain(shown)
        try:
            if chain is not None:
                invitation, _ = self._chain(chain, device)
                application = Application(invitation=chain.invitation, entry=chain.entry)
                return Applicant(device, invitation, application, renewal=True)
            application = decode_part(shown, Application)
            invitation = self._invitation(application.invitation)
            open_entry(application.entry, invitation, device)
        except MemberRevoked:
            raise
        except (NotAMember, EnvelopeError) as error:
            raise TicketRefused(
                f"the ticket is refused: {error}", hint="ask for a new ticket: driftseed fleet invite"
            ) from None
        check_unexpired(invitation, self._clock())
        return Applicant(device, invitation, application, renewal=False)

    def is_revoked(self, device: DeviceId) -> bool:
        """Whether signed metadata expels a device."""
        return device in self._devices.revoked

    def labels(self, device: DeviceId, certified: Mapping[str, str]) -> dict[str, str]:
        """A device's labels: those that signed metadata gives it now, else those it joined with."""
        return dict(self._devices.labels.get(device, certified))

    # --- how ------------------------------------------------------------------------------------

    def _refuse_revoked(self, device: DeviceId) -> None:
        revocation = self._devices.revoked.get(device)
        if revocation is not None:
            why = f": {revocation.reason}" if revocation.reason else ""
            raise MemberRevoked(
                f"device {device[:16]} was expelled at {describe_time(revocation.at)}{why}",
                hint="if that is wrong: driftseed device approve DIR DEVICE",
            )

    def _refuse_expired(self, device: DeviceId, expires: float) -> None:
        now = self._clock()
        if expires <= now:
            raise MembershipExpired(
                f"device {device[:16]}: its certificate expired at {describe_time(expires)}; "
                f"here it is {describe_time(now)}",
                hint="join again with a new ticket; if that is wrong, check this device's clock",
            )

    def _refuse_early(self, device: DeviceId, since: float) -> None:
        now = self._clock()
        if since > now + limits.CLOCK_SKEW_MAX_S:
            raise NotAMember(
                f"device {device[:16]}: its certificate is good from {describe_time(since)}; "
                f"here it is {describe_time(now)}",
                hint="check this device's clock",
            )

    def _certificate(self, data: bytes, device: DeviceId) -> Certificate:
        """A certificate of the enrolment key, except for its expiry."""
        try:
            envelope = decode_envelope(data, limits.CERTIFICATE_BYTES_MAX)
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
        self._refuse_early(device, claims.not_before)
        return claims

    def _invitation(self, data: bytes) -> Invitation:
        invitation = open_invitation(data, self._keys, self.fleet)
        revocation = self._devices.tickets.get(invitation.id)
        if revocation is not None:
            raise MemberRevoked(
                f"the ticket {invitation.id[:16]} was withdrawn at {describe_time(revocation.at)}",
                hint="approve the devices that joined by it rightly: driftseed device approve DIR DEVICE",
            )
        return invitation

    def _chain(self, chain: Chain, device: DeviceId) -> tuple[Invitation, Receipt]:
        """A chain, except for the expiry of its receipt."""
        invitation = self._invitation(chain.invitation)
        open_entry(chain.entry, invitation, device)
        hub, receipt = open_receipt(chain.receipt, invitation, device)
        claims = self._certificate(chain.hub, hub)
        if claims.role != "hub":
            raise NotAMember(f"device {device[:16]} was let in by {hub[:16]}, which is no hub")
        if not claims.not_before <= receipt.at <= claims.expires:
            raise NotAMember(f"device {device[:16]} was let in by {hub[:16]} when that was no hub")
        revocation = self._devices.revoked.get(hub)
        if revocation is not None and receipt.at >= revocation.since:
            raise MemberRevoked(
                f"device {device[:16]} was let in at {describe_time(receipt.at)} by the hub {hub[:16]}, whose "
                f"word does not count from {describe_time(revocation.since)} on",
                hint="if it is one of yours: driftseed device approve DIR DEVICE",
            )
        self._refuse_early(device, receipt.at)
        return invitation, receipt


def _as_chain(data: bytes) -> Chain | None:
    try:
        return decode_part(data, Chain)
    except EnvelopeError:
        return None
