"""Power cuts, damaged files and full disks between a device's refresh and its next start."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from driftseed.core.errors import DiskFull, MetadataReplayed, StoreDamaged
from driftseed.core.verified import VerifiedFleet
from driftseed.trust.chain import TIMESTAMP_NAME
from driftseed.trust.device import FleetTrust
from support_trust import FakeClock, Neighbour, add_release, make_fleet, tree

ID_1 = "11" * 16
ID_2 = "22" * 16


@dataclass
class Device:
    """A device's directory at the old state, and all that the repository has at the new one."""

    directory: Path
    first_root: bytes
    new_files: dict[str, bytes]
    old: VerifiedFleet
    new: VerifiedFleet
    old_timestamp: bytes

    def start(self) -> FleetTrust:
        return FleetTrust(self.directory, self.first_root, FakeClock())

    def assert_whole(self, *states: VerifiedFleet) -> VerifiedFleet:
        """It loads one of the states, serves all of it, and can go on to the new one."""
        loaded = self.start().load()
        assert loaded in states
        follower = FleetTrust(self.directory.with_name("follower"), self.first_root, FakeClock())
        assert follower.refresh(ServedBy(self.start())) == loaded
        assert self.start().refresh(Neighbour(self.new_files)) == self.new
        assert self.start().load() == self.new
        assert self.leftovers() == set()
        return loaded

    def leftovers(self) -> set[str]:
        """Files that no refresh will ever look at again."""
        known = {"index.json", "floor.json"}
        return {
            name
            for name in tree(self.directory)
            if name not in known and not name.startswith(("files/", "tuf/"))
        } | {name for name in tree(self.directory) if ".new-" in name}


class ServedBy(Neighbour):
    """A neighbour that is another device."""

    def __init__(self, trust: FleetTrust) -> None:
        super().__init__({})
        self._trust = trust

    def fetch(self, name: str, max_length: int) -> bytes:
        data = self._trust.serve(name)
        if data is not None:
            self.files[name] = data
        return super().fetch(name, max_length)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Device:
    scratch = tmp_path_factory.mktemp("template")
    clock = FakeClock()
    repository = make_fleet(scratch / "fleet", clock)
    add_release(repository, scratch)
    repository.add_deployment(deployment_id=ID_1, release="app", version="1.0")
    old = FleetTrust(scratch / "old", repository.first_root, clock).refresh(Neighbour(repository.files()))
    old_timestamp = repository.files()[TIMESTAMP_NAME]
    add_release(repository, scratch, version="2.0")
    repository.add_deployment(deployment_id=ID_2, release="app", version="2.0")
    shutil.copytree(scratch / "old", scratch / "new", symlinks=True)
    new = FleetTrust(scratch / "new", repository.first_root, clock).refresh(Neighbour(repository.files()))
    assert old != new
    return Device(scratch / "old", repository.first_root, repository.files(), old, new, old_timestamp)


@pytest.fixture
def device(template: Device, tmp_path: Path) -> Device:
    shutil.copytree(template.directory, tmp_path / "device", symlinks=True)
    return replace(template, directory=tmp_path / "device")


class Killer(Neighbour):
    """A neighbour at whose nth file the power goes: no cleanup runs in the process that asked."""

    def fetch(self, name: str, max_length: int) -> bytes:
        if len(self.asked) == self.fail_at:
            os._exit(9)
        return super().fetch(name, max_length)


def test_killed_at_every_fetch_of_a_refresh(device: Device, tmp_path: Path) -> None:
    shutil.copytree(device.directory, tmp_path / "trial", symlinks=True)
    trial = Neighbour(device.new_files)
    FleetTrust(tmp_path / "trial", device.first_root, FakeClock()).refresh(trial)
    pristine = tmp_path / "pristine"
    device.directory.rename(pristine)
    for fail_at in range(len(trial.asked)):
        shutil.rmtree(device.directory, ignore_errors=True)
        shutil.copytree(pristine, device.directory, symlinks=True)
        shutil.rmtree(tmp_path / "follower", ignore_errors=True)
        child = os.fork()
        if child == 0:
            device.start().refresh(Killer(device.new_files, fail_at=fail_at))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert device.assert_whole(device.old) == device.old


