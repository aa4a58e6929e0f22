"""Membership certificates, invitations and reports against forgers, strangers and clocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.errors import (
    MembershipExpired,
    Misuse,
    NotAMember,
    ReportInvalid,
    TicketExpired,
    TicketRefused,
)
from driftseed.core.ids import DeviceId, FleetId
from driftseed.trust.admission import (
    INVITATION_CONTEXT,
    Invitation,
    TicketSecret,
    apply_for,
    create_invitation,
    decode_part,
    invitation_signer,
)
from driftseed.trust.envelope import Envelope, seal
from driftseed.trust.keys import public_hex
from driftseed.trust.membership import MEMBERSHIP_CONTEXT, Certificate, Membership, issue_certificate
from driftseed.trust.report import report_body, sign_report, verify_report
from driftseed.trust.times import describe_time

NOW = 1_800_000_000.0
FLEET = FleetId("f1" * 32)
OTHER_FLEET = FleetId("f2" * 32)


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


ENROLMENT = key("enrolment")
STRANGER = key("stranger")
DEVICE_KEY = key("device")
DEVICE = DeviceId(public_hex(DEVICE_KEY))
OTHER = DeviceId(public_hex(key("other device")))


def certificate(
    *,
    signer: Ed25519PrivateKey = ENROLMENT,
    fleet: FleetId = FLEET,
    device: DeviceId = DEVICE,
    now: float = NOW,
    lifetime: float = 1000.0,
    labels: Mapping[str, str] | None = None,
) -> bytes:
    return issue_certificate(
        signer, fleet=fleet, device=device, role="agent", labels=labels or {}, now=now, lifetime=lifetime
    )


def membership(now: float = NOW) -> Membership:
    return Membership(FLEET, {public_hex(ENROLMENT)}, lambda: now)


def tampered(data: bytes, change: Callable[[Envelope], Envelope]) -> bytes:
    return msgspec.msgpack.encode(change(msgspec.msgpack.decode(data, type=Envelope)))


def test_a_member_is_taken_for_what_the_enrolment_key_says() -> None:
    member = membership().check(certificate(labels={"site": "glasgow"}), DEVICE)
    assert member.device == DEVICE
    assert member.role == "agent"
    assert member.labels == {"site": "glasgow"}
    assert member.expires == NOW + 1000.0


def test_a_certificate_by_a_key_that_does_not_enrol_is_refused() -> None:
    with pytest.raises(NotAMember, match="not signed by an enrolment key"):
        membership().check(certificate(signer=STRANGER), DEVICE)


def test_naming_the_enrolment_key_over_a_strangers_signature_is_refused() -> None:
    forged = tampered(
        certificate(signer=STRANGER),
        lambda envelope: msgspec.structs.replace(envelope, key=ENROLMENT.public_key().public_bytes_raw()),
    )
    with pytest.raises(NotAMember, match="the signature is not by the key"):
        membership().check(forged, DEVICE)


def test_changed_labels_under_the_old_signature_are_refused() -> None:
    def promote(envelope: Envelope) -> Envelope:
        claims = msgspec.msgpack.decode(envelope.payload, type=Certificate)
        return msgspec.structs.replace(
            envelope, payload=msgspec.msgpack.encode(msgspec.structs.replace(claims, role="hub"))
        )

    with pytest.raises(NotAMember, match="the signature is not by the key"):
        membership().check(tampered(certificate(), promote), DEVICE)


@pytest.mark.parametrize("missing", ["signature", "key", "payload"])
def test_absence_of_proof_is_no_proof(missing: str) -> None:
    members = msgspec.msgpack.decode(certificate())
    del members[missing]
    with pytest.raises(NotAMember, match="no proof"):
        membership().check(msgspec.msgpack.encode(members), DEVICE)
    with pytest.raises(NotAMember):
        membership().check(b"", DEVICE)


def test_a_short_signature_is_refused() -> None:
    members = msgspec.msgpack.decode(certificate())
    members["signature"] = b""
    with pytest.raises(NotAMember, match="no proof"):
        membership().check(msgspec.msgpack.encode(members), DEVICE)


def test_a_certificate_of_another_fleet_is_refused() -> None:
    with pytest.raises(NotAMember, match="is of fleet f2f2"):
        membership().check(certificate(fleet=OTHER_FLEET), DEVICE)


def test_another_devices_certificate_is_refused() -> None:
    with pytest.raises(NotAMember, match=f"{DEVICE[:16]} shows the certificate of device {OTHER[:16]}"):
        membership().check(certificate(device=OTHER), DEVICE)


@pytest.mark.parametrize(("age", "member"), [(999.0, True), (1000.0, False), (5000.0, False)])
def test_membership_ends_at_its_expiry(age: float, *, member: bool) -> None:
    if member:
        assert membership(NOW + age).check(certificate(), DEVICE).device == DEVICE
    else:
        with pytest.raises(MembershipExpired, match=f"expired at {describe_time(NOW + 1000)}; here it is"):
            membership(NOW + age).check(certificate(), DEVICE)


def test_a_certificate_from_a_clock_a_little_ahead_is_taken_and_one_far_ahead_is_not() -> None:
    early = limits.CLOCK_SKEW_MAX_S
    assert membership(NOW - early).check(certificate(), DEVICE).device == DEVICE
    with pytest.raises(NotAMember, match="is good from") as caught:
        membership(NOW - early - 1).check(certificate(), DEVICE)
    assert "clock" in caught.value.hint


def test_keys_that_metadata_names_no_more_do_not_enrol() -> None:
    checker = membership()
    checker.replace_keys({public_hex(STRANGER)})
    with pytest.raises(NotAMember):
        checker.check(certificate(), DEVICE)
    assert checker.check(certificate(signer=STRANGER), DEVICE).device == DEVICE


def test_an_oversized_certificate_is_not_decoded() -> None:
    with pytest.raises(NotAMember, match=f"{limits.CERTIFICATE_BYTES_MAX} are allowed"):
        membership().check(certificate() + b"\0" * limits.CERTIFICATE_BYTES_MAX, DEVICE)


def test_labels_are_bounded() -> None:
    many = {f"label-{n}": "x" for n in range(limits.LABELS_MAX + 1)}
    with pytest.raises(Misuse, match="33 labels"):
        certificate(labels=many)
    with pytest.raises(Misuse, match="too long"):
        certificate(labels={"site": "x" * 64})
    full = {f"{n:063}": "y" * 63 for n in range(limits.LABELS_MAX)}
    with pytest.raises(Misuse, match="certificate of"):
        certificate(labels=full)


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_garbage_is_not_a_member(data: bytes) -> None:
    with pytest.raises(NotAMember):
        membership().check(data, DEVICE)


@settings(max_examples=200)
@given(st.data())
def test_no_changed_byte_of_a_certificate_passes(data: st.DataObject) -> None:
    good = certificate()
    position = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda b: b != good[position]))
    with pytest.raises(NotAMember):
        membership().check(good[:position] + bytes([value]) + good[position + 1 :], DEVICE)


# --- invitations ------------------------------------------------------------------------------------


def invitation(
    signer: Ed25519PrivateKey = ENROLMENT, fleet: FleetId = FLEET, expires: float = NOW + 60
) -> bytes:
    return create_invitation(
        signer, fleet=fleet, invitation_id="0d" * 16, uses=3, expires=expires, labels={"site": "glasgow"}
    )


def check(ticket: bytes, now: float = NOW) -> Invitation:
    """What a hub makes of a device that joins by a ticket's secret."""
    return membership(now).applicant(apply_for(ticket, DEVICE), DEVICE).invitation


