"""Membership without an enrolment key on the network: what thieves of a hub, a ticket or a device can not do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.errors import (
    MemberRevoked,
    MembershipExpired,
    NotAMember,
    TicketExpired,
    TicketRefused,
)
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import Approval, Devices, Revocation
from driftseed.core.verified import VerifiedFleet
from driftseed.trust.admission import (
    ENTRY_CONTEXT,
    RECEIPT_LIFETIME_S,
    Application,
    Chain,
    Entry,
    TicketSecret,
    apply_for,
    countersign,
    create_invitation,
    decode_part,
    receipt_validity,
)
from driftseed.trust.envelope import seal
from driftseed.trust.keys import public_hex
from driftseed.trust.membership import Membership, Role, issue_certificate

NOW = 1_800_000_000.0
FLEET = FleetId("f1" * 32)
TICKET = "0d" * 16


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def device(name: str) -> DeviceId:
    return DeviceId(public_hex(key(name)))


ENROLMENT = key("enrolment")
DEVICE = device("device")
HUB = device("hub")


@dataclass
class Place:
    """A fleet with one hub and one ticket."""

    now: float = NOW
    devices: Devices = field(default_factory=Devices)
    enrolment: Ed25519PrivateKey = ENROLMENT
    ticket: bytes = field(
        default_factory=lambda: create_invitation(
            ENROLMENT,
            fleet=FLEET,
            invitation_id=TICKET,
            uses=2,
            expires=NOW + 3600,
            labels={"site": "glasgow"},
        )
    )

    def certificate(
        self, name: str = "hub", role: Role = "hub", signer: Ed25519PrivateKey | None = None
    ) -> bytes:
        return issue_certificate(
            signer or self.enrolment, fleet=FLEET, device=device(name), role=role, labels={}, now=NOW - 60
        )

    @property
    def membership(self) -> Membership:
        checker = Membership(FLEET, (), lambda: self.now)
        checker.follow(
            VerifiedFleet(
                fleet=FLEET,
                root_version=1,
                timestamp_version=1,
                snapshot_version=1,
                expires=NOW,
                enrolment_keys=frozenset({public_hex(self.enrolment)}),
                hubs=(),
                deployments=(),
                devices=self.devices,
            )
        )
        return checker

    def join(self, name: str = "device", *, by: str = "hub", certificate: bytes | None = None) -> bytes:
        """A hub's whole answer to a device that holds the ticket."""
        applicant = self.membership.applicant(apply_for(self.ticket, device(name)), device(name))
        return countersign(
            key(by),
            certificate or self.certificate(),
            applicant.invitation,
            applicant.application,
            device=device(name),
            now=self.now,
        )


def test_a_device_that_joined_by_a_ticket_is_a_member_with_its_labels() -> None:
    place = Place()
    member = place.membership.check(place.join(), DEVICE)
    assert (member.device, member.role, member.labels) == (DEVICE, "agent", {"site": "glasgow"})
    assert member.expires == NOW + RECEIPT_LIFETIME_S
    assert receipt_validity(place.join()) == (NOW, NOW + RECEIPT_LIFETIME_S)


def test_a_hub_never_sees_the_tickets_key() -> None:
    place = Place()
    secret = decode_part(place.ticket, TicketSecret).key
    assert secret not in apply_for(place.ticket, DEVICE)
    assert secret not in place.join()
    assert secret.hex() not in repr(decode_part(place.ticket, TicketSecret))


def test_what_a_member_shows_fits_into_a_hello_with_all_the_labels_that_a_ticket_takes() -> None:
    labels = {f"{n:030}": "x" * 63 for n in range(limits.LABELS_MAX)}
    place = Place(
        ticket=create_invitation(
            ENROLMENT, fleet=FLEET, invitation_id=TICKET, uses=1, expires=NOW + 1, labels=labels
        )
    )
    shown = place.join()
    assert len(shown) <= limits.CERTIFICATE_BYTES_MAX < limits.HELLO_BYTES_MAX
    assert place.membership.check(shown, DEVICE).labels == labels


# --- stolen keys ------------------------------------------------------------------------------------


