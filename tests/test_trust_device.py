"""What a device trusts: the way of honest metadata, its persistence, notices, torrents, artifacts."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.errors import (
    ClockWrong,
    ContentMismatch,
    FileMissing,
    MetadataExpired,
    MetadataInvalid,
    RolesDisagree,
    StoreDamaged,
    TransportError,
    WrongFleet,
)
from driftseed.core.ids import Digest
from driftseed.core.model import NodeAddress
from driftseed.core.verified import VerifiedFleet
from driftseed.trust.chain import TIMESTAMP_NAME
from driftseed.trust.device import FleetTrust
from driftseed.trust.keys import public_hex
from driftseed.trust.repository import FleetRepository
from driftseed.trust.source import FilesSource
from support_trust import DAY, NOW, FakeClock, Neighbour, Thief, add_release, make_fleet

ID_1 = "11" * 16
ID_2 = "22" * 16


class World:
    """A fleet with one deployed release, and a device that has not met it yet."""

    def __init__(self, scratch: Path) -> None:
        self.clock = FakeClock()
        self.scratch = scratch
        self.repository = FleetRepository.open(scratch / "fleet", lambda _: b"", self.clock)
        self.manifest = self.repository.release("app", "1.0").manifest
        self.directory = scratch / "device"

    def device(self) -> FleetTrust:
        return FleetTrust(self.directory, self.repository.first_root, self.clock)

    def neighbour(self) -> Neighbour:
        return Neighbour(self.repository.files())

    def deploy_next(self) -> None:
        add_release(self.repository, self.scratch, version="2.0")
        self.repository.add_deployment(deployment_id=ID_2, release="app", version="2.0")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: fsync is slow, copies are not."""
    scratch = tmp_path_factory.mktemp("template")
    repository = make_fleet(scratch / "fleet", FakeClock())
    add_release(repository, scratch)
    repository.add_deployment(deployment_id=ID_1, release="app", version="1.0")
    return scratch


@pytest.fixture
def world(tmp_path: Path, template: Path) -> World:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return World(tmp_path)


def versions(fleet: VerifiedFleet | None) -> list[str]:
    assert fleet is not None
    return [one.deployment.version for one in fleet.deployments]


def test_what_both_roles_signed_is_trusted(world: World) -> None:
    hub = NodeAddress(device="ab" * 32, addrs=["192.0.2.1:4433"])
    world.repository.set_hubs([hub])
    fleet = world.device().refresh(world.neighbour())
    assert fleet.fleet == world.repository.fleet_id == hashlib.sha256(world.repository.first_root).hexdigest()
    assert (fleet.root_version, fleet.timestamp_version, fleet.snapshot_version) == (1, 4, 4)
    assert fleet.expires == NOW + 30 * DAY
    assert fleet.enrolment_keys == {public_hex(world.repository.enrolment_key())}
    assert fleet.hubs == (hub,)
    assert fleet.disagreements == ()
    (only,) = fleet.deployments
    assert only.deployment == world.repository.deployments()[0]
    assert only.release == world.repository.release("app", "1.0")


def test_a_device_serves_all_that_another_needs_and_nothing_else(world: World, tmp_path: Path) -> None:
    first = world.device()
    fleet = first.refresh(world.neighbour())
    for name, data in world.repository.files().items():
        assert first.serve(name) == data
    assert first.serve("index.json") is None
    assert first.serve("metadata/../index.json") is None
    second = FleetTrust(tmp_path / "second", world.repository.first_root, world.clock)
    assert second.refresh(FilesSource(first.serve)) == fleet


def test_an_unchanged_fleet_costs_two_small_requests(world: World) -> None:
    device = world.device()
    fleet = device.refresh(world.neighbour())
    neighbour = world.neighbour()
    assert device.refresh(neighbour) == fleet
    assert neighbour.asked == ["metadata/2.root.json", TIMESTAMP_NAME]


def test_trust_survives_a_restart_without_a_network_and_long_after_expiry(world: World) -> None:
    assert world.device().load() is None
    fleet = world.device().refresh(world.neighbour())
    world.clock.advance(10 * 365 * DAY)
    device = world.device()
    assert device.load() == fleet
    assert device.serve(TIMESTAMP_NAME) == world.repository.files()[TIMESTAMP_NAME]
    assert device.torrent(fleet.deployments[0].release, world.manifest.artifacts[0]).data


