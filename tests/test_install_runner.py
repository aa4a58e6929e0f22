"""Finding modules and calling them; the File API tree and the streams."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftseed.core.errors import (
    ContentMismatch,
    DiskFull,
    Misuse,
    ModuleFailed,
    ModuleMissing,
    ModuleTimeout,
    UnsafePermissions,
)
from driftseed.core.lifecycle import State
from driftseed.core.updates import Reboot
from driftseed.install.runner import BUILT_IN, ModuleRunner, parse_reboot, parse_yes_no
from driftseed.install.workdir import Workdir, copy_verified
from support_install import Device, content, put, release_of


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


def module(device: Device, text: str, *, name: str = "mine") -> Path:
    path = device.modules / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def runner(device: Device) -> ModuleRunner:
    return ModuleRunner([device.root / "absent", device.modules], device.run_dir, {"A": "1"})


async def call(device: Device, state: str, *, timeout_s: float = 20.0) -> str:
    workdir = device.root / "work"
    workdir.mkdir(exist_ok=True)
    return (await runner(device).run("mine", state, workdir, timeout_s, {"B": "2"})).output


# --- finding ----------------------------------------------------------------------------------------


def test_names_are_the_built_in_ones_and_what_can_be_called(device: Device) -> None:
    module(device, "true")
    (device.modules / "README").write_text("not a module")
    (device.modules / "sub").mkdir()
    assert runner(device).names() == BUILT_IN | {"mine"}


def test_a_built_in_module_cannot_be_replaced(device: Device) -> None:
    path = module(device, "true", name="directory")
    assert str(path) not in runner(device).command("directory")


def test_a_missing_module_says_where_it_is_looked_for(device: Device) -> None:
    with pytest.raises(ModuleMissing) as caught:
        runner(device).command("mine")
    assert str(device.modules) in caught.value.hint
    with pytest.raises(Misuse):
        runner(device).command("../mine")


@pytest.mark.parametrize(
    ("mode", "mend"), [(0o644, "chmod 755"), (0o775, "chmod go-w"), (0o757, "chmod go-w")]
)
def test_a_module_that_cannot_or_must_not_be_run_is_refused_with_the_mend(
    mode: int, mend: str, device: Device
) -> None:
    path = module(device, "true")
    path.chmod(mode)
    with pytest.raises((ModuleMissing, UnsafePermissions)) as caught:
        runner(device).command("mine")
    assert caught.value.hint == f"{mend} {path}"
    assert "mine" not in runner(device).names()


def test_a_directory_in_which_others_can_put_modules_is_refused(device: Device) -> None:
    module(device, "true")
    device.modules.chmod(0o777)
    with pytest.raises(UnsafePermissions):
        runner(device).command("mine")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_module_of_another_user_is_refused(device: Device) -> None:
    os.chown(module(device, "true"), 4711, -1)
    with pytest.raises(UnsafePermissions, match="another user"):
        runner(device).command("mine")


# --- calling ----------------------------------------------------------------------------------------


async def test_a_call_is_as_the_protocol_says(device: Device) -> None:
    """Two arguments, the second one the absolute current directory."""
    module(device, 'echo "$#" "$1" "$2"; pwd; echo "$A$B"')
    workdir = device.root / "work"
    assert (await call(device, "ArtifactInstall")).splitlines() == [
        f"2 ArtifactInstall {workdir}",
        str(workdir),
        "12",
    ]


async def test_failures_say_what_the_module_printed(device: Device) -> None:
    module(device, "echo no such partition >&2; exit 4")
    with pytest.raises(ModuleFailed, match=r"mine returned 4 in ArtifactInstall: no such partition"):
        await call(device, "ArtifactInstall")
    module(device, "kill -9 $$")
    with pytest.raises(ModuleFailed, match="signal 9"):
        await call(device, "ArtifactInstall")


async def test_a_module_can_say_that_the_disk_is_full(device: Device) -> None:
    module(device, f"exit {DiskFull.exit_code}")
    with pytest.raises(DiskFull):
        await call(device, "ArtifactInstall")


async def test_a_module_that_hangs_is_a_timeout(device: Device) -> None:
    module(device, "echo waiting; sleep 1000")
    with pytest.raises(ModuleTimeout, match=r"did not end Download in 0\.3 s and was killed: waiting"):
        await call(device, "Download", timeout_s=0.3)


async def test_a_module_whose_interpreter_is_missing_fails(device: Device) -> None:
    path = module(device, "")
    path.write_text("#!/no/such/interpreter\n")
    with pytest.raises(ModuleFailed, match="interpreter is missing"):
        await call(device, "Download")


async def test_an_answer_is_one_line(device: Device) -> None:
    workdir = device.root / "work"
    workdir.mkdir()
    module(device, "echo Yes; echo not an answer >&2")
    assert await runner(device).ask("mine", "SupportsRollback", workdir, 20) == "Yes"
    module(device, "echo Yes; echo No")
    with pytest.raises(ModuleFailed, match="more than one line"):
        await runner(device).ask("mine", "SupportsRollback", workdir, 20)


def test_answers_other_than_the_protocols_are_failures() -> None:
    assert [parse_yes_no("m", "q", answer) for answer in ("", "No", "Yes")] == [False, False, True]
    assert [parse_reboot("m", each) for each in ("", "No", "Yes", "Automatic")] == [
        Reboot.NO,
        Reboot.NO,
        Reboot.YES,
        Reboot.AUTOMATIC,
    ]
    for wrong in ("yes", "Maybe", "true"):
        with pytest.raises(ModuleFailed):
            parse_yes_no("m", "q", wrong)
        with pytest.raises(ModuleFailed):
            parse_reboot("m", wrong)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
async def test_built_in_modules_do_nothing_when_they_do_not_know_a_state(name: str, device: Device) -> None:
    """The protocol may grow."""
    workdir = device.root / "work"
    workdir.mkdir()
    result = await runner(device).run(name, "SomethingNew", workdir, 20)
    assert result.output == ""


# --- the File API tree ------------------------------------------------------------------------------

_SNAPSHOT = r"""
case "$1" in
    ArtifactInstall) find . -type f | sort > "$OUT/files"; cp -r . "$OUT/tree" ;;