def overlay(new: Path, directory: Path) -> None:
    """Put the new state's files beside the old one's; neither index is touched."""
    for name in tree(new):
        if name.startswith(("files/", "tuf/")):
            shutil.copy(new / name, directory / name)


def test_a_power_cut_between_the_files_and_the_index_leaves_the_old_state(
    device: Device, template: Device
) -> None:
    new = template.directory.with_name("new")
    overlay(new, device.directory)
    (device.directory / "files" / ".new-half").write_bytes(b"half")
    (device.directory / "tuf" / ".new-half").write_bytes(b"half")
    assert device.assert_whole(device.old) == device.old


def test_a_power_cut_between_the_index_and_the_pruning_leaves_the_new_state(
    device: Device, template: Device
) -> None:
    new = template.directory.with_name("new")
    overlay(new, device.directory)
    shutil.copy(new / "index.json", device.directory / "index.json")
    assert device.assert_whole(device.new) == device.new
    assert {path.name for path in (device.directory / "files").iterdir()} == {
        path.name for path in (new / "files").iterdir()
    }


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "zeroed": lambda data: bytes(len(data)),
    "bomb": lambda data: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_any_one_damaged_file_is_noticed_and_mended_by_the_next_refresh(device: Device, damage: str) -> None:
    pristine = tree(device.directory)
    for name, data in pristine.items():
        path = device.directory / name
        path.write_bytes(DAMAGES[damage](data))
        trust = device.start()
        assert trust.load() in (None, device.old)
        assert trust.serve(TIMESTAMP_NAME) in (None, device.old_timestamp)
        assert trust.refresh(Neighbour(device.new_files)) == device.new
        assert device.start().load() == device.new
        for restored, content in pristine.items():
            (device.directory / restored).write_bytes(content)


def test_a_lost_file_is_mended_by_the_next_refresh(device: Device) -> None:
    pristine = tree(device.directory)
    for name in pristine:
        (device.directory / name).unlink()
        assert device.start().load() in (None, device.old)
        assert device.start().refresh(Neighbour(device.new_files)) == device.new
        assert device.start().load() == device.new
        for restored, content in pristine.items():
            (device.directory / restored).write_bytes(content)


def test_the_floor_outlives_the_loss_of_everything_else(device: Device) -> None:
    old_files = {name: device.start().serve(name) or b"" for name in device.start()._kept.names()}
    device.start().refresh(Neighbour(device.new_files))
    for path in device.directory.iterdir():
        if path.name != "floor.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(MetadataReplayed, match="is version 3; this device has trusted version 5 already"):
        device.start().refresh(Neighbour(old_files))
    assert device.start().load() is None
    assert device.start().refresh(Neighbour(device.new_files)) == device.new


def test_a_cache_that_cannot_be_written_is_this_devices_fault_and_changes_nothing(device: Device) -> None:
    (device.directory / "tuf" / "timestamp.json").unlink()
    (device.directory / "tuf" / "timestamp.json").mkdir()
    (device.directory / "tuf" / "timestamp.json" / "occupied").touch()
    with pytest.raises(StoreDamaged, match="cannot use the metadata cache"):
        device.start().refresh(Neighbour(device.new_files))
    assert device.start().load() == device.old


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_a_full_disk_at_any_point_of_a_refresh_keeps_the_old_state(device: Device, small_disk: Path) -> None:
    shutil.copytree(device.directory, small_disk / "device", symlinks=True)
    device = replace(device, directory=small_disk / "device")
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    for room in range(0, free, 4096):
        ballast.write_bytes(bytes(free - room))
        try:
            device.start().refresh(Neighbour(device.new_files))
        except DiskFull:
            ballast.unlink()
            assert device.start().load() == device.old
            assert device.leftovers() == set()
        else:
            break
    else:
        pytest.fail("it never fitted")
    assert room > 0
    assert device.start().load() == device.new
