"""What ``release create`` reads: files that are gone, cut off, growing or no files at all are refused by name."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.server
import io
import lzma
import os
import random
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.errors import ArtifactUnreadable
from driftseed.publish.archives import check_archive
from driftseed.publish.artifacts import ArtifactArgument, read_artifact, split_artifact, steady
from driftseed.publish.download import download


def ignore(_what: str, _count: int) -> None:
    """Progress that nobody watches."""


# --- FILE[:SELECTOR] ---------------------------------------------------------------------------------

names = st.text(alphabet="abc:.", min_size=1, max_size=12).filter(lambda name: name not in {".", ".."})
selectors = st.from_regex(r"\A[a-z]{1,5}(=[a-z]{1,5})?(,[a-z]{1,5}!=[a-z]{1,5})?\Z")


@given(name=names, selector=selectors)
def test_a_file_with_colons_in_its_name_is_found(name: str, selector: str) -> None:
    assert split_artifact(f"{name}:{selector}", {name}.__contains__) == ArtifactArgument(name, selector)
    assert split_artifact(name, {name}.__contains__) == ArtifactArgument(name, "")


@given(text=st.text(alphabet="ab:=", max_size=20), files=st.sets(names, max_size=4))
def test_the_longest_file_wins_and_nothing_is_lost(text: str, files: set[str]) -> None:
    candidates = [name for name in files if text == name or text.startswith(f"{name}:")]
    if not candidates:
        with pytest.raises(ArtifactUnreadable, match="there is no file"):
            split_artifact(text, files.__contains__)
        return
    found = split_artifact(text, files.__contains__)
    assert found.source == max(candidates, key=len)
    assert text in {found.source, f"{found.source}:{found.selector}"}


@pytest.mark.parametrize(
    ("text", "source", "selector"),
    [
        ("https://h.example/a.tar.gz", "https://h.example/a.tar.gz", ""),
        ("https://h.example:8443/x/a.tar.gz:arch=arm64", "https://h.example:8443/x/a.tar.gz", "arch=arm64"),
        ("http://[::1]:80/a:os.id in (debian,alpine)", "http://[::1]:80/a", "os.id in (debian,alpine)"),
        ("http://h/a%3Ab.tar:!x", "http://h/a%3Ab.tar", "!x"),
    ],
)
def test_urls_are_split_after_their_path(text: str, source: str, selector: str) -> None:
    assert split_artifact(text) == ArtifactArgument(source, selector)


@pytest.mark.parametrize(
    "text", ["http://", "http://h", "http://h/", "https:///a", "http://h/:arch=arm64", ""]
)
def test_a_url_without_a_file_is_refused(text: str) -> None:
    with pytest.raises(ArtifactUnreadable):
        split_artifact(text)


# --- files -------------------------------------------------------------------------------------------


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    data = random.Random(7).randbytes(3_000_000)
    (tmp_path / "app.bin").write_bytes(data)
    seen: list[int] = []
    found = read_artifact(tmp_path / "app.bin", "app.bin", lambda _what, count: seen.append(count))
    assert (found.length, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert sum(seen) == len(data)


def fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.touch(), "is empty"),
        (fifo, "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "there is no file"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "app.bin"
    make(path)
    with pytest.raises(ArtifactUnreadable, match=says):
        read_artifact(path, "app.bin", ignore)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not root, which may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    path = tmp_path / "app.bin"
    path.write_bytes(b"x")
    path.chmod(0)
    return path


def test_a_file_that_this_user_may_not_read_is_refused(unreadable: Path, nobody: None) -> None:
    path = unreadable
    with pytest.raises(ArtifactUnreadable, match="Permission denied"):
        read_artifact(path, "app.bin", ignore)


@pytest.mark.parametrize("name", ["-rf", "a b", "..", "a/b", "x" * 129, "ä"])
def test_a_name_that_devices_could_not_store_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "app.bin").write_bytes(b"x")
    with pytest.raises(ArtifactUnreadable, match="of this name"):
        read_artifact(tmp_path / "app.bin", name, ignore)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"y" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [grow, rewrite, lambda path: os.truncate(path, 10)])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "app.bin"
    path.write_bytes(b"x" * 3_000_000)
    changed = False

    def progress(_what: str, _count: int) -> None:
        nonlocal changed
        if not changed:
            change(path)
            changed = True

    with pytest.raises(ArtifactUnreadable, match="changed while it was read"):
        read_artifact(path, "app.bin", progress)


def test_a_file_that_was_not_read_to_its_end_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "app.bin"
    path.write_bytes(b"x" * 100)
    with pytest.raises(ArtifactUnreadable, match="changed"), steady(path) as stream:
        assert stream.read(10) == b"x" * 10


# --- archives ----------------------------------------------------------------------------------------


def make_tar(members: int = 3, size: int = 5000) -> bytes:
    buffer = io.BytesIO()
    source = random.Random(11)
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(members):
            info = tarfile.TarInfo(f"lib/module_{number}.py")
            info.size = size
            archive.addfile(info, io.BytesIO(source.randbytes(size)))
    return buffer.getvalue()


def make_zip(compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for number in range(3):
            archive.writestr(f"lib/module_{number}.py", random.Random(number).randbytes(5000))
    return buffer.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


@pytest.mark.parametrize("kind", PACKERS)
def test_a_whole_tar_archive_is_counted(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"app.{kind}"
    path.write_bytes(PACKERS[kind](make_tar()))
    assert check_archive(path) == 3


def test_a_whole_zip_archive_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "app.zip"
    path.write_bytes(make_zip())
    assert check_archive(path) == 3


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_a_truncated_tar_archive_is_refused_with_the_place(
    tmp_path: Path, kind: str, fraction: float
) -> None:
    whole = PACKERS[kind](make_tar(size=20_000))
    path = tmp_path / f"app.{kind}"
    # The end of an uncompressed archive is padding: cut into what matters.
    end = 3 * (512 + 20_480) if kind == "tar" else len(whole)
    path.write_bytes(whole[: int(end * fraction)])
    with pytest.raises(ArtifactUnreadable, match="not a whole tar archive") as caught:
        check_archive(path)
    assert "near byte" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_tar_archive_cut_off_between_two_members_is_refused(tmp_path: Path, members: int) -> None:
    """Such a file is unpacked by tar without a word, and a device would run half an application."""
    path = tmp_path / "app.tar"
    path.write_bytes(make_tar(size=1024)[: members * 1536])
    with pytest.raises(ArtifactUnreadable, match=rf"after 'lib/module_{members - 1}.py'.*cut off between"):
        check_archive(path)


def test_a_tar_archive_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    """Python's tarfile ends at such a header as if the archive ended there."""
    data = bytearray(make_tar(size=1024))
    data[1536 + 100] ^= 0xFF
    path = tmp_path / "app.tar"
    path.write_bytes(data)
    with pytest.raises(ArtifactUnreadable, match=r"after 'lib/module_0.py'.*no header"):
        check_archive(path)