esac
"""


def empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


async def test_the_tree_is_laid_out_as_documented(device: Device, payload: Path) -> None:
    out = device.root / "out"
    out.mkdir()
    module(device, _SNAPSHOT.replace("$OUT", str(out)))
    first, artifact = release_of(payload, module="mine", version="1")
    assert await device.install(1, first, artifact) is State.SUCCEEDED
    empty(out)
    second, artifact = release_of(payload, module="mine", version="2", meta={"b": 1, "a": ["x"]})
    assert await device.install(2, second, artifact) is State.SUCCEEDED
    assert (out / "files").read_text().split() == sorted(
        f"./{name}"
        for name in (
            "current_artifact_group",
            "current_artifact_name",
            "current_device_type",
            "files/payload.bin",
            "header/artifact_group",
            "header/artifact_name",
            "header/header-info",
            "header/meta-data",
            "header/payload_type",
            "header/type-info",
            "version",
        )
    )
    tree = out / "tree"
    assert (tree / "tmp").is_dir()
    assert (tree / "version").read_text() == "3\n"
    assert (tree / "current_artifact_name").read_text() == "app-1\n"
    assert (tree / "current_device_type").read_text() == "testboard\n"
    header = tree / "header"
    assert (header / "artifact_name").read_text() == "app-2"
    assert (header / "payload_type").read_text() == "mine"
    assert json.loads((header / "meta-data").read_text()) == {"a": ["x"], "b": 1}
    assert json.loads((header / "header-info").read_text())["payloads"] == [{"type": "mine"}]
    assert json.loads((header / "type-info").read_text())["artifact_provides"] == {"app.version": "2"}
    assert (tree / "files" / "payload.bin").read_bytes() == b"content"
    assert device.left() == []


async def test_a_module_that_writes_to_its_file_does_not_change_the_store(
    device: Device, payload: Path
) -> None:
    module(device, 'case "$1" in ArtifactInstall) echo broken > files/payload.bin ;; esac')
    release, artifact = release_of(payload, module="mine")
    assert await device.install(1, release, artifact) is State.SUCCEEDED
    assert content(payload) == b"content"


def test_a_copy_is_what_was_signed_or_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(9_000_000))
    _, artifact = release_of(source)
    assert list(copy_verified(source, tmp_path / "copy", artifact.artifact))[-1] == 9_000_000
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    for change in (b"x", b""):
        data = bytearray(source.read_bytes())
        data[5_000_000:5_000_001] = change * (1 if change else 0)
        source.write_bytes(data)
        with pytest.raises(ContentMismatch):
            list(copy_verified(source, tmp_path / "copy", artifact.artifact))
    source.write_bytes(b"y" * 40_000_000)  # one that grows is not read to its end
    with pytest.raises(ContentMismatch):
        list(copy_verified(source, tmp_path / "copy", artifact.artifact))
    assert (tmp_path / "copy").stat().st_size <= 13_000_000


def test_the_working_directory_is_for_its_owner_alone(device: Device, payload: Path) -> None:
    release, _ = release_of(payload, module="mine")
    workdir = Workdir(device.run_dir, "x")
    workdir.prepare(release, previous=None, device_type="")
    assert stat.S_IMODE(workdir.tree.stat().st_mode) == 0o700
    assert stat.S_IMODE(device.run_dir.stat().st_mode) == 0o700
    assert (workdir.tree / "current_artifact_name").read_bytes() == b""
    assert workdir.manifest() == release.manifest
    workdir.remove()
    assert workdir.manifest() is None
    workdir.remove()


# --- streams ----------------------------------------------------------------------------------------

_STREAMING = r"""
case "$1" in
    ProvidePayloadFileSizes) echo "$SIZES" ;;
    Download|DownloadWithFileSizes)
        while line="$(cat stream-next)" && [ -n "$line" ]; do
            echo "$1 $line" >> "$OUT/lines"
            cat "${line%% *}" > "$OUT/content"
        done ;;
    ArtifactInstall) find . > "$OUT/tree" ;;
