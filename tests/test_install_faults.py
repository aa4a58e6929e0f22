"""What can befall an install beside its module: reboots, a sick device, loops, a full disk, a stopped agent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftseed.core import limits
from driftseed.core.errors import DiskFull, StoreDamaged
from driftseed.core.lifecycle import BY_STATE, Event, Phase, State
from driftseed.core.model import HealthCheck
from driftseed.core.updates import NO_FACTS, Facts, Transition
from driftseed.store.journal import Journal
from support_install import (
    AgentProcess,
    Device,
    Script,
    Spec,
    calls,
    deployment_id,
    no_processes_of,
    put,
    release_of,
    scripted_module,
    version,
    write_spec,
)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "device")
    yield device
    device.close()


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "payload.bin"
    path.write_bytes(b"content")
    return path


def restarted(device: Device, *, boot: str) -> Device:
    """The same device with a new agent."""
    device.close()
    return Device(device.root, boot=boot, now=device.now)


# --- reboots ----------------------------------------------------------------------------------------


async def test_an_automatic_reboot_suspends_and_goes_on_after_it(device: Device, payload: Path) -> None:
    scripted_module(device, Script(reboot="Automatic"))
    release, artifact = release_of(payload, module="scripted")
    assert await device.install(1, release, artifact) is State.REBOOTING
    assert device.reboots == 1
    assert device.row().boot_id == "boot-1"
    after = restarted(device, boot="boot-2")
    assert await after.installer.resume_all() == {deployment_id(1): State.SUCCEEDED}
    assert calls(after) == [
        "Download",
        "ArtifactInstall",
        "ArtifactVerifyReboot",
        "ArtifactCommit",
        "Cleanup",
    ]
    assert after.reboots == 0
    after.close()


async def test_an_agent_that_starts_before_the_reboot_asks_for_it_again_and_then_gives_up(
    device: Device, payload: Path
) -> None:
    scripted_module(device, Script(reboot="Automatic"))
    release, artifact = release_of(payload, module="scripted")
    assert await device.install(1, release, artifact) is State.REBOOTING
    again = restarted(device, boot="boot-1")
    assert await again.installer.resume(deployment_id(1)) is State.REBOOTING
    assert again.reboots == 1
    third = restarted(again, boot="boot-1")
    # Rolled back, and the module wants a reboot for that too.
    assert await third.installer.resume(deployment_id(1)) is State.ROLLBACK_REBOOTING
    assert third.row().reason == "reboot-failed"
    last = restarted(third, boot="boot-2")
    assert await last.installer.resume(deployment_id(1)) is State.ROLLED_BACK
    assert version(last) == "old"
    last.close()


async def test_a_reboot_that_cannot_be_asked_for_rolls_back(device: Device, payload: Path) -> None:
    async def reboot() -> None:
        raise PermissionError("reboot: not permitted")

    device._reboot = reboot  # type: ignore[method-assign]  # the callable that the agent would be given
    device.installer = device.make_installer()
    scripted_module(device, Script(reboot="Automatic"))
    release, artifact = release_of(payload, module="scripted")
    # The way back cannot reboot either; the module's own verification is what counts then.
    assert await device.install(1, release, artifact) is State.ROLLED_BACK
    assert device.row().reason == "reboot-failed"
    assert version(device) == "old"


# --- health -----------------------------------------------------------------------------------------


async def test_a_failing_health_check_rolls_back_and_says_why(device: Device, payload: Path) -> None:
    scripted_module(device, Script(reboot="No"))
    health = HealthCheck(command=["sh", "-c", "echo sick; exit 4"])
    release, artifact = release_of(payload, module="scripted", health=health)
    assert await device.install(1, release, artifact) is State.ROLLED_BACK
    assert calls(device) == ["Download", "ArtifactInstall", "ArtifactRollback", "ArtifactFailure", "Cleanup"]
    row = device.row()
    assert row.reason == "health-check-failed"
    assert "returned 4" in row.detail
    assert row.detail.endswith("sick")


async def test_a_health_check_that_hangs_is_killed_with_its_children(device: Device, payload: Path) -> None:
    scripted_module(device, Script(reboot="No"))
    health = HealthCheck(command=["sh", "-c", "setsid sleep 1000 & sleep 1000"], timeout_s=0.3)
    release, artifact = release_of(payload, module="scripted", health=health)
    assert await device.install(1, release, artifact) is State.ROLLED_BACK
    assert "was killed" in device.row().detail
    assert no_processes_of(device)


async def test_a_health_check_sees_the_release_and_no_secrets(
    device: Device, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE", "hunter2")
    scripted_module(device, Script(reboot="No"))
    place = device.install_root / "app" / "current"
    place.mkdir(parents=True)
    health = HealthCheck(command=["sh", "-c", 'env > here; test -z "$DRIFTSEED_PASSPHRASE"'])
    release, artifact = release_of(payload, module="scripted", health=health, version="7")
    assert await device.install(1, release, artifact) is State.SUCCEEDED
    environment = dict(line.split("=", 1) for line in (place / "here").read_text().splitlines())
    assert environment["DRIFTSEED_RELEASE"] == "app"
    assert environment["DRIFTSEED_VERSION"] == "7"
    assert environment["DRIFTSEED_INSTALL_ROOT"] == str(device.install_root)
    assert environment["PWD"] == str(place)


async def test_a_device_that_goes_down_while_it_is_checked_rolls_back(device: Device, payload: Path) -> None:
    scripted_module(device, Script(reboot="No"))
    started = device.root / "started"
    os.mkfifo(started)
    health = HealthCheck(command=["sh", "-c", f"echo > {started}; exec sleep 1000"])
    release, artifact = release_of(payload, module="scripted", health=health)
    installing = asyncio.create_task(device.install(1, release, artifact))
    await asyncio.to_thread(started.read_bytes)
    installing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await installing
    assert device.row().state is State.PROBING
    assert no_processes_of(device)
    after = restarted(device, boot="boot-1")
    assert await after.installer.resume(deployment_id(1)) is State.ROLLED_BACK
    assert after.row().reason == "interrupted"
    after.close()


# --- loops ------------------------------------------------------------------------------------------


def test_a_device_that_goes_down_again_and_again_is_given_up(
    device: Device, payload: Path, tmp_path: Path
) -> None:
    """Mender's Break_out_of_spontaneous_reboot_loop: killed in ArtifactFailure for ever."""
    scripted_module(
        device,
        Script(reboot="No", error=["ArtifactInstall"], killed=["ArtifactFailure"], killed_forever=True),
    )
    spec = Spec(root=str(device.root), boot="boot-1", action="install", payload=str(payload))
    with AgentProcess(write_spec(spec, tmp_path / "install.json")) as agent:
        agent.kill_when_told(device)
    # Each round is one step; most are made here, so that it does not take a minute.
    while device.row().transitions < limits.TRANSITIONS_MAX - 1:
        device.journal.advance(deployment_id(1), Event.INTERRUPTED, at=device.now)
    spec = Spec(root=str(device.root), boot="boot-2", action="resume")
    with AgentProcess(write_spec(spec, tmp_path / "resume.json")) as agent:
        agent.kill_when_told(device)
    with AgentProcess(tmp_path / "resume.json") as agent:
        assert agent.result() == State.INCONSISTENT
    assert device.journal.history(deployment_id(1))[-1].event is Event.ABORTED
    assert device.left() == []
    assert no_processes_of(device)


