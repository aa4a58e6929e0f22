"""The demo: that it does all it promises on real processes, and that it would not say so if it did not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driftseed.core.errors import WouldOverwrite
from driftseed.demo import payload
from driftseed.demo.result import DeviceResult, HubDeath, Refusal, Result
from driftseed.demo.story import ATTACKS
from driftseed.demo.workspace import Workspace
from driftseed.node.unixsocket import SOCKET_PATH_BYTES_MAX

WHOLE_S = 180.0
"""Seconds for all of a demo while the other tests run; alone it takes some twenty."""
REASONS = [reason for _, reason in ATTACKS]


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a demo whose files are in ``directory``."""
    return subprocess.Popen(
        [sys.executable, "-m", "driftseed", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(directory)},
    )


def still_running(directory: Path) -> list[str]:
    """Command lines of processes that name the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it ended meanwhile
            if str(directory) in command:
                found.append(command)
    return found


def test_the_demo_shows_everything_that_it_promises(short_path: Path) -> None:
    """Hub killed, release rolled back, attacks refused, every file compared; one object, and nothing left."""
    demo = start(short_path, "--devices", "3", "--json")
    out, told = demo.communicate(timeout=WHOLE_S)
    assert demo.returncode == 0, told + out
    result: dict[str, Any] = json.loads(out)
    assert result["ok"]
    assert result["problems"] == []
    devices = result["devices"]
    assert [each["version"] for each in devices] == ["2.0"] * 3
    assert {each["arch"] for each in devices} == {"arm64", "amd64"}
    assert all(each["files_compared"] > 500 and each["seconds"] > 0 for each in devices)
    assert result["rollbacks"] == 3
    assert all("health-check-failed" in each["rollback"] for each in devices)
    assert result["payload_bytes"] > 20e6
    assert 0 < result["origin_copies"] < 3
    assert result["hub"]["exit_status"] == -signal.SIGKILL
    assert result["hub"]["metadata"]
    assert result["hub"]["content"]
    (was_off,) = [each for each in devices if each["was_off"]]
    assert result["hub"]["off"] == [was_off["name"]]
    assert was_off["sources"].keys() == {"peer"}
    names = sorted(each["name"] for each in devices)
    assert {each["reason"]: sorted(each["devices"]) for each in result["refusals"]} == dict.fromkeys(
        REASONS, names
    )
    assert list(short_path.iterdir()) == []
    assert still_running(short_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_demo_that_is_interrupted_leaves_no_process_and_no_file(
    short_path: Path, number: signal.Signals
) -> None:
    demo = start(short_path, "--devices", "2")
    assert demo.stdout is not None
    lines: Iterator[str] = iter(demo.stdout.readline, "")
    assert any("hub at" in line for line in lines)
    assert still_running(short_path)
    demo.send_signal(number)
    out, told = demo.communicate(timeout=60)
    assert demo.returncode == 128 + number, told + out
    assert f"ended by {number.name}" in out
    assert list(short_path.iterdir()) == []
    assert still_running(short_path) == []


# --- the verdict --------------------------------------------------------------------------------


def all_well() -> Result:
    device = DeviceResult(
        name="dev-01", device="00", board="b", arch="a", version="2.0", files_compared=9, rollback="why"
    )
    return Result(
        devices=[device],
        refusals=[Refusal(attack=attack, reason=reason, devices=["dev-01"]) for attack, reason in ATTACKS],
        hub=HubDeath(at=1, exit_status=-9, metadata=["dev-01"], content=[], fetching={}, off=[]),
    )


def test_all_is_well_when_all_is_well() -> None:
    result = all_well()
    result.judge("2.0", REASONS)
    assert (result.ok, result.problems) == (True, [])


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("version", "3.0", "dev-01 has 3.0 instead of 2.0"),
        ("version", "", "dev-01 has nothing instead of 2.0"),
        ("files_compared", 0, "what dev-01 has installed was not compared"),
        ("rollback", "", "dev-01 did not roll back"),
    ],
)
def test_a_device_that_is_not_as_it_must_be_fails_the_demo(field: str, value: object, problem: str) -> None:
    result = all_well()
    setattr(result.devices[0], field, value)
    result.judge("2.0", REASONS)
    assert (result.ok, result.problems) == (False, [problem])


@pytest.mark.parametrize("index", range(len(ATTACKS)))
def test_an_attack_that_a_device_did_not_refuse_fails_the_demo(index: int) -> None:
    result = all_well()
    result.refusals[index].devices.clear()
    result.judge("2.0", REASONS)
    assert (result.ok, result.problems) == (False, [f"{REASONS[index]} was not seen on dev-01"])


def test_a_demo_without_devices_or_with_a_living_hub_fails() -> None:
    result = Result()
    result.judge("2.0", REASONS)
    assert not result.ok
    assert "no device was started" in result.problems
    assert "the hub was not killed" in result.problems


def test_what_the_origin_sent_is_counted_in_payloads() -> None:
    result = all_well()
    result.devices[0].sources = {"hub": 150, "publisher": 50, "peer": 1000}
    result.count_origin(100)
    assert (result.origin_bytes, result.origin_copies) == (200, 2.0)


# --- comparing ----------------------------------------------------------------------------------


def test_every_difference_of_an_installed_tree_is_found(tmp_path: Path) -> None:
    published = {"same": b"1", "changed": b"22", "missing": b"3", "d/linked": b"4"}
    (tmp_path / "d").mkdir()
    (tmp_path / "same").write_bytes(b"1")
    (tmp_path / "changed").write_bytes(b"2x")
    (tmp_path / "d/more").write_bytes(b"")
    (tmp_path / "elsewhere").write_bytes(b"4")
    (tmp_path / "d/linked").symlink_to(tmp_path / "elsewhere")
    assert sorted(payload.differences(tmp_path, published)) == [
        "changed differs",
        "d/linked differs",
        "d/more was not published",
        "elsewhere was not published",
        "missing is missing",
    ]


def test_the_versions_of_the_library_really_differ(tmp_path: Path) -> None:
    library = payload.Library(
        tmp_path,
        {
            "cgi.py": b"old",
            "lib-dynload/_crypt.so": b"old",
            "json/__init__.py": b"from .decoder import x\n",
            "json/decoder.py": b'"""doc"""\nimport re\n',
        },
    )
    trees = {
        (version, arch): library.version(version, arch)
        for version in (payload.GOOD, payload.NEXT, payload.BROKEN)
        for arch in payload.ARCHITECTURES
    }
    assert len({tuple(sorted(tree.items())) for tree in trees.values()}) == len(trees)
    assert "cgi.py" in trees[payload.GOOD, "arm64"]
    assert not {"cgi.py", "lib-dynload/_crypt.so"} & trees[payload.NEXT, "arm64"].keys()
    with pytest.raises(SyntaxError):
        compile(trees[payload.BROKEN, "amd64"]["json/decoder.py"], "decoder.py", "exec")


def test_an_archive_holds_what_was_packed_and_is_always_the_same(tmp_path: Path) -> None:
    tree = {"b/x": b"1" * 5000, "a": b"", "b/y" + "z" * 120: b"3"}
    for name in ("one", "two"):
        payload.pack(tree, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert payload.unpack(tmp_path / "one") == tree


# --- where the files are ------------------------------------------------------------------------


def test_a_kept_directory_with_a_long_name_has_a_short_one_meanwhile(tmp_path: Path) -> None:
    keep = tmp_path / ("long" * 30)
    workspace = Workspace(keep)
    link = workspace.path
    assert workspace.linked
    assert len(os.fsencode(workspace.devices / "01" / "agent.sock")) <= SOCKET_PATH_BYTES_MAX
    (workspace.devices / "01").mkdir()
    workspace.close()
    assert (keep / "devices" / "01").is_dir()
    assert not link.parent.exists()


def test_a_directory_with_something_in_it_is_not_kept_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(WouldOverwrite):
        Workspace(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]
