"""Archives of an attacker who has the build system: nothing outside, nothing endless, nothing set-user-id."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.errors import DriftseedError, ModuleFailed
from driftseed.install.modules.unpack import unpack
from support_install import make_tar


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "outer" / "target"
    path.mkdir(parents=True)
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def tar_of(path: Path, *entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for each in entries:
            info, data = each if isinstance(each, tuple) else (each, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def nothing_outside(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_compression_is_unpacked(mode: str, target: Path, tmp_path: Path) -> None:
    unpack(make_tar(tmp_path / "a", {"bin/run.sh": b"#!", "lib/x": b"y" * 100_000}, mode=mode), target)
    assert (target / "lib" / "x").read_bytes() == b"y" * 100_000
    assert stat.S_IMODE((target / "bin" / "run.sh").stat().st_mode) == 0o755


def test_a_zip_keeps_modes_and_links(target: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        info = zipfile.ZipInfo("bin/run", (2020, 1, 2, 3, 4, 6))
        info.external_attr = (stat.S_IFREG | 0o4755) << 16
        packed.writestr(info, b"#!")
        link = zipfile.ZipInfo("link", (2020, 13, 40, 0, 0, 0))
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "bin/run")
    unpack(tmp_path / "a.zip", target)
    status = (target / "bin" / "run").stat()
    assert stat.S_IMODE(status.st_mode) == 0o755
    assert status.st_mtime == 1577934246
    assert (target / "link").read_bytes() == b"#!"


def test_directories_links_and_times_are_kept(target: Path, tmp_path: Path) -> None:
    file = entry("d/f", mode=0o640)
    file.mtime = 1000
    unpack(
        tar_of(
            tmp_path / "a.tar",
            entry("./", tarfile.DIRTYPE, mode=0o755),
            entry("d", tarfile.DIRTYPE, mode=0o500),
            (file, b"content"),
            entry("d/s", tarfile.SYMTYPE, link="../d/./f"),
            entry("h", tarfile.LNKTYPE, link="d/f"),
            entry("empty", tarfile.DIRTYPE, mode=0o750),
        ),
        target,
    )
    assert (target / "h").read_bytes() == (target / "d" / "s").read_bytes() == b"content"
    assert (target / "d" / "f").stat().st_mtime == 1000
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "empty").stat().st_mode) == 0o750


ATTACKS: dict[str, list[tarfile.TarInfo]] = {
    "absolute name": [entry("/tmp/evil")],
    "name upwards": [entry("../evil")],
    "name upwards in the middle": [entry("a/../../evil")],
    "name with dots that stays inside": [entry("a/../b")],
    "absolute link": [entry("l", tarfile.SYMTYPE, link="/etc/passwd")],
    "link upwards": [entry("l", tarfile.SYMTYPE, link="../../evil")],
    "link upwards from below": [entry("d/l", tarfile.SYMTYPE, link="../../evil")],
    "file through a link": [entry("l", tarfile.SYMTYPE, link="."), entry("l/f")],
    "file through a link by another spelling": [entry("l", tarfile.SYMTYPE, link="."), entry("./l//f")],
    "directory through a link": [entry("l", tarfile.SYMTYPE, link="d"), entry("l/d", tarfile.DIRTYPE)],
    "directory that is a link": [entry("l", tarfile.SYMTYPE, link="."), entry("l", tarfile.DIRTYPE)],
    "link by way of another": [
        entry("d/up", tarfile.SYMTYPE, link=".."),
        entry("l", tarfile.SYMTYPE, link="d/up/.."),
    ],
    "hard link upwards": [entry("h", tarfile.LNKTYPE, link="../victim")],
    "hard link to an absolute path": [entry("h", tarfile.LNKTYPE, link="/etc/passwd")],
    "hard link to a link": [
        entry("s", tarfile.SYMTYPE, link="x"),
        entry("h", tarfile.LNKTYPE, link="s"),
    ],
    "hard link through a link": [
        entry("s", tarfile.SYMTYPE, link="."),
        entry("h", tarfile.LNKTYPE, link="s/x"),
    ],
    "character device": [entry("c", tarfile.CHRTYPE)],
    "block device": [entry("b", tarfile.BLKTYPE)],
    "named pipe": [entry("p", tarfile.FIFOTYPE)],
    "the root as a file": [entry(".")],
    "a file below a file": [entry("f"), entry("f/g")],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_and_nothing_is_written_outside(
    attack: str, target: Path, tmp_path: Path
) -> None:
    archive = tar_of(tmp_path / "a.tar", *ATTACKS[attack])
    with pytest.raises((ModuleFailed, OSError)):
        unpack(archive, target)
    assert nothing_outside(target)


def test_a_file_that_comes_after_a_link_of_its_name_replaces_the_link(target: Path, tmp_path: Path) -> None:
    archive = tar_of(
        tmp_path / "a.tar",
        (entry("victim"), b"precious"),
        entry("l", tarfile.SYMTYPE, link="victim"),
        (entry("l"), b"new"),
    )
    unpack(archive, target)
    assert (target / "victim").read_bytes() == b"precious"
    assert not (target / "l").is_symlink()


def test_set_user_id_is_dropped(target: Path, tmp_path: Path) -> None:
    unpack(
        tar_of(tmp_path / "a.tar", entry("f", mode=0o6777), entry("d", tarfile.DIRTYPE, mode=0o7777)), target
    )
    assert stat.S_IMODE((target / "f").stat().st_mode) == 0o777
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o777


def bomb_gz(path: Path) -> None:
    make_tar(path, {"zeros": bytes(5_000_000)})
    assert path.stat().st_size < 10_000


def bomb_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros", bytes(5_000_000))


@pytest.mark.parametrize("bomb", [bomb_gz, bomb_zip])
def test_a_decompression_bomb_ends_at_the_limit(
    bomb: Callable[[Path], None], target: Path, tmp_path: Path
) -> None:
    bomb(tmp_path / "bomb")
    with pytest.raises(ModuleFailed, match="more than 2000000 bytes"):
        unpack(tmp_path / "bomb", target, bytes_max=2_000_000)
    assert sum(path.stat().st_size for path in target.rglob("*")) <= 2_000_000


def test_the_number_of_entries_is_bounded_exactly(target: Path, tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a", {f"f{number}": b"" for number in range(10)})
    unpack(archive, target, entries_max=10)
    other = target.parent / "other"
    other.mkdir()
    with pytest.raises(ModuleFailed, match="more than 9 entries"):
        unpack(archive, other, entries_max=9)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_truncated_archive_is_refused(mode: str, target: Path, tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a", {"f": os.urandom(100_000)}, mode=mode)
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(ModuleFailed, match="cannot be unpacked"):
        unpack(archive, target)


def test_what_is_no_archive_is_refused(target: Path, tmp_path: Path) -> None:
    for data in (b"", b"#!/bin/sh\n", os.urandom(5000)):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(ModuleFailed):
            unpack(tmp_path / "a", target)


@given(data=st.data())
def test_a_damaged_archive_never_surprises(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any bytes changed: it is unpacked or refused, with an error that can be shown, and nothing outside."""
    place = tmp_path_factory.mktemp("fuzz")
    outer = place / "outer"
    (outer / "target").mkdir(parents=True)
    mode = data.draw(st.sampled_from(["w", "w:gz", "w:bz2", "w:xz", "zip"]))
    archive = place / "a"
    if mode == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr("d/f", b"content")
    else:
        make_tar(archive, {"d/f": b"content", "g": b"x" * 600}, mode=mode)
    content = bytearray(archive.read_bytes())
    for at, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=6)
    ):
        content[at] = byte
    archive.write_bytes(content)
    with contextlib.suppress(DriftseedError, OSError):
        unpack(archive, outer / "target", bytes_max=1_000_000, entries_max=100)
    assert [path.name for path in outer.iterdir()] == ["target"]