# --- full disks and changed content -----------------------------------------------------------------


class JournalOnFullDisk(Journal):
    """Cannot record any step once an update is in a state, until there is space again."""

    full_from: State | None = None

    def record(self, transition: Transition, facts: Facts = NO_FACTS) -> None:
        if transition.state is self.full_from:
            raise DiskFull("no space left for agent.sqlite")
        super().record(transition, facts)


@pytest.mark.parametrize(
    ("state", "recorded_later"),
    [
        (State.STAGING, State.FAILED),
        (State.INSTALLING, State.ROLLED_BACK),
        (State.PROBING, State.ROLLED_BACK),
        (State.COMMITTING, State.ROLLED_BACK),
        (State.ROLLING_BACK, State.ROLLED_BACK),
        (State.CLEANING_ROLLED_BACK, State.ROLLED_BACK),
    ],
)
async def test_a_step_that_cannot_be_recorded_leads_back_to_the_old_version(
    state: State, recorded_later: State, device: Device, payload: Path
) -> None:
    undoing = BY_STATE[state].phase is Phase.UNDOING
    scripted_module(device, Script(reboot="No", error=["ArtifactCommit"] if undoing else []))
    journal = JournalOnFullDisk(device.root / "agent.sqlite")
    journal.full_from = state
    device.journal.close()
    device.journal = journal
    device.installer = device.make_installer()
    release, artifact = release_of(payload, module="scripted")
    with pytest.raises(DiskFull):
        await device.install(1, release, artifact)
    assert version(device) == "old"
    assert device.row().state is state
    with pytest.raises(DiskFull):
        await device.installer.resume(deployment_id(1))
    journal.full_from = None
    after = restarted(device, boot="boot-2")
    assert await after.installer.resume(deployment_id(1)) is recorded_later
    assert version(after) == "old"
    assert after.left() == []
    after.close()


async def test_a_committed_version_stays_when_its_cleanup_cannot_be_recorded(
    device: Device, payload: Path
) -> None:
    scripted_module(device, Script(reboot="No"))
    journal = JournalOnFullDisk(device.root / "agent.sqlite")
    journal.full_from = State.CLEANING
    device.journal.close()
    device.journal = journal
    device.installer = device.make_installer()
    release, artifact = release_of(payload, module="scripted")
    with pytest.raises(DiskFull):
        await device.install(1, release, artifact)
    assert version(device) == "new"
    assert device.journal.installed()["app"].version == "1"
    after = restarted(device, boot="boot-2")
    assert await after.installer.resume(deployment_id(1)) is State.SUCCEEDED
    after.close()


