"""The publisher's fleet directory: who may sign what, what a crash leaves, what is never overwritten."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from driftseed.core import limits
from driftseed.core.errors import (
    AlreadyRunning,
    ArtifactUnreadable,
    ClockWrong,
    Misuse,
    NotFound,
    StoreDamaged,
    UnsafePermissions,
    WouldOverwrite,
    WrongPassphrase,
)
from driftseed.core.model import NodeAddress, ReleaseManifest
from driftseed.store.files import DirectoryLock
from driftseed.trust.ceremony import FleetKeys
from driftseed.trust.chain import TIMESTAMP_NAME, verify_chain
from driftseed.trust.device import FleetTrust
from driftseed.trust.repository import FleetRepository
from support_trust import DAY, FakeClock, Neighbour, add_release, make_artifact, make_fleet, tree

ID_1 = "11" * 16
ID_2 = "22" * 16
ID_3 = "33" * 16
ROLES = ["targets", "snapshot", "timestamp", "releases", "deployments", "fleet", "enrolment"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty fleet, made once: fsync is slow, copies are not."""
    directory = tmp_path_factory.mktemp("template") / "fleet"
    make_fleet(directory, FakeClock(), root_keys=3, threshold=2)
    return directory


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def directory(tmp_path: Path, template: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "fleet"))


def no_passphrase(name: str) -> bytes:
    raise AssertionError(f"asked for the passphrase of {name}")


def opened(directory: Path, clock: FakeClock | None = None) -> FleetRepository:
    return FleetRepository.open(directory, no_passphrase, clock or FakeClock())


def assert_devices_take(repository: FleetRepository, scratch: Path, clock: FakeClock | None = None) -> None:
    shutil.rmtree(scratch / "taker", ignore_errors=True)
    trust = FleetTrust(scratch / "taker", repository.first_root, clock or FakeClock())
    fleet = trust.refresh(Neighbour(repository.files()))
    assert [one.deployment for one in fleet.deployments] == list(repository.deployments())
    assert fleet.hubs == repository.hubs()
    assert fleet.disagreements == ()


# --- making one -----------------------------------------------------------------------------------------