def test_a_gzip_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(make_tar()))
    data[-6] ^= 0xFF
    path = tmp_path / "app.tar.gz"
    path.write_bytes(data)
    with pytest.raises(ArtifactUnreadable, match="CRC"):
        check_archive(path)


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.99])
def test_a_truncated_zip_archive_is_refused(tmp_path: Path, fraction: float) -> None:
    whole = make_zip()
    path = tmp_path / "app.zip"
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(ArtifactUnreadable, match="not a whole zip archive"):
        check_archive(path)


def test_a_zip_archive_with_a_damaged_member_is_refused_by_its_name(tmp_path: Path) -> None:
    data = bytearray(make_zip(zipfile.ZIP_STORED))
    data[300] ^= 0xFF
    path = tmp_path / "app.zip"
    path.write_bytes(data)
    with pytest.raises(ArtifactUnreadable, match=r"in 'lib/module_0.py'.*CRC"):
        check_archive(path)


@pytest.mark.parametrize(
    "data", [b"#!/bin/sh\necho hello\n", b"PK\x03\x04", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\x00"]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "app"
    path.write_bytes(data)
    with pytest.raises(ArtifactUnreadable, match="not a whole"):
        check_archive(path)


# --- downloads ---------------------------------------------------------------------------------------

BODY = random.Random(3).randbytes(700_000)


class _Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/app.tar":
            self._send(200, len(BODY), BODY)
        elif self.path == "/cut.tar":
            self._send(200, len(BODY), BODY[:1000])
        elif self.path == "/moved.tar":
            self.send_response(302)
            self.send_header("Location", "/app.tar")
            self.end_headers()
        elif self.path == "/loop.tar":
            self.send_response(302)
            self.send_header("Location", "/loop.tar")
            self.end_headers()
        else:
            self._send(404, 0, b"")

    def _send(self, status: int, length: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join(timeout=5)


@pytest.mark.parametrize("name", ["app.tar", "moved.tar"])
def test_a_url_is_downloaded(server: str, tmp_path: Path, name: str) -> None:
    assert download(f"{server}/{name}", tmp_path, ignore).read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "says"), [("cut.tar", "after 1000 bytes"), ("gone.tar", "status 404"), ("loop.tar", "redirect")]
)
def test_a_download_that_fails_says_why(server: str, tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ArtifactUnreadable, match=says):
        download(f"{server}/{name}", tmp_path, ignore)


def test_a_download_is_bounded(server: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match="more than the 1000 bytes"):
        download(f"{server}/app.tar", tmp_path, ignore, most=1000)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match="cannot be downloaded"):
        download("http://127.0.0.1:1/app.tar", tmp_path, ignore)