def test_a_stolen_hub_key_enrols_nobody_without_a_ticket() -> None:
    """The thief has the hub's key, its certificate, and every application that the hub ever saw."""
    place = Place()
    seen = decode_part(place.join(), Chain)
    invitation = place.membership.applicant(apply_for(place.ticket, DEVICE), DEVICE).invitation
    entry = Entry(fleet=FLEET, invitation=TICKET, device=device("thief"))
    for signer in (key("hub"), key("thief")):
        forged = Application(invitation=seen.invitation, entry=seal(signer, ENTRY_CONTEXT, entry))
        shown = countersign(
            key("hub"), place.certificate(), invitation, forged, device=device("thief"), now=NOW
        )
        with pytest.raises(NotAMember, match="not signed by the ticket's key"):
            place.membership.check(shown, device("thief"))
    replayed = Application(invitation=seen.invitation, entry=seen.entry)
    shown = countersign(
        key("hub"), place.certificate(), invitation, replayed, device=device("thief"), now=NOW
    )
    with pytest.raises(NotAMember, match="shows the entry of device"):
        place.membership.check(shown, device("thief"))


def test_a_stolen_hub_key_makes_no_other_hub() -> None:
    place = Place()
    made = place.certificate("second", "hub", signer=key("hub"))
    with pytest.raises(NotAMember, match="not signed by an enrolment key"):
        place.membership.check(made, device("second"))
    with pytest.raises(NotAMember, match="not signed by an enrolment key"):
        place.membership.check(place.join(by="second", certificate=made), DEVICE)


def test_a_stolen_ticket_is_worth_nothing_without_a_hub_that_counts() -> None:
    place = Place()
    application = decode_part(apply_for(place.ticket, DEVICE), Application)
    with pytest.raises(NotAMember):
        place.membership.check(apply_for(place.ticket, DEVICE), DEVICE)
    invitation = place.membership.applicant(apply_for(place.ticket, DEVICE), DEVICE).invitation
    for signer, name in ((key("device"), "device"), (key("agent"), "agent")):
        own = countersign(
            signer, place.certificate(name, "agent"), invitation, application, device=DEVICE, now=NOW
        )
        with pytest.raises(NotAMember, match="which is no hub"):
            place.membership.check(own, DEVICE)
    borrowed = countersign(
        key("device"), place.certificate(), invitation, application, device=DEVICE, now=NOW
    )
    with pytest.raises(NotAMember, match="shows the certificate of device"):
        place.membership.check(borrowed, DEVICE)


def test_a_stolen_device_key_enrols_nobody() -> None:
    place = Place()
    chain = place.join()
    with pytest.raises(NotAMember):
        place.membership.check(chain, device("thief"))
    with pytest.raises(TicketRefused):
        place.membership.applicant(chain, device("thief"))


@pytest.mark.parametrize("part", ["invitation", "entry", "receipt", "hub"])
def test_parts_of_two_chains_do_not_mix(part: str) -> None:
    ours, other = Place(), Place(enrolment=key("other enrolment"))
    other.ticket = create_invitation(
        key("other enrolment"), fleet=FLEET, invitation_id="0e" * 16, uses=1, expires=NOW + 9, labels={}
    )
    good, foreign = decode_part(ours.join(), Chain), decode_part(other.join(), Chain)
    mixed = msgspec.structs.replace(good, **{part: getattr(foreign, part)})
    with pytest.raises(NotAMember):
        ours.membership.check(msgspec.msgpack.encode(mixed), DEVICE)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_changed_byte_of_a_chain_passes(data: st.DataObject) -> None:
    place = Place()
    good = place.join()
    position = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda b: b != good[position]))
    with pytest.raises(NotAMember):
        place.membership.check(good[:position] + bytes([value]) + good[position + 1 :], DEVICE)


# --- times ------------------------------------------------------------------------------------------


def test_a_ticket_lets_nobody_in_after_its_expiry_and_members_stay() -> None:
    place = Place()
    chain = place.join()
    place.now = NOW + 3600
    with pytest.raises(TicketExpired):
        place.join("late")
    assert place.membership.check(chain, DEVICE).device == DEVICE