def test_a_new_fleet_has_every_key_in_its_own_private_file(directory: Path) -> None:
    keys = sorted(path.stem for path in (directory / "keys").iterdir())
    assert keys == sorted(["root-1", "root-2", "root-3", *ROLES])
    for path in (directory / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len({path.read_bytes() for path in (directory / "keys").iterdir()}) == len(keys)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    root = verify_chain(opened(directory).first_root, opened(directory).files().get).root
    assert (len(root.roles["root"].keyids), root.roles["root"].threshold) == (3, 2)
    assert root.consistent_snapshot


def test_expiries_are_as_documented(directory: Path, clock: FakeClock) -> None:
    repository = opened(directory)
    chain = verify_chain(repository.first_root, repository.files().get)
    signed = {
        "root": chain.root,
        "targets": chain.targets,
        "snapshot": chain.snapshot,
        "timestamp": chain.timestamp,
        **chain.delegated,
    }
    days = {role: (one.expires.timestamp() - clock.now) / DAY for role, one in signed.items()}
    assert days == {
        "root": 730,
        "targets": 365,
        "snapshot": 365,
        "timestamp": 30,
        "releases": 365,
        "deployments": 365,
        "fleet": 365,
    }


def test_nothing_is_overwritten(directory: Path) -> None:
    before = tree(directory)
    with pytest.raises(WouldOverwrite):
        make_fleet(directory, FakeClock())
    assert tree(directory) == before
    occupied = directory.with_name("file")
    occupied.write_text("a file")
    with pytest.raises(WouldOverwrite):
        make_fleet(occupied, FakeClock())
    assert occupied.read_text() == "a file"


def test_an_empty_directory_may_become_a_fleet(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_fleet(tmp_path / "empty", FakeClock())
    assert opened(tmp_path / "empty").name == "harbour"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(("keys", "threshold"), [(0, 0), (1, 0), (1, 2), (17, 1), (3, -1)])
def test_thresholds_that_cannot_be_met_make_nothing(tmp_path: Path, keys: int, threshold: int) -> None:
    with pytest.raises(Misuse, match=f"{keys} root keys of which {threshold} must sign"):
        make_fleet(tmp_path / "fleet", FakeClock(), root_keys=keys, threshold=threshold)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_making_one_leaves_no_keys_behind(tmp_path: Path) -> None:
    with pytest.raises(ClockWrong):
        make_fleet(tmp_path / "fleet", FakeClock(now=1e15))
    with pytest.raises(WrongPassphrase):
        FleetRepository.create(
            tmp_path / "fleet", name="n", root_keys=1, threshold=1, passphrase=b"", clock=FakeClock()
        )
    assert list(tmp_path.iterdir()) == []


def test_killed_while_making_one_leaves_nothing_under_its_name_and_can_be_repeated(tmp_path: Path) -> None:
    class Bomb:
        """A clock at whose nth reading the power goes."""

        def __init__(self, fuse: int) -> None:
            self.fuse = fuse

        def __call__(self) -> float:
            self.fuse -= 1
            if self.fuse < 0:
                os._exit(9)
            return FakeClock()()

    child = os.fork()
    if child == 0:
        make_fleet(tmp_path / "fleet", Bomb(3))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "fleet").exists()
    unfinished = tmp_path / ".fleet.unfinished"
    (unfinished / "keys").mkdir(exist_ok=True)
    (unfinished / "keys" / "root-9.pem").write_text("of an earlier attempt")
    make_fleet(tmp_path / "fleet", FakeClock())
    assert [path.name for path in tmp_path.iterdir()] == ["fleet"]
    assert "keys/root-9.pem" not in tree(tmp_path / "fleet")


def test_two_at_once_do_not_make_one_fleet_of_two(tmp_path: Path) -> None:
    staging = tmp_path / ".fleet.unfinished"
    staging.mkdir()
    other = DirectoryLock(staging)
    other.acquire()
    with pytest.raises(AlreadyRunning):
        make_fleet(tmp_path / "fleet", FakeClock())
    other.release()
    make_fleet(tmp_path / "fleet", FakeClock())


def test_encrypted_keys_are_asked_for_only_when_they_are_used(tmp_path: Path) -> None:
    clock = FakeClock()
    FleetRepository.create(
        tmp_path / "fleet", name="n", root_keys=1, threshold=1, passphrase=b"right", clock=clock
    )
    asked: list[str] = []

    def ask(name: str) -> bytes:
        asked.append(Path(name).stem)
        return b"right"

    repository = FleetRepository.open(tmp_path / "fleet", ask, clock)
    assert (repository.releases(), repository.deployments(), repository.hubs()) == ((), (), ())
    assert repository.files()
    assert asked == []
    add_release(repository, tmp_path)
    assert sorted(asked) == ["releases", "snapshot", "timestamp"]
    asked.clear()
    repository.add_deployment(deployment_id=ID_1, release="app", version="1.0")
    assert sorted(asked) == ["deployments", "snapshot", "timestamp"]
    asked.clear()
    repository.bump_timestamp()
    assert asked == ["timestamp"]
    before = tree(tmp_path / "fleet")
    with pytest.raises(WrongPassphrase, match=r"timestamp\.pem does not open"):
        FleetRepository.open(tmp_path / "fleet", lambda _: b"wrong", clock).bump_timestamp()
    assert tree(tmp_path / "fleet") == before


# --- separate keys --------------------------------------------------------------------------------------


def keep_keys(directory: Path, *names: str) -> None:
    for path in (directory / "keys").iterdir():
        if path.stem not in names:
            path.unlink()


def test_a_build_machine_releases_and_cannot_deploy(directory: Path, tmp_path: Path) -> None:
    keep_keys(directory, "releases", "snapshot", "timestamp")
    repository = opened(directory)
    add_release(repository, tmp_path)
    assert_devices_take(repository, tmp_path)
    before = tree(directory)
    for refused in (
        lambda: repository.add_deployment(deployment_id=ID_1, release="app", version="1.0"),
        lambda: repository.set_hubs([]),
        lambda: repository.renew("root"),
        lambda: repository.renew("targets"),
        repository.enrolment_key,
    ):
        with pytest.raises((NotFound, Misuse)):
            refused()
    assert tree(directory) == before


def test_an_operator_deploys_and_cannot_release(directory: Path, tmp_path: Path) -> None:
    add_release(opened(directory), tmp_path)
    keep_keys(directory, "deployments", "snapshot", "timestamp")
    repository = opened(directory)
    repository.add_deployment(deployment_id=ID_1, release="app", version="1.0")
    assert_devices_take(repository, tmp_path)
    before = tree(directory)
    with pytest.raises(NotFound, match=r"releases\.pem"):
        add_release(repository, tmp_path, version="2.0")
    assert tree(directory) == before


def test_a_key_of_another_role_does_not_sign(directory: Path, tmp_path: Path) -> None:
    shutil.copy(directory / "keys" / "releases.pem", directory / "keys" / "deployments.pem")
    repository = opened(directory)
    add_release(repository, tmp_path)
    before = tree(directory)
    with pytest.raises(Misuse, match=r"deployments\.pem is not the key [0-9a-f]{16} any more"):
        repository.add_deployment(deployment_id=ID_1, release="app", version="1.0")
    assert tree(directory) == before


def test_a_key_that_others_can_read_is_not_used(directory: Path) -> None:
    (directory / "keys" / "timestamp.pem").chmod(0o644)
    with pytest.raises(UnsafePermissions):
        opened(directory).bump_timestamp()


# --- releases and deployments ---------------------------------------------------------------------------


def test_a_release_with_variants_is_kept_whole(directory: Path, tmp_path: Path) -> None:
    repository = opened(directory)
    contents = {"arch=arm64": b"for arm", "arch=amd64": b"for amd"}
    manifest = add_release(repository, tmp_path, contents=contents)
    (release,) = opened(directory).releases()
    assert release.manifest == manifest
    for artifact in manifest.artifacts:
        assert opened(directory).content(artifact).read_bytes() == contents[artifact.selector]
    files = repository.files()
    assert f"targets/releases/app/1.0/{release.digest}.release.json" in files
    assert hashlib.sha256(files[f"targets/releases/app/1.0/{release.digest}.release.json"]).hexdigest() == (
        release.digest
    )
    assert not any("for arm" in str(data) for data in files.values())
    assert_devices_take(repository, tmp_path)


def test_a_released_version_is_never_changed(directory: Path, tmp_path: Path) -> None:
    repository = opened(directory)
    add_release(repository, tmp_path)
    before = tree(directory)
    with pytest.raises(WouldOverwrite, match=r"release app 1\.0 exists"):
        add_release(repository, tmp_path, contents={"": b"other"})
    assert tree(directory) == before


@pytest.mark.parametrize("fault", ["missing", "truncated", "changed", "directory", "torrent"])
def test_an_artifact_that_is_not_what_the_manifest_says_leaves_nothing(
    directory: Path, tmp_path: Path, fault: str
) -> None:
    artifact, torrent = make_artifact(b"the content")
    path = tmp_path / "artifact"
    if fault == "directory":
        path.mkdir()
    elif fault != "missing":
        path.write_bytes({"truncated": b"the con", "changed": b"THE content"}.get(fault, b"the content"))
    manifest = ReleaseManifest(
        name="app", version="1", module="script", artifacts=[artifact], created="2027-01-15T08:00:00Z"
    )
    repository = opened(directory)
    before = tree(directory)
    with pytest.raises(ArtifactUnreadable):
        repository.add_release(
            manifest, {artifact.sha256: (path, torrent + b"x" if fault == "torrent" else torrent)}
        )
    assert tree(directory) == before


def test_a_manifest_larger_than_devices_read_is_not_signed(directory: Path, tmp_path: Path) -> None:
    artifact, torrent = make_artifact(b"small")
    (tmp_path / "artifact").write_bytes(b"small")
    manifest = ReleaseManifest(
        name="app",
        version="1",
        module="script",
        artifacts=[artifact],
        created="",
        meta={"notes": "x" * limits.DOCUMENT_BYTES_MAX},
    )
    with pytest.raises(Misuse, match=r"releases/app/1/release\.json would have"):
        opened(directory).add_release(manifest, {artifact.sha256: (tmp_path / "artifact", torrent)})
    assert opened(directory).releases() == ()


def test_newer_deployments_supersede_older_ones_of_the_same_devices(directory: Path, tmp_path: Path) -> None:
    repository = opened(directory)
    add_release(repository, tmp_path, version="1.0")
    add_release(repository, tmp_path, version="2.0")
    first = repository.add_deployment(deployment_id=ID_1, release="app", version="1.0", selector="site=a")
    other = repository.add_deployment(deployment_id=ID_2, release="app", version="1.0", selector="site=b")
    newer = repository.add_deployment(
        deployment_id=ID_3, release="app", version="2.0", selector="site=a", allow_downgrade=True
    )
    assert [first.sequence, other.sequence, newer.sequence] == [1, 2, 3]
    assert repository.deployments() == opened(directory).deployments() == (other, newer)
    assert newer.manifest_sha256 == repository.release("app", "2.0").digest
    assert newer.created == "2027-01-15T08:00:00Z"
    assert not any(ID_1 in name for name in tree(directory))
    assert_devices_take(repository, tmp_path)


def test_deploying_what_was_not_released_names_what_was(directory: Path, tmp_path: Path) -> None:
    repository = opened(directory)
    add_release(repository, tmp_path)
    with pytest.raises(NotFound, match=r"no release app 9") as caught:
        repository.add_deployment(deployment_id=ID_1, release="app", version="9")
    assert caught.value.hint == "versions of app: 1.0"
    assert repository.deployments() == ()


def test_hubs_and_labels_are_remembered(directory: Path, tmp_path: Path) -> None:
    repository = opened(directory)
    hub = NodeAddress(device="ab" * 32, addrs=["192.0.2.1:4433"], relay="https://relay.example/")
    repository.set_hubs([hub])
    repository.declare_labels(["site"])
    repository.declare_labels(["site", "rack"])
    assert opened(directory).hubs() == (hub,)
    assert opened(directory).labels == {"site", "rack"}
    with pytest.raises(Misuse, match="9 hubs"):
        repository.set_hubs([hub] * 9)
    assert_devices_take(repository, tmp_path)


@pytest.mark.parametrize(("at_least", "version"), [(0, 2), (1, 2), (2, 3), (77, 78)])
def test_a_bumped_timestamp_is_above_its_own_and_the_given_version(
    directory: Path, at_least: int, version: int
) -> None:
    repository = opened(directory)
    before = repository.files()
    assert repository.bump_timestamp(at_least) == version == repository.timestamp_version
    changed = {name for name, data in repository.files().items() if before.get(name) != data}
    assert changed == {TIMESTAMP_NAME}


@pytest.mark.parametrize("role", ["root", "targets", "releases", "deployments", "fleet"])
def test_every_role_can_be_renewed_before_it_ends(directory: Path, tmp_path: Path, role: str) -> None:
    clock = FakeClock()
    repository = FleetKeys.open(directory, lambda _: b"", clock)
    clock.advance(300 * DAY)
    if role == "root":
        assert repository.renew_root() is None
    else:
        repository.renew(role)
    assert_devices_take(repository, tmp_path, clock)
    chain = verify_chain(repository.first_root, repository.files().get)
    signed = {"root": chain.root, "targets": chain.targets, **chain.delegated}[role]
    assert signed.version == 2
    assert (signed.expires.timestamp() - clock.now) / DAY == (730 if role == "root" else 365)


def test_a_root_is_renewed_by_its_threshold_and_not_by_less(directory: Path, tmp_path: Path) -> None:
    (directory / "keys" / "root-2.pem").unlink()
    repository = FleetKeys.open(directory, lambda _: b"", FakeClock())
    assert repository.renew_root() is None
    assert_devices_take(repository, tmp_path)
    (directory / "keys" / "root-3.pem").unlink()
    before = tree(directory)
    waiting = repository.renew_root()
    assert waiting is not None
    assert [one.wanting for one in waiting.status()] == [1, 1]
    repository.cancel_proposal()
    with pytest.raises(Misuse, match="there is no role snapshots"):
        repository.renew("snapshots")
    assert tree(directory) == before


# --- crashes, damage, two at once -----------------------------------------------------------------------


def test_a_command_cut_short_at_any_file_changed_nothing_and_can_be_repeated(
    directory: Path, tmp_path: Path
) -> None:
    repository = opened(directory)
    add_release(repository, tmp_path)
    old = tree(directory)
    repository.add_deployment(deployment_id=ID_1, release="app", version="1.0")
    new = tree(directory)
    written = [name for name in new if new[name] != old.get(name)]
    assert TIMESTAMP_NAME in written
    newest = max(written, key=lambda name: (directory / name).stat().st_mtime_ns)
    assert (directory / TIMESTAMP_NAME).stat().st_mtime_ns == (directory / newest).stat().st_mtime_ns
    early = [name for name in written if name != TIMESTAMP_NAME]
    for count in range(len(early) + 1):
        for some in itertools.combinations(early, count):
            crashed = tmp_path / "crashed"
            shutil.rmtree(crashed, ignore_errors=True)
            for name, data in {**old, **{one: new[one] for one in some}}.items():
                (crashed / name).parent.mkdir(parents=True, exist_ok=True)
                (crashed / name).write_bytes(data)
            for key in (crashed / "keys").iterdir():
                key.chmod(0o600)
            (crashed / "metadata" / ".new-half").write_bytes(b"half")
            (crashed / "content" / "00.unverified").write_bytes(b"half")
            survivor = opened(crashed)
            assert survivor.deployments() == ()
            survivor.add_deployment(deployment_id=ID_2, release="app", version="1.0")
            assert [one.id for one in opened(crashed).deployments()] == [ID_2]
            assert not any("half" in str(data) for data in tree(crashed).values())
    assert_devices_take(opened(tmp_path / "crashed"), tmp_path)


def test_a_sequence_is_never_given_twice(directory: Path, tmp_path: Path) -> None:
    repository = opened(directory)
    add_release(repository, tmp_path)
    repository.add_deployment(deployment_id=ID_1, release="app", version="1.0")
    (directory / "fleet.json").write_bytes(
        (directory / "fleet.json").read_bytes().replace(b'"sequence": 1', b'"sequence": 0')
    )
    assert opened(directory).add_deployment(deployment_id=ID_2, release="app", version="1.0").sequence == 2


def test_two_commands_at_once_do_not_lose_each_others_work(directory: Path, tmp_path: Path) -> None:
    one, two = opened(directory), opened(directory)
    add_release(one, tmp_path, version="1.0")
    add_release(two, tmp_path, version="2.0")
    assert [release.manifest.version for release in opened(directory).releases()] == ["1.0", "2.0"]
    lock = DirectoryLock(directory)
    lock.acquire()
    with pytest.raises(AlreadyRunning):
        one.bump_timestamp()
    lock.release()
    one.bump_timestamp()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("fleet.json", StoreDamaged),
        ("metadata/1.root.json", StoreDamaged),
        (TIMESTAMP_NAME, StoreDamaged),
        ("metadata/1.snapshot.json", StoreDamaged),
        ("metadata/1.fleet.json", StoreDamaged),
    ],
)
def test_damaged_files_are_named(directory: Path, name: str, error: type[Exception]) -> None:
    good = (directory / name).read_bytes()
    for damage in (b"", b"{}", good[:-10], b"[" * 100_000):
        (directory / name).write_bytes(damage)
        with pytest.raises(error) as caught:
            opened(directory)
        assert str(directory) in str(caught.value)


def test_a_directory_that_is_no_fleet_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a fleet directory") as caught:
        opened(tmp_path)
    assert "driftseed fleet init" in caught.value.hint


def test_a_damaged_document_is_not_handed_to_devices(directory: Path, tmp_path: Path) -> None:
    repository = opened(directory)
    add_release(repository, tmp_path)
    (manifest,) = (directory / "targets" / "releases" / "app" / "1.0").glob("*.release.json")
    manifest.write_bytes(msgspec.json.encode({"name": "evil"}))
    with pytest.raises(StoreDamaged, match="is missing or changed"):
        opened(directory).files()
