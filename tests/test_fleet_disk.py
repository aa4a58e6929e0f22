"""Disks that fill up under a running agent: it says so, leaves nothing half-done, and goes on by itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftseed.agent.config import AgentConfig
from driftseed.agent.daemon import Agent
from driftseed.core import limits
from driftseed.core.ids import Digest
from driftseed.core.lifecycle import State
from driftseed.core.reports import UpdateReport
from driftseed.hub.daemon import Hub
from driftseed.node.transfer import ContentSettings
from support_fleet import Fleet, fleet_in, settled, state_of, until

MIB = limits.MIB
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")


class SmallDisk:
    """A file system of a few MiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def resize(self, size: int) -> None:
        """Give it more or less room."""
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def fill(self, leave: int = 0) -> None:
        """Have somebody else take all but ``leave`` bytes."""
        with self._filler.open("ab") as file, contextlib.suppress(OSError):
            while (free := shutil.disk_usage(self.path).free - leave) > 0:
                file.write(bytes(min(free, MIB)))
                file.flush()

    def free(self) -> None:
        """Have them give it back."""
        self._filler.unlink()


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[SmallDisk]:
    """Mount one."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", path], check=True)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def report(agent: Agent, deployment: str) -> UpdateReport | None:
    """What the agent says of an update."""
    return next((each for each in agent.update_reports(time.time()) if each.deployment == deployment), None)


def reason(agent: Agent, deployment: str) -> str:
    said = report(agent, deployment)
    return "" if said is None else said.reason


def release(fleet: Fleet, version: str, size: int) -> tuple[str, bytes]:
    """Release and deploy random bytes; returns the deployment's id, and the bytes."""
    deployment = fleet.release_random("app", version, size)
    return deployment, (fleet.directory / f"app-{version}.bin").read_bytes()


@pytest.mark.root
@needs_root
async def test_a_disk_too_small_for_the_content_makes_it_wait_until_there_is_space(tmp_path: Path) -> None:
    """Nothing is begun; it says what is missing, also to the hub; with more room it goes on by itself."""
    with small_disk(tmp_path / "agent", 24 * MIB) as disk:
        async with fleet_in(tmp_path) as fleet:
            hub = await fleet.start_hub()
            agent = await fleet.new_agent("agent", config=AgentConfig(install_root=str(tmp_path / "root")))
            deployment, data = release(fleet, "1.0", 12 * MIB)
            await fleet.publish()
            await until(lambda: reason(agent, deployment) == "disk-full", "it waits")
            said = report(agent, deployment)
            assert said is not None
            assert said.state == State.WAITING
            assert "are free" in said.detail
            assert agent.node.contents.store.used_bytes == 0
            await until_hub_knows(hub, agent, "disk-full")
            disk.resize(96 * MIB)
            assert await settled([agent], deployment) == [State.SUCCEEDED]
            assert (tmp_path / "root" / "app.bin").read_bytes() == data


async def until_hub_knows(hub: Hub, agent: Agent, token: str) -> None:
    async def known() -> bool:
        rows = await hub.observer.devices({})
        said = [each for row in rows if row.device == agent.identity.device for each in row.updates]
        return any(each.reason == token for each in said)

    await until(known, f"the hub knows of {token}")


@pytest.mark.root
@needs_root
async def test_a_disk_that_fills_up_while_downloading_holds_it_up_and_no_more(tmp_path: Path) -> None:
    """Journal, report and content share the full disk: the agent lives, says so, and ends the download later."""
    with small_disk(tmp_path / "agent", 96 * MIB) as disk:
        async with fleet_in(tmp_path) as fleet:
            await fleet.start_hub()
            config = AgentConfig(install_root=str(tmp_path / "root"), download_limit_bytes_s=4 * MIB)
            agent = await fleet.new_agent("agent", config=config)
            deployment, data = release(fleet, "1.0", 24 * MIB)
            await fleet.publish()
            await until(lambda: state_of(agent, deployment) is State.DOWNLOADING, "it downloads")
            digest = Digest(fleet.repository.releases()[0].manifest.artifacts[0].sha256)
            transfer = agent.node.contents.transfer(digest)
            assert transfer is not None
            await until(lambda: transfer.done > 0, "the first pieces are here")
            disk.fill()
            await until(lambda: reason(agent, deployment) == "disk-full", "it is held up")
            assert state_of(agent, deployment) is State.DOWNLOADING
            assert not agent.node.failed.done()
            assert not (tmp_path / "root" / "app.bin").exists()
            disk.free()
            assert await settled([agent], deployment, 40.0) == [State.SUCCEEDED]
            assert (tmp_path / "root" / "app.bin").read_bytes() == data
            assert not agent.node.failed.done()