def test_membership_lasts_a_year_offline_and_a_hub_extends_even_an_expired_one() -> None:
    place = Place()
    chain = place.join()
    # Renewed whenever half is over, a device that is then off for a year is still a member.
    place.now = NOW + RECEIPT_LIFETIME_S / 2 + 365 * 86400
    assert place.membership.check(chain, DEVICE).device == DEVICE
    place.now = NOW + RECEIPT_LIFETIME_S
    with pytest.raises(MembershipExpired):
        place.membership.check(chain, DEVICE)
    applicant = place.membership.applicant(chain, DEVICE)
    assert applicant.renewal
    renewed = countersign(
        key("hub"),
        place.certificate(),
        applicant.invitation,
        applicant.application,
        device=DEVICE,
        now=place.now,
    )
    member = place.membership.check(renewed, DEVICE)
    assert (member.labels, member.expires) == ({"site": "glasgow"}, place.now + RECEIPT_LIFETIME_S)


def test_an_application_is_no_renewal() -> None:
    place = Place()
    assert not place.membership.applicant(apply_for(place.ticket, DEVICE), DEVICE).renewal


# --- what is signed of single devices -----------------------------------------------------------------


def expelled(**more: float) -> Revocation:
    return Revocation(at=NOW, reason="stolen from the van", **more)


@pytest.mark.parametrize("shown", ["chain", "certificate", "nothing"])
def test_an_expelled_device_is_refused_whatever_it_shows(shown: str) -> None:
    place = Place(devices=Devices(revoked={DEVICE: expelled()}))
    papers: Callable[[], bytes] = {
        "chain": lambda: Place().join(),
        "certificate": lambda: place.certificate("device", "agent"),
        "nothing": bytes,
    }[shown]
    with pytest.raises(MemberRevoked, match="stolen from the van"):
        place.membership.check(papers(), DEVICE)
    with pytest.raises(MemberRevoked):
        place.membership.applicant(papers(), DEVICE)
    with pytest.raises(MemberRevoked):
        place.join()
    assert place.membership.is_revoked(DEVICE)
    assert place.membership.check(Place().join("other"), device("other")).device == device("other")


def test_what_an_expelled_hub_let_in_counts_up_to_the_time_that_the_operator_says() -> None:
    place = Place()
    early = place.join("early")
    place.now = NOW + 600
    late = place.join("late")
    place.devices = Devices(revoked={HUB: expelled(since=NOW + 300)})
    assert place.membership.check(early, device("early")).device == device("early")
    with pytest.raises(MemberRevoked, match="whose word does not count"):
        place.membership.check(late, device("late"))
    place.devices = Devices(revoked={HUB: expelled(since=0.0)})
    with pytest.raises(MemberRevoked):
        place.membership.check(early, device("early"))
    place.devices = Devices(
        revoked={HUB: expelled(since=0.0)}, approved={device("early"): Approval(expires=NOW + 9000)}
    )
    assert place.membership.check(early, device("early")).role == "agent"


def test_a_withdrawn_ticket_lets_nobody_in_and_expels_who_joined_by_it() -> None:
    place = Place()
    chain = place.join()
    place.devices = Devices(tickets={TICKET: expelled()})
    with pytest.raises(MemberRevoked, match="was withdrawn"):
        place.membership.check(chain, DEVICE)
    with pytest.raises(MemberRevoked):
        place.join("late")


def test_approval_outlives_the_enrolment_key() -> None:
    """Recovery from a stolen enrolment key: the good devices are named, everybody else is out."""
    place = Place()
    good, bad = place.join("good"), place.join("bad")
    place.enrolment = key("new enrolment")
    for shown, name in ((good, "good"), (bad, "bad")):
        with pytest.raises(NotAMember):
            place.membership.check(shown, device(name))
    place.devices = Devices(approved={device("good"): Approval(labels={"site": "oban"}, expires=NOW + 9000)})
    assert place.membership.check(good, device("good")).labels == {"site": "oban"}
    with pytest.raises(NotAMember):
        place.membership.check(bad, device("bad"))
    place.now = NOW + 9001
    with pytest.raises(NotAMember):
        place.membership.check(good, device("good"))


def test_signed_labels_replace_those_that_a_device_joined_with() -> None:
    place = Place(devices=Devices(labels={DEVICE: {"ring": "canary"}}))
    assert place.membership.check(place.join(), DEVICE).labels == {"ring": "canary"}
    assert place.membership.labels(device("other"), {"a": "b"}) == {"a": "b"}