def test_newer_metadata_replaces_older_and_old_files_go(world: World) -> None:
    device = world.device()
    device.refresh(world.neighbour())
    world.deploy_next()
    fleet = device.refresh(world.neighbour())
    assert versions(fleet) == ["2.0"]
    held = {hashlib.sha256(data).hexdigest() for data in world.repository.files().values()}
    on_disk = {path.name for path in (world.directory / "files").iterdir()}
    assert on_disk <= held
    assert device.serve("metadata/3.snapshot.json") is None
    assert world.device().load() == fleet


def test_the_directory_of_another_fleet_is_refused(world: World, tmp_path: Path) -> None:
    world.device().refresh(world.neighbour())
    other = make_fleet(tmp_path / "other", world.clock)
    with pytest.raises(WrongFleet, match=f"belongs to fleet {world.repository.fleet_id[:16]}"):
        FleetTrust(world.directory, other.first_root, world.clock)
    assert world.device().load() is not None


@pytest.mark.parametrize("root", [b"", b"{}", b"[" * 100_000])
def test_a_first_root_that_is_none_is_refused(tmp_path: Path, root: bytes) -> None:
    with pytest.raises(MetadataInvalid):
        FleetTrust(tmp_path / "device", root, FakeClock())
    assert not (tmp_path / "device").exists()


def test_only_the_owner_can_look_into_the_directory(world: World) -> None:
    world.device().refresh(world.neighbour())
    assert world.directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("seconds", [1e15, -1e15, float("inf"), float("nan")])
def test_a_clock_beyond_the_calendar_is_said_to_be_wrong(world: World, seconds: float) -> None:
    device = world.device()
    fleet = device.refresh(world.neighbour())
    world.clock.now = seconds
    with pytest.raises(ClockWrong):
        device.refresh(world.neighbour())
    with pytest.raises(ClockWrong):
        device.check_notice(world.neighbour().files[TIMESTAMP_NAME])
    assert device.load() == fleet


# --- neighbours that fail -----------------------------------------------------------------------------


def fetches(world: World, tmp_path: Path) -> int:
    """How many fetches the second refresh of a fleet takes."""
    trial = FleetTrust(tmp_path / "trial", world.repository.first_root, world.clock)
    neighbour = world.neighbour()
    trial.refresh(neighbour)
    return len(neighbour.asked)


@pytest.mark.parametrize(
    "failure", [TransportError("gone"), ConnectionResetError("gone"), TimeoutError("slow")]
)
def test_a_neighbour_lost_at_any_file_leaves_the_old_state_and_the_next_one_finishes(
    world: World, tmp_path: Path, failure: Exception
) -> None:
    old = world.device().refresh(world.neighbour())
    old_timestamp = world.repository.files()[TIMESTAMP_NAME]
    world.deploy_next()
    for fail_at in range(fetches(world, tmp_path)):
        neighbour = replace(world.neighbour(), fail_at=fail_at, failure=failure)
        try:
            fleet = world.device().refresh(neighbour)
        except TransportError:
            assert world.device().load() == old
            assert world.device().serve(TIMESTAMP_NAME) == old_timestamp
        else:
            # What earlier, failed refreshes had fetched was kept: fewer files are asked for each time.
            assert versions(fleet) == ["2.0"]
            assert len(neighbour.asked) <= fail_at
            break
    else:
        pytest.fail("no refresh ever finished")
    assert world.device().load() == fleet


def test_a_file_that_newer_metadata_names_and_the_neighbour_lacks_is_missing(world: World) -> None:
    names = [name for name in world.neighbour().files if name != "metadata/1.root.json"]
    for name in names:
        neighbour = world.neighbour()
        del neighbour.files[name]
        with pytest.raises(FileMissing, match=name.rpartition("/")[2]):
            world.device().refresh(neighbour)
        assert world.device().load() is None
    assert versions(world.device().refresh(world.neighbour())) == ["1.0"]


# --- notices ------------------------------------------------------------------------------------------


def test_a_notice_is_checked_before_anything_is_fetched(world: World) -> None:
    data = world.repository.files()[TIMESTAMP_NAME]
    notice = world.device().check_notice(data)
    assert (notice.version, notice.snapshot_version, notice.data) == (3, 3, data)


def test_forged_foreign_and_mistyped_notices_are_refused(world: World, tmp_path: Path) -> None:
    device = world.device()
    other = make_fleet(tmp_path / "other", world.clock)
    files = world.repository.files()
    forged = Thief(world.repository, sign_as={"timestamp": "releases"})
    kept = Thief(world.repository, sign_as={"timestamp": "releases"}, keep_keyid=True)
    snapshot = forged.chain.timestamp.snapshot_meta
    for data in (
        other.files()[TIMESTAMP_NAME],
        files["metadata/3.snapshot.json"],
        forged.stamp(snapshot)[TIMESTAMP_NAME],
        kept.stamp(snapshot)[TIMESTAMP_NAME],
        files[TIMESTAMP_NAME].replace(b'"version":3', b'"version":9'),
    ):
        with pytest.raises(MetadataInvalid):
            device.check_notice(data)


