"""The built-in modules: what they install, what they refuse, and that no kill at any instant leaves a mixture."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from driftseed.core import limits
from driftseed.core.lifecycle import State
from driftseed.core.model import HealthCheck
from support_install import Device, content, make_tar, put, release_of
from support_killer import Plan, write_plan

KILLER = Path(__file__).with_name("support_killer.py")
SICK = HealthCheck(command=["false"])


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "device")
    yield device
    device.close()


@dataclass
class Fleet:
    """Installs releases on a device, one deployment after the other."""

    device: Device
    place: Path
    number: int = 0

    async def install(self, payload: Path, **release: Any) -> State:
        self.number += 1
        verified = release_of(payload, **release)
        return await self.device.install(self.number, *verified)

    async def directory(self, version: str, files: Mapping[str, bytes], **release: Any) -> State:
        archive = make_tar(self.place / f"{version}.tgz", files)
        return await self.install(archive, version=version, module="directory", **release)

    @property
    def detail(self) -> str:
        return self.device.row(self.number).detail

    @property
    def opt(self) -> Path:
        return self.device.install_root


@pytest.fixture
def fleet(device: Device, tmp_path: Path) -> Fleet:
    return Fleet(device, tmp_path)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- directory --------------------------------------------------------------------------------------


async def test_directory_switches_and_keeps_one_version_before(fleet: Fleet) -> None:
    for number in ("1", "2", "3"):
        assert await fleet.directory(number, {"bin/v": number.encode()}) is State.SUCCEEDED
        assert content(fleet.opt / "app" / "current" / "bin" / "v") == number.encode()
    versions = names(fleet.opt / "app" / "versions")
    assert [each.split("-")[0] for each in versions] == ["2", "3"]
    assert content(fleet.opt / "app" / "previous" / "bin" / "v") == b"2"
    assert names(fleet.opt / "app") == ["current", "previous", "versions"]


async def test_directory_rolls_back_to_what_was_there(fleet: Fleet) -> None:
    await fleet.directory("1", {"v": b"1"})
    await fleet.directory("2", {"v": b"2"})
    before = names(fleet.opt / "app" / "versions")
    assert await fleet.directory("3", {"v": b"3"}, health=SICK) is State.ROLLED_BACK
    assert content(fleet.opt / "app" / "current" / "v") == b"2"
    assert content(fleet.opt / "app" / "previous" / "v") == b"1"
    assert names(fleet.opt / "app" / "versions") == before


async def test_directory_rolls_the_first_version_back_to_nothing(fleet: Fleet) -> None:
    assert await fleet.directory("1", {"v": b"1"}, health=SICK) is State.ROLLED_BACK
    assert names(fleet.opt / "app") == []


async def test_directory_can_install_the_same_release_again(fleet: Fleet) -> None:
    for _ in range(4):
        assert await fleet.directory("1", {"v": b"1"}) is State.SUCCEEDED
        assert content(fleet.opt / "app" / "current" / "v") == b"1"
    assert len(names(fleet.opt / "app" / "versions")) == 2


async def test_the_health_check_runs_in_the_new_version(fleet: Fleet) -> None:
    check = HealthCheck(command=["./check.sh"])
    good = {"check.sh": b"#!/bin/sh\ntest -f only-in-2\n", "only-in-2": b""}
    assert await fleet.directory("2", good, health=check) is State.SUCCEEDED


async def test_directory_goes_where_the_meta_data_says(fleet: Fleet, tmp_path: Path) -> None:
    assert await fleet.directory("1", {"v": b"1"}, meta={"path": "sub/place"}) is State.SUCCEEDED
    assert content(fleet.opt / "sub" / "place" / "current" / "v") == b"1"
    elsewhere = str(tmp_path / "elsewhere")
    assert await fleet.directory("2", {"v": b"2"}, meta={"path": elsewhere}) is State.SUCCEEDED
    assert content(tmp_path / "elsewhere" / "current" / "v") == b"2"


@pytest.mark.parametrize("path", ["../up", 7])
async def test_directory_refuses_bad_meta_data(path: object, fleet: Fleet) -> None:
    # ArtifactRollback cannot know better than ArtifactInstall where that is: a person is told.
    assert await fleet.directory("1", {"v": b"1"}, meta={"path": path}) is State.INCONSISTENT
    assert "path" in fleet.detail
    assert names(fleet.opt) == []


async def test_directory_does_not_replace_what_is_not_its_own(fleet: Fleet) -> None:
    (fleet.opt / "app" / "current").mkdir(parents=True)
    assert await fleet.directory("1", {"v": b"1"}) is not State.SUCCEEDED
    assert "in the way" in fleet.detail
    assert (fleet.opt / "app" / "current").is_dir()


async def test_a_bad_archive_is_rolled_back_and_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.directory("1", {"v": b"1"})
    before = names(fleet.opt / "app" / "versions")
    put(tmp_path / "bad", b"not an archive")
    assert await fleet.install(tmp_path / "bad", version="2") is State.ROLLED_BACK
    assert "cannot be unpacked" in fleet.detail
    assert names(fleet.opt / "app" / "versions") == before
    assert content(fleet.opt / "app" / "current" / "v") == b"1"


async def run_tool(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
async def test_a_disk_that_fills_up_while_unpacking_leaves_the_old_version(fleet: Fleet) -> None:
    size = limits.DISK_MARGIN_BYTES + 2_000_000
    await run_tool("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(fleet.opt))
    try:
        assert await fleet.directory("1", {"v": b"1"}) is State.SUCCEEDED
        # It compresses well, so it is only found out while unpacking; once by the margin, once by ENOSPC.
        for zeros in (size - 1_000_000, 100_000_000):
            assert await fleet.directory("2", {"a": b"x", "zeros": bytes(zeros)}) is State.ROLLED_BACK
            assert fleet.device.row(fleet.number).reason == "disk-full"
            assert content(fleet.opt / "app" / "current" / "v") == b"1"
            assert len(names(fleet.opt / "app" / "versions")) == 1
        await run_tool("mount", "-o", "remount,size=200m", str(fleet.opt))
        assert await fleet.directory("2", {"zeros": bytes(100_000_000)}) is State.SUCCEEDED
    finally:
        await run_tool("umount", str(fleet.opt))


# --- single-file ------------------------------------------------------------------------------------


async def single(fleet: Fleet, data: bytes, *, health: HealthCheck | None = None, **meta: Any) -> State:
    path = fleet.place / "payload"
    put(path, data)
    version = str(fleet.number + 1)
    return await fleet.install(path, version=version, module="single-file", meta=meta, health=health)


async def test_single_file_replaces_atomically_with_mode(fleet: Fleet) -> None:
    assert await single(fleet, b"1", path="etc/app.conf", mode="0600") is State.SUCCEEDED
    assert await single(fleet, b"2", path="etc/app.conf") is State.SUCCEEDED
    file = fleet.opt / "etc" / "app.conf"
    assert content(file) == b"2"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert names(file.parent) == ["app.conf"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
async def test_single_file_sets_the_owner(fleet: Fleet) -> None:
    assert await single(fleet, b"1", path="a", owner="4711:root") is State.SUCCEEDED
    status = (fleet.opt / "a").stat()
    assert (status.st_uid, status.st_gid) == (4711, 0)


async def test_single_file_rolls_back_content_and_mode(fleet: Fleet) -> None:
    await single(fleet, b"1", path="a", mode="0600")
    assert await single(fleet, b"2", path="a", health=SICK) is State.ROLLED_BACK
    assert content(fleet.opt / "a") == b"1"
    assert stat.S_IMODE((fleet.opt / "a").stat().st_mode) == 0o600
    assert await single(fleet, b"new", path="b", health=SICK) is State.ROLLED_BACK
    assert names(fleet.opt) == ["a"]


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"path": ""},
        {"path": "a/"},
        {"path": "."},
        {"path": "../a"},
        {"path": 1},
        {"path": "a", "mode": "4755"},
        {"path": "a", "mode": "rw"},
        {"path": "a", "owner": "no-such-user"},
    ],
)
async def test_single_file_refuses_bad_meta_data(meta: dict[str, Any], fleet: Fleet) -> None:
    assert await single(fleet, b"1", **meta) is not State.SUCCEEDED
    assert "meta-data" in fleet.detail
    assert names(fleet.opt) == []


def trap_link_at_the_file(opt: Path, outside: Path) -> None:
    (opt / "d").mkdir()
    (opt / "d" / "a").symlink_to(outside / "victim")


def trap_link_on_the_way(opt: Path, outside: Path) -> None:
    (opt / "d").symlink_to(outside)


def trap_directory_for_everybody(opt: Path, outside: Path) -> None:
    (opt / "d").mkdir()
    (opt / "d").chmod(0o777)


def trap_directory_at_the_file(opt: Path, outside: Path) -> None:
    (opt / "d" / "a").mkdir(parents=True)


@pytest.mark.parametrize(
    "trap",
    [
        trap_link_at_the_file,
        trap_link_on_the_way,
        trap_directory_for_everybody,
        trap_directory_at_the_file,
    ],
)
async def test_single_file_does_not_walk_into_a_trap(trap: Any, fleet: Fleet, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    put(outside / "victim", b"precious")
    trap(fleet.opt, outside)
    assert await single(fleet, b"evil", path="d/a") is State.ROLLED_BACK
    assert content(outside / "victim") == b"precious"
    assert names(outside) == ["victim"]


# --- script -----------------------------------------------------------------------------------------


async def script(fleet: Fleet, text: str, *, health: HealthCheck | None = None, **meta: Any) -> State:
    path = fleet.place / "install.sh"
    put(path, f'#!/bin/sh\necho "$1" >> {fleet.place}/calls\n{text}\n'.encode())
    return await fleet.install(path, version="1", module="script", meta=meta, health=health)


def script_calls(fleet: Fleet) -> list[str]:
    return (fleet.place / "calls").read_text().split()


async def test_a_plain_script_is_run_once(fleet: Fleet) -> None:
    assert (
        await script(fleet, 'echo "$DRIFTSEED_RELEASE" > "$DRIFTSEED_INSTALL_ROOT/done"') is State.SUCCEEDED
    )
    assert script_calls(fleet) == ["ArtifactInstall"]
    assert content(fleet.opt / "done") == b"app\n"


async def test_a_script_that_names_its_states_is_called_for_them(fleet: Fleet) -> None:
    states = ["ArtifactInstall", "ArtifactCommit", "ArtifactRollback", "Cleanup"]
    assert await script(fleet, "", states=states) is State.SUCCEEDED
    assert script_calls(fleet) == ["ArtifactInstall", "ArtifactCommit", "Cleanup"]
    (fleet.place / "calls").unlink()
    assert await script(fleet, "", states=states, health=SICK) is State.ROLLED_BACK
    assert script_calls(fleet) == ["ArtifactInstall", "ArtifactRollback", "Cleanup"]


async def test_a_script_that_fails_and_cannot_undo_is_inconsistent(fleet: Fleet) -> None:
    assert await script(fleet, "echo broken; exit 3") is State.INCONSISTENT
    assert "returned 3 in ArtifactInstall: broken" in fleet.detail


async def test_a_script_can_answer_for_itself(fleet: Fleet) -> None:
    states = ["ArtifactInstall", "SupportsRollback", "ArtifactRollback"]
    assert (
        await script(fleet, '[ "$1" = SupportsRollback ] && echo Yes; true', states=states, health=SICK)
        is State.ROLLED_BACK
    )


async def test_a_script_can_ask_for_a_reboot(fleet: Fleet) -> None:
    assert await script(fleet, "", reboot="Automatic") is State.REBOOTING


@pytest.mark.parametrize("meta", [{"states": "all"}, {"states": ["Install"]}, {"reboot": "perhaps"}])
async def test_a_scripts_bad_meta_data_is_refused_before_anything_is_touched(
    meta: dict[str, Any], fleet: Fleet
) -> None:
    assert await script(fleet, "", **meta) is State.FAILED
    assert "meta-data" in fleet.detail
    assert not (fleet.place / "calls").exists()


# --- killed at every instant ------------------------------------------------------------------------


def tree(place: Path, payload: Path, meta: Mapping[str, Any]) -> None:
    """A File API tree, as far as the built-in modules read it."""
    for name in ("header", "files", "tmp"):
        (place / "tree" / name).mkdir(parents=True)
    (place / "tree" / "header" / "meta-data").write_text(json.dumps(meta))
    (place / "tree" / "files" / payload.name).write_bytes(payload.read_bytes())


def template_of_directory(place: Path, tmp_path: Path) -> dict[str, Any]:
    old = place / "opt" / "app" / "versions" / "1-11111111"
    (old / "d").mkdir(parents=True)
    (old / "d" / "v").write_text("old")
    older = place / "opt" / "app" / "versions" / "0-00000000"
    older.mkdir()
    (older / "v").write_text("older")
    (place / "opt" / "app" / "current").symlink_to("versions/1-11111111")
    (place / "opt" / "app" / "previous").symlink_to("versions/0-00000000")
    tree(place, make_tar(tmp_path / "payload.tar", {"d/v": b"new", "w": b"new"}, mode="w"), {})
    return {}


def template_of_single_file(place: Path, tmp_path: Path) -> dict[str, Any]:
    (place / "opt" / "etc").mkdir(parents=True)
    (place / "opt" / "etc" / "v").write_text("old")
    put(tmp_path / "payload", b"new")
    tree(place, tmp_path / "payload", {"path": "etc/v"})
    return {}


def current(module: str, seen: Mapping[str, str]) -> str:
    """What programs on the device see: old or new; or what is wrong."""
    if module == "single-file":
        return seen.get("etc/v", "nothing")
    link = seen.get("app/current", "nothing").removeprefix("-> ")
    version = {
        name.removeprefix(f"app/{link}/"): text for name, text in seen.items() if f"app/{link}/" in name
    }
    if version == {"d/v": "old"}:
        return "old"
    return "new" if version == {"d/v": "new", "w": "new"} else f"mixture: {version}"


UNDO = ["ArtifactRollback", "ArtifactFailure", "Cleanup"]


@pytest.mark.parametrize("module", ["directory", "single-file"])
@pytest.mark.parametrize(
    ("before", "killed", "after_kill", "after_success", "ends"),
    [
        ([], "ArtifactInstall", UNDO, ["ArtifactCommit", "Cleanup"], {"old"}),
        (["ArtifactInstall"], "ArtifactCommit", UNDO, ["Cleanup"], {"old"}),
        (["ArtifactInstall", "ArtifactCommit"], "Cleanup", ["Cleanup"], [], {"new"}),
        (["ArtifactInstall"], "ArtifactRollback", UNDO, UNDO[1:], {"old"}),
        (["ArtifactInstall", "ArtifactCommit"], "ArtifactRollback", UNDO, UNDO[1:], {"old"}),
        (["ArtifactInstall", "ArtifactRollback"], "Cleanup", ["Cleanup"], [], {"old"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_module_killed_before_any_operation_leaves_old_or_new(
    module: str,
    before: list[str],
    killed: str,
    after_kill: list[str],
    after_success: list[str],
    ends: set[str],
    tmp_path: Path,
) -> None:
    template = tmp_path / "template"
    make = template_of_directory if module == "directory" else template_of_single_file
    make(template, tmp_path)
    plan = Plan(
        module=module,
        template=str(template),
        place=str(tmp_path / "place"),
        environment={
            "DRIFTSEED_RELEASE": "app",
            "DRIFTSEED_VERSION": "2",
            "DRIFTSEED_ARTIFACT_SHA256": "22222222" * 8,
        },
        before=before,
        killed=killed,
        after_kill=after_kill,
        after_success=after_success,
        seen=str(tmp_path / "seen"),
    )
    subprocess.run(
        [sys.executable, KILLER, write_plan(plan, tmp_path / "plan.json")], check=True, timeout=120
    )
    rounds = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    *kills, whole = rounds
    assert not whole["killed"]
    for number, seen in enumerate(rounds, start=1):
        assert seen["status"] == 0, number
        assert set(seen["rest"]) <= {0}, number
        assert current(module, seen["at_kill"]) in {"old", "new"}, (number, seen["at_kill"])
        if seen["killed"]:
            assert current(module, seen["end"]) in ends, (number, seen["end"])
        hidden = [name for name in seen["end"] if any(part.startswith(".") for part in name.split("/"))]
        assert hidden == [], number
        if module == "directory":
            assert len({name.split("/")[2] for name in seen["end"] if name.startswith("app/versions/")}) == 2
    assert len(kills) >= (2 if module == "directory" or killed != "ArtifactCommit" else 0)