def test_an_invitation_says_how_often_and_with_which_labels() -> None:
    said = check(invitation())
    assert (said.id, said.uses, said.expires) == ("0d" * 16, 3, NOW + 60)
    assert said.labels == {"site": "glasgow"}
    assert said.role == "agent"


def test_forged_foreign_and_expired_invitations_are_told_apart() -> None:
    with pytest.raises(TicketRefused, match="not signed by a key that enrols"):
        check(invitation(signer=STRANGER))
    with pytest.raises(TicketRefused, match="is of fleet f2f2"):
        check(invitation(fleet=OTHER_FLEET))
    with pytest.raises(TicketExpired, match="here it is"):
        check(invitation(), now=NOW + 60)


def test_a_certificate_is_no_invitation_and_an_invitation_no_certificate() -> None:
    with pytest.raises(TicketRefused):
        check(certificate())
    for shown in (invitation(), decode_part(invitation(), TicketSecret).invitation):
        with pytest.raises(NotAMember):
            membership().check(shown, DEVICE)
    claims = Certificate(fleet=FLEET, device=DEVICE, role="agent", not_before=0, expires=NOW + 1)
    with pytest.raises(NotAMember, match="the signature is not by the key"):
        membership().check(seal(ENROLMENT, INVITATION_CONTEXT, claims), DEVICE)
    assert membership().check(seal(ENROLMENT, MEMBERSHIP_CONTEXT, claims), DEVICE).device == DEVICE