def test_an_expired_notice_names_both_times(world: World) -> None:
    data = world.repository.files()[TIMESTAMP_NAME]
    world.clock.advance(30 * DAY)
    with pytest.raises(MetadataExpired) as caught:
        world.device().check_notice(data)
    assert caught.value.message == (
        "the notice (timestamp 3) expired at 2027-02-14T08:00:00Z; this device's clock says 2027-02-14T08:00:00Z"
    )
    assert "clock" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[" * (limits.TIMESTAMP_BYTES_MAX - 1),
        b'{"a":' * 3000,
        b'{"signatures":[],"signed":' + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"}",
        b'{"signatures":[],"signed":{"_type":"timestamp","version":1e999}}',
        b"\xff" * 100,
    ],
    ids=["empty", "null", "list-bomb", "open-bomb", "closed-bomb", "infinite", "not-text"],
)
def test_bombs_and_scraps_are_invalid_notices(world: World, data: bytes) -> None:
    with pytest.raises(MetadataInvalid):
        world.device().check_notice(data)


def test_a_signed_members_nesting_bomb_is_an_invalid_notice(world: World) -> None:
    good = world.repository.files()[TIMESTAMP_NAME]
    bomb = b'"x":' + b"[" * 900 + b"]" * 900 + b","
    with pytest.raises(MetadataInvalid):
        world.device().check_notice(good.replace(b'"_type"', bomb + b'"_type"'))


def test_an_oversized_notice_is_not_decoded(world: World) -> None:
    good = world.repository.files()[TIMESTAMP_NAME]
    with pytest.raises(MetadataInvalid, match=f"{limits.TIMESTAMP_BYTES_MAX} are allowed"):
        world.device().check_notice(good + b" " * limits.TIMESTAMP_BYTES_MAX)


@settings(max_examples=60)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["signed", "signatures", "_type", "version", "keyid", "sig"]), inner
            )
        ),
        max_leaves=12,
    ).map(msgspec.json.encode)
)
def test_garbage_is_an_invalid_notice(notice_checker: FleetTrust, data: bytes) -> None:
    with pytest.raises(MetadataInvalid):
        notice_checker.check_notice(data)


@pytest.fixture(scope="module")
def notice_checker(template: Path) -> FleetTrust:
    return World(template).device()


# --- torrents and artifacts -----------------------------------------------------------------------------


def test_a_torrent_is_bound_to_its_release(world: World) -> None:
    device = world.device()
    release = device.refresh(world.neighbour()).deployments[0].release
    artifact = release.manifest.artifacts[0]
    torrent = device.torrent(release, artifact)
    assert hashlib.sha256(torrent.data).hexdigest() == artifact.torrent_sha256
    assert torrent.artifact == artifact
    foreign = msgspec.structs.replace(artifact, torrent_sha256=Digest("00" * 32))
    with pytest.raises(RolesDisagree):
        device.torrent(release, foreign)


def test_a_torrent_damaged_on_disk_is_not_handed_out_and_is_fetched_again(world: World) -> None:
    device = world.device()
    release = device.refresh(world.neighbour()).deployments[0].release
    artifact = release.manifest.artifacts[0]
    (world.directory / "files" / artifact.torrent_sha256).write_bytes(b"flipped")
    with pytest.raises(StoreDamaged):
        device.torrent(release, artifact)
    device.refresh(world.neighbour())
    assert device.torrent(release, artifact).data.startswith(b"torrent of")


@pytest.mark.parametrize(
    "content", [b"", b"app 1.", b"app 1.1", b"app 1.0\0", b"app 1.0" * 1000], ids=lambda c: str(len(c))
)
def test_content_of_another_length_or_hash_is_not_the_artifact(world: World, content: bytes) -> None:
    path = world.directory.with_name("downloaded")
    artifact = world.manifest.artifacts[0]
    path.write_bytes(b"app 1.0")
    assert world.device().verify_artifact(artifact, path).path == path
    path.write_bytes(content)
    with pytest.raises(ContentMismatch, match=r"app\.bin is not the signed file"):
        world.device().verify_artifact(artifact, path)


def test_content_that_is_not_there_is_this_devices_fault(world: World) -> None:
    with pytest.raises(StoreDamaged):
        world.device().verify_artifact(world.manifest.artifacts[0], world.directory / "nowhere")