async def test_nothing_begins_without_a_record_of_it(device: Device, payload: Path) -> None:
    scripted_module(device, Script(reboot="No"))
    journal = JournalOnFullDisk(device.root / "agent.sqlite")
    device.journal.close()
    device.journal = journal
    device.installer = device.make_installer()
    release, artifact = release_of(payload, module="scripted")
    deployment = device.begin(1, release, artifact)
    journal.full_from = State.VERIFYING
    with pytest.raises(DiskFull):
        await device.installer.install(deployment, release, artifact)
    assert not (device.root / "scripted" / "calls").exists()
    journal.full_from = None
    assert await device.installer.install(deployment, release, artifact) is State.SUCCEEDED


async def run_tool(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
async def test_a_disk_too_full_for_the_working_copy_touches_nothing_and_is_retried(
    device: Device, tmp_path: Path
) -> None:
    payload = tmp_path / "payload.bin"
    put(payload, os.urandom(1_000_000))
    scripted_module(device, Script(reboot="No"))
    release, artifact = release_of(payload, module="scripted")
    await run_tool(
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={limits.DISK_MARGIN_BYTES + 500_000}",
        "tmpfs",
        str(device.run_dir),
    )
    try:
        assert await device.install(1, release, artifact) is State.FAILED
        assert device.row().reason == "disk-full"
        assert calls(device) == ["Download", "Cleanup"]
        assert device.left() == []
        await run_tool("mount", "-o", "remount,size=64m", str(device.run_dir))
        assert await device.install(1, release, artifact) is State.SUCCEEDED
    finally:
        await run_tool("umount", str(device.run_dir))


async def test_content_that_changed_after_it_was_verified_is_not_installed(
    device: Device, payload: Path
) -> None:
    scripted_module(device, Script(reboot="No"))
    release, artifact = release_of(payload, module="scripted")
    put(payload, b"CONTENT")  # same length
    assert await device.install(1, release, artifact) is State.FAILED
    assert device.row().reason == "content-mismatch"
    assert calls(device) == ["Download", "Cleanup"]


async def test_a_module_that_is_missing_fails_before_anything_is_touched(
    device: Device, payload: Path
) -> None:
    release, artifact = release_of(payload, module="absent")
    assert await device.install(1, release, artifact) is State.FAILED
    assert device.row().reason == "module-missing"
    assert device.left() == []


async def test_an_artifact_of_another_release_is_a_mistake_of_the_caller(
    device: Device, payload: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    release, artifact = release_of(payload, module="scripted")
    _, foreign = release_of(other, module="scripted")
    deployment = device.begin(1, release, artifact)
    with pytest.raises(RuntimeError):
        await device.installer.install(deployment, release, foreign)


async def test_a_manifest_that_cannot_be_read_any_more_is_undone(device: Device, payload: Path) -> None:
    scripted_module(device, Script(reboot="Automatic"))
    release, artifact = release_of(payload, module="scripted")
    assert await device.install(1, release, artifact) is State.REBOOTING
    (device.run_dir / "payloads" / deployment_id(1) / "release.json").write_bytes(b"\0\0\0")
    after = restarted(device, boot="boot-2")
    assert await after.installer.resume(deployment_id(1)) is State.ROLLBACK_REBOOTING
    assert after.row().reason == StoreDamaged.reason
    after.close()


async def test_directories_of_forgotten_updates_are_removed_at_the_start(device: Device) -> None:
    # Left behind by a kill between the end of an update and the removal of its directory.
    forgotten = device.run_dir / "payloads" / deployment_id(9) / "tree"
    forgotten.mkdir(parents=True)
    assert await device.installer.resume_all() == {}
    assert device.left() == []


async def test_updates_that_are_being_fetched_are_left_to_the_agent(device: Device, payload: Path) -> None:
    release, artifact = release_of(payload, module="scripted")
    deployment = device.begin(1, release, artifact)
    assert await device.installer.resume(deployment) is State.VERIFYING
    assert await device.installer.resume_all() == {}


async def test_installs_do_not_overlap(device: Device, payload: Path) -> None:
    scripted_module(device, Script(reboot="No"))
    one, artifact = release_of(payload, module="scripted", name="one")
    two, _ = release_of(payload, module="scripted", name="two")
    ends = [*await asyncio.gather(device.install(1, one, artifact), device.install(2, two, artifact))]
    assert ends == [State.SUCCEEDED, State.SUCCEEDED]
    course = ["Download", "ArtifactInstall", "ArtifactCommit", "Cleanup"]
    assert calls(device) == course * 2
