"""What a hub holds of a fleet, and how it keeps the fleet fresh."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftseed.core.errors import MetadataExpired, MetadataInvalid, Misuse, NotFound, WrongFleet
from driftseed.core.ids import DeviceId
from driftseed.core.verified import VerifiedFleet
from driftseed.trust.chain import TIMESTAMP_NAME
from driftseed.trust.device import FleetTrust
from driftseed.trust.hubkit import HubKit, export_hub_kit, parse_hub_kit
from driftseed.trust.keys import load_private, public_hex
from driftseed.trust.membership import Membership
from driftseed.trust.renewal import TimestampRenewer
from driftseed.trust.repository import FleetRepository
from driftseed.trust.source import FilesSource
from support_trust import DAY, FakeClock, Neighbour, Thief, add_release, make_fleet


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("template") / "fleet"
    add_release(make_fleet(directory, FakeClock()), directory.parent)
    return directory


class Hub:
    """A hub that was given a kit, and its fleet."""

    def __init__(self, scratch: Path) -> None:
        self.clock = FakeClock()
        self.scratch = scratch
        self.repository = FleetRepository.open(scratch / "fleet", lambda _: b"", self.clock)
        self.kit: HubKit = parse_hub_kit(export_hub_kit(self.repository))
        self.trust = FleetTrust(scratch / "hub", self.kit.first_root, self.clock)
        self.trust.refresh(FilesSource(self.kit.files.get))
        self.renewer = TimestampRenewer(self.trust, self.kit.timestamp_key(), self.clock)

    def current(self) -> bytes:
        data = self.trust.serve(TIMESTAMP_NAME)
        assert data is not None
        return data

    def take(self, renewed: bytes | None) -> VerifiedFleet:
        assert renewed is not None
        return self.trust.refresh(FilesSource({TIMESTAMP_NAME: renewed}.get, self.trust.serve))


@pytest.fixture
def hub(tmp_path: Path, template: Path) -> Hub:
    shutil.copytree(template, tmp_path / "fleet")
    return Hub(tmp_path)


# --- the kit ---------------------------------------------------------------------------------------------


def test_a_kit_holds_its_own_and_the_timestamp_key_and_no_other(hub: Hub) -> None:
    assert hub.kit.fleet_id == hub.repository.fleet_id
    assert hub.kit.name == "harbour"
    assert hub.kit.enrolment_key == public_hex(hub.repository.enrolment_key())
    assert hub.kit.secret is not None
    device = DeviceId(public_hex(Ed25519PrivateKey.from_private_bytes(hub.kit.secret)))
    keys = hub.repository.enrolment_keys()
    member = Membership(hub.repository.fleet_id, keys, hub.clock).check(hub.kit.certificate, device)
    assert member.role == "hub"
    assert public_hex(hub.kit.timestamp_key()) == public_hex(hub.repository.private_key("timestamp"))
    text = export_hub_kit(hub.repository)
    packed = b"".join(hub.kit.files.values()) + hub.kit.first_root
    for path in (hub.scratch / "fleet" / "keys").iterdir():
        secret = load_private(path).private_bytes_raw()
        in_kit = any(form in text + packed for form in (secret.hex().encode(), base64.b64encode(secret)))
        assert in_kit == (path.stem == "timestamp")


def test_a_kit_for_a_hub_that_has_its_key_brings_none(hub: Hub) -> None:
    assert hub.kit.secret is not None
    device = DeviceId(public_hex(Ed25519PrivateKey.from_private_bytes(hub.kit.secret)))
    kit = parse_hub_kit(export_hub_kit(hub.repository, device))
    assert kit.secret is None
    keys = hub.repository.enrolment_keys()
    assert Membership(hub.repository.fleet_id, keys, hub.clock).check(kit.certificate, device).role == "hub"


def test_a_kit_does_not_show_its_keys_in_logs(hub: Hub) -> None:
    assert str(hub.kit.identity) not in repr(hub.kit)
    assert hub.kit.timestamp not in f"{hub.kit} {[hub.kit]}"


def test_a_hub_serves_newcomers_before_anything_was_published(hub: Hub) -> None:
    newcomer = FleetTrust(hub.scratch / "newcomer", hub.kit.first_root, hub.clock)
    assert newcomer.refresh(FilesSource(hub.trust.serve)).enrolment_keys == {hub.kit.enrolment_key}


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b'{"fleet": "x"}', b"\xff"])
def test_a_damaged_kit_is_named_as_one(data: bytes) -> None:
    with pytest.raises(Misuse, match="hub kit"):
        parse_hub_kit(data)


def test_a_kit_with_another_fleets_root_or_files_is_refused(hub: Hub, tmp_path: Path) -> None:
    other = make_fleet(tmp_path / "other", hub.clock)
    with pytest.raises(WrongFleet):
        parse_hub_kit(msgspec.json.encode(msgspec.structs.replace(hub.kit, first_root=other.first_root)))
    with pytest.raises(Misuse, match="do not verify"):
        parse_hub_kit(msgspec.json.encode(msgspec.structs.replace(hub.kit, files=other.files())))


def test_a_machine_without_the_enrolment_key_makes_no_kit(hub: Hub) -> None:
    (hub.scratch / "fleet" / "keys" / "enrolment.pem").unlink()
    with pytest.raises(NotFound, match=r"enrolment\.pem"):
        export_hub_kit(hub.repository)


# --- renewing --------------------------------------------------------------------------------------------


def test_a_timestamp_is_renewed_when_half_of_its_life_is_over(hub: Hub) -> None:
    assert hub.renewer.renew(hub.current()) is None
    hub.clock.advance(15 * DAY)
    assert hub.renewer.renew(hub.current()) is None
    hub.clock.advance(1)
    fleet = hub.take(hub.renewer.renew(hub.current()))
    assert (fleet.timestamp_version, fleet.snapshot_version) == (3, 2)
    assert hub.trust.check_notice(hub.current()).version == 3
    assert hub.renewer.renew(hub.current()) is None
    assert fleet.expires == hub.clock.now + 30 * DAY


def test_a_renewal_can_be_asked_for(hub: Hub) -> None:
    assert hub.take(hub.renewer.renew(hub.current(), force=True)).timestamp_version == 3


def test_a_hub_that_was_off_for_long_unfreezes_its_fleet(hub: Hub) -> None:
    hub.clock.advance(60 * DAY)
    with pytest.raises(MetadataExpired):
        hub.trust.check_notice(hub.current())
    fleet = hub.take(hub.renewer.renew(hub.current()))
    assert fleet.expires == hub.clock.now + 30 * DAY


def test_devices_take_a_renewed_timestamp_as_any_other(hub: Hub) -> None:
    device = FleetTrust(hub.scratch / "device", hub.kit.first_root, hub.clock)
    device.refresh(Neighbour(hub.repository.files()))
    hub.clock.advance(20 * DAY)
    hub.take(hub.renewer.renew(hub.current()))
    assert device.refresh(FilesSource(hub.trust.serve)).timestamp_version == 3


def test_a_publisher_and_a_hub_that_signed_the_same_version_are_reconciled(hub: Hub) -> None:
    """Devices keep the first of a version that they meet: a version above both carries the newer snapshot."""
    hub.take(hub.renewer.renew(hub.current(), force=True))
    hub.repository.add_deployment(deployment_id="11" * 16, release="app", version="1.0")
    published = hub.repository.files()
    assert hub.trust.check_notice(published[TIMESTAMP_NAME]).version == 3
    stuck = hub.trust.refresh(Neighbour(published))
    assert (stuck.snapshot_version, stuck.deployments) == (2, ())
    reconciled = hub.renewer.reconcile(hub.current(), published[TIMESTAMP_NAME])
    assert reconciled is not None
    fleet = hub.trust.refresh(Neighbour({**published, TIMESTAMP_NAME: reconciled}))
    assert (fleet.timestamp_version, fleet.snapshot_version) == (4, 3)
    assert len(fleet.deployments) == 1
    hub.repository.bump_timestamp(at_least=fleet.timestamp_version)
    assert hub.trust.refresh(Neighbour(hub.repository.files())).timestamp_version == 5


def test_only_equal_versions_with_a_newer_snapshot_are_reconciled(hub: Hub) -> None:
    ours = hub.current()
    renewed = hub.renewer.renew(ours, force=True)
    assert renewed is not None
    assert hub.renewer.reconcile(ours, ours) is None
    assert hub.renewer.reconcile(ours, renewed) is None
    assert hub.renewer.reconcile(renewed, ours) is None


def test_a_forged_timestamp_is_neither_renewed_nor_reconciled(hub: Hub) -> None:
    thief = Thief(hub.repository, sign_as={"timestamp": "releases"})
    forged = thief.stamp(thief.chain.timestamp.snapshot_meta)[TIMESTAMP_NAME]
    attempts: list[Callable[[], bytes | None]] = [
        lambda: hub.renewer.renew(forged, force=True),
        lambda: hub.renewer.reconcile(hub.current(), forged),
        lambda: hub.renewer.reconcile(forged, hub.current()),
        lambda: hub.renewer.renew(b"[" * 1000),
    ]
    for attempt in attempts:
        with pytest.raises(MetadataInvalid):
            attempt()


def test_a_kit_whose_key_the_fleet_has_replaced_signs_nothing(hub: Hub) -> None:
    stale = TimestampRenewer(hub.trust, Ed25519PrivateKey.generate(), hub.clock)
    with pytest.raises(Misuse, match="not the fleet's any more"):
        stale.renew(hub.current(), force=True)