@pytest.mark.root
@needs_root
async def test_a_full_disk_where_it_installs_rolls_back_and_is_tried_again(tmp_path: Path) -> None:
    """The old version stays, byte for byte; the retry after its wait succeeds when there is space."""
    with small_disk(tmp_path / "root", 8 * MIB) as disk:
        async with fleet_in(tmp_path) as fleet:
            await fleet.start_hub()
            wall = Shifted()
            agent = await fleet.new_agent(
                "agent", config=AgentConfig(install_root=str(tmp_path / "root")), wall=wall
            )
            first, old = release(fleet, "1.0", 3 * MIB)
            await fleet.publish()
            assert await settled([agent], first) == [State.SUCCEEDED]
            second, new = release(fleet, "2.0", 7 * MIB)
            await fleet.publish()
            (end,) = await settled([agent], second)
            assert end in {State.ROLLED_BACK, State.FAILED}
            row = agent.journal.update(second)
            assert row is not None
            assert row.reason == "disk-full"
            files = {path.name: path for path in (tmp_path / "root").rglob("*") if path.is_file()}
            assert files["app.bin"].read_bytes() == old
            assert disk_used(tmp_path / "root") < 4 * MIB, "nothing half-installed is left"
            assert agent.journal.installed()["app"].version == "1.0"

            await until(lambda: second in agent.updates.held_back, "it waits before it tries again")
            assert agent.updates.held_back[second].reason == "retry-later"
            disk.resize(32 * MIB)
            wall.off_s = limits.RETRY_BASE_S + 1
            agent.updates.reconsider()
            await until(lambda: state_of(agent, second) is State.SUCCEEDED, "installed when there is space")
            assert (tmp_path / "root" / "app.bin").read_bytes() == new
            row = agent.journal.update(second)
            assert row is not None
            assert row.attempts == 2


class Shifted:
    """A clock that a test moves on."""

    off_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.off_s


def disk_used(path: Path) -> int:
    return shutil.disk_usage(path).used


@pytest.mark.root
@needs_root
async def test_no_space_for_the_journal_or_the_working_copy_is_not_busy_waiting(tmp_path: Path) -> None:
    """What cannot even be written down stops with its reason, is looked at seldom, and goes on later."""
    with small_disk(tmp_path / "agent", 64 * MIB) as disk:
        async with fleet_in(tmp_path) as fleet:
            await fleet.start_hub()
            agent = await fleet.new_agent("agent", config=AgentConfig(install_root=str(tmp_path / "root")))
            await until(lambda: agent.node.keeper.ready > 0, "metadata is here")
            deployment, data = release(fleet, "1.0", 2 * MIB)
            digest = Digest(fleet.repository.releases()[0].manifest.artifacts[0].sha256)
            looks = 0
            consider = agent.updates._consider

            async def counted() -> float | None:
                nonlocal looks
                looks += 1
                return await consider()

            agent.updates._consider = counted  # type: ignore[method-assign]  # counts, and does the same
            agent.node.contents.on_change = lambda transfer: disk.fill() if transfer.arrived.done() else None
            await fleet.publish()
            await until(lambda: reason(agent, deployment) == "disk-full", "it stops")
            before = looks
            await until(lambda: agent.updates.stopped == {} or looks > before, "looked at again", 30.0)
            assert looks - before < 10
            assert not agent.node.failed.done()
            assert not (tmp_path / "root" / "app.bin").exists()
            disk.free()
            agent.node.contents.on_change = agent.updates._transfer_changed
            assert await settled([agent], deployment, 40.0) == [State.SUCCEEDED]
            assert (tmp_path / "root" / "app.bin").read_bytes() == data
            assert agent.node.contents.store.has(digest)


async def test_the_quota_evicts_what_was_used_least_and_never_what_is_installed(tmp_path: Path) -> None:
    """Of the versions that are not installed any more the oldest goes first; the installed ones stay."""
    async with fleet_in(tmp_path) as fleet:
        await fleet.start_hub()
        agent = await fleet.new_agent("agent", config=AgentConfig(content_quota_bytes=9 * MIB // 2))
        digests: dict[str, Digest] = {}
        for name, version in (
            ("base", "1.0"),
            ("app", "1.0"),
            ("app", "2.0"),
            ("app", "3.0"),
            ("app", "4.0"),
        ):
            deployment = fleet.release_random(name, version, MIB)
            await fleet.publish()
            assert await settled([agent], deployment) == [State.SUCCEEDED]
            (artifact,) = fleet.repository.release(name, version).manifest.artifacts
            digests[f"{name} {version}"] = Digest(artifact.sha256)
        kept = {digests[each] for each in ("base 1.0", "app 2.0", "app 3.0", "app 4.0")}
        store = agent.node.contents.store
        assert set(store.digests()) == kept
        assert {path.name for path in store.directory.iterdir()} == kept
        assert (agent.install_root / "base.bin").stat().st_size == MIB


async def test_a_quota_that_holds_no_second_version_is_said_and_can_be_raised(tmp_path: Path) -> None:
    """The installed version is not given up for the new one: an operator decides, and it goes on at once."""
    async with fleet_in(tmp_path) as fleet:
        await fleet.start_hub()
        agent = await fleet.new_agent("agent", config=AgentConfig(content_quota_bytes=3 * MIB // 2))
        first = fleet.release_random("app", "1.0", MIB)
        await fleet.publish()
        assert await settled([agent], first) == [State.SUCCEEDED]
        second = fleet.release_random("app", "2.0", MIB)
        await fleet.publish()
        await until(lambda: reason(agent, second) == "disk-full", "it says so")
        said = report(agent, second)
        assert said is not None
        assert "quota" in said.detail
        (held,) = agent.node.contents.store.digests()
        assert held == fleet.repository.release("app", "1.0").manifest.artifacts[0].sha256
        await agent.node.contents.configure(ContentSettings(quota_bytes=4 * MIB))
        assert await settled([agent], second) == [State.SUCCEEDED]