def test_the_signer_of_an_invitation_is_named_only_when_it_did_sign() -> None:
    assert invitation_signer(invitation()) == public_hex(ENROLMENT)
    assert invitation_signer(invitation(signer=STRANGER)) == public_hex(STRANGER)
    secret = decode_part(invitation(signer=STRANGER), TicketSecret)
    renamed = tampered(
        secret.invitation,
        lambda envelope: msgspec.structs.replace(envelope, key=ENROLMENT.public_key().public_bytes_raw()),
    )
    claimed = msgspec.msgpack.encode(msgspec.structs.replace(secret, invitation=renamed))
    for data in (claimed, certificate(), b"", b"[" * 100):
        with pytest.raises(TicketRefused, match="forged or damaged"):
            invitation_signer(data)


@pytest.mark.parametrize("uses", [0, -1, 1_000_001])
def test_uses_are_bounded(uses: int) -> None:
    with pytest.raises(Misuse):
        create_invitation(ENROLMENT, fleet=FLEET, invitation_id="0d" * 16, uses=uses, expires=NOW, labels={})


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_garbage_is_no_invitation(data: bytes) -> None:
    with pytest.raises(TicketRefused):
        check(data)
    with pytest.raises(TicketRefused):
        membership().applicant(data, DEVICE)


# --- reports ----------------------------------------------------------------------------------------


def report(signer: Ed25519PrivateKey = DEVICE_KEY, cert: bytes | None = None, sequence: int = 7) -> bytes:
    return sign_report(
        signer.private_bytes_raw(), certificate=cert or certificate(), sequence=sequence, body=b"all well"
    )


def test_a_report_is_its_devices_own_word() -> None:
    verified = verify_report(report(), membership())
    assert (verified.device, verified.sequence) == (DEVICE, 7)
    assert report_body(verified) == b"all well"
    assert verified.data == report()


def test_a_member_cannot_report_for_another_device() -> None:
    with pytest.raises(NotAMember, match="shows the certificate of device"):
        verify_report(report(signer=key("other device")), membership())


def test_made_up_devices_cannot_report() -> None:
    stranger = DeviceId(public_hex(STRANGER))
    own = certificate(signer=STRANGER, device=stranger)
    with pytest.raises(NotAMember, match="not signed by an enrolment key"):
        verify_report(report(signer=STRANGER, cert=own), membership())


def test_a_changed_report_is_refused() -> None:
    changed = tampered(
        report(), lambda envelope: msgspec.structs.replace(envelope, payload=envelope.payload + b"\xc0")
    )
    with pytest.raises(ReportInvalid, match="the signature is not by the key"):
        verify_report(changed, membership())


def test_reports_are_bounded() -> None:
    with pytest.raises(Misuse, match="a report of"):
        sign_report(
            DEVICE_KEY.private_bytes_raw(),
            certificate=certificate(),
            sequence=1,
            body=b"x" * limits.REPORT_BYTES_MAX,
        )
    with pytest.raises(ReportInvalid, match="are allowed"):
        verify_report(b"x" * (limits.REPORT_BYTES_MAX + 1), membership())


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_garbage_is_no_report(data: bytes) -> None:
    with pytest.raises(ReportInvalid):
        verify_report(data, membership())