esac
"""


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ("No", "Download streams/payload.bin"),
        ("Yes", "DownloadWithFileSizes streams/payload.bin 3000000"),
    ],
)
async def test_a_module_can_take_the_content_as_a_stream(
    sizes: str, line: str, device: Device, payload: Path
) -> None:
    out = device.root / "out"
    out.mkdir()
    put(payload, os.urandom(3_000_000))
    module(device, _STREAMING.replace("$OUT", str(out)).replace("$SIZES", sizes))
    release, artifact = release_of(payload, module="mine")
    assert await device.install(1, release, artifact) is State.SUCCEEDED
    assert (out / "lines").read_text() == f"{line}\n"
    assert (out / "content").read_bytes() == content(payload)
    # It was streamed, so there is no files tree; and the streams tree is gone.
    assert not any(name in (out / "tree").read_text() for name in ("files", "stream"))


@pytest.mark.parametrize(
    "reading",
    [
        "read line < stream-next",  # the name only
        "cat stream-next; head -c 1 streams/payload.bin",
        "cat stream-next; cat streams/payload.bin > /dev/null",  # not the end
    ],
)
async def test_a_module_that_does_not_read_to_the_end_has_failed(
    reading: str, device: Device, payload: Path
) -> None:
    put(payload, bytes(3_000_000))
    module(device, f'case "$1" in Download) {reading} ;; esac')
    release, artifact = release_of(payload, module="mine")
    assert await device.install(1, release, artifact) is State.FAILED
    assert "did not end" in device.row().detail


@pytest.mark.parametrize("where", ["true", "rm -r stream-next streams", "cat stream-next; rm -r streams"])
async def test_a_module_that_fails_in_download_does_not_leave_the_agent_waiting(
    where: str, device: Device, payload: Path
) -> None:
    module(device, f'case "$1" in Download) {where}; exit 1 ;; esac')
    release, artifact = release_of(payload, module="mine")
    async with asyncio.timeout(20):
        assert await device.install(1, release, artifact) is State.FAILED
    assert device.row().reason == "module-failed"


async def test_a_module_that_hangs_on_the_stream_is_killed(device: Device, payload: Path) -> None:
    put(payload, bytes(3_000_000))
    module(device, 'case "$1" in Download) exec 3< streams/payload.bin; sleep 1000 ;; esac')
    release, artifact = release_of(payload, module="mine", module_timeout_s=0.5)
    assert await device.install(1, release, artifact) is State.FAILED
    assert device.row().reason == "module-timeout"


async def test_a_stream_that_is_not_what_was_verified_is_never_installed(
    device: Device, payload: Path
) -> None:
    out = device.root / "out"
    out.mkdir()
    module(device, _STREAMING.replace("$OUT", str(out)).replace("$SIZES", "No"))
    release, artifact = release_of(payload, module="mine")
    put(payload, b"CONTENT")
    assert hashlib.sha256(b"CONTENT").hexdigest() != artifact.artifact.sha256
    assert await device.install(1, release, artifact) is State.FAILED
    assert device.row().reason == "content-mismatch"
    assert not (out / "tree").exists()
