"""What somebody hands to an agent: nothing unverified gets in, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.agent import submissions as module
from driftseed.agent.staged import StagedFiles, parse_file_name
from driftseed.agent.submissions import DIRECTORY, Submissions
from driftseed.core import limits
from driftseed.core.errors import (
    Conflict,
    ContentMismatch,
    DiskFull,
    DriftseedError,
    FileMissing,
    MetadataInvalid,
    MetadataReplayed,
    Misuse,
    NotFound,
    PeerMisbehaved,
    RequestRefused,
)
from driftseed.store.files import free_bytes
from driftseed.trust.chain import TIMESTAMP_NAME
from driftseed.trust.repository import FleetRepository
from support_agent import TrustingTaker
from support_trust import FakeClock, Thief, add_release, make_fleet, tree

WAIT_S = 20.0
CONTENT = os.urandom(3 * limits.MIB)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


async def parts(data: bytes, size: int = 64 * limits.KIB) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> FleetRepository:
    """A fleet with one release that is deployed to all."""
    directory = tmp_path_factory.mktemp("publisher")
    repository = make_fleet(directory / "fleet", FakeClock())
    add_release(repository, directory, contents={"": CONTENT})
    repository.add_deployment(deployment_id=uuid4().hex, release="app", version="1.0")
    return repository


@pytest.fixture
def taker(tmp_path: Path, repository: FleetRepository) -> TrustingTaker:
    return TrustingTaker(tmp_path / "agent", repository.first_root, FakeClock())


@pytest.fixture
async def submissions(tmp_path: Path, taker: TrustingTaker) -> AsyncIterator[Submissions]:
    numbers = itertools.count(1)
    submissions = Submissions(tmp_path, taker, new_id=lambda: f"s{next(numbers)}")
    await submissions.start()
    yield submissions
    await submissions.close()
    assert left(tmp_path) == []


def left(data: Path) -> list[str]:
    """What lies in the staging area."""
    found = []
    for where, directories, files in os.walk(data / DIRECTORY):
        found += [str((Path(where) / name).relative_to(data / DIRECTORY)) for name in (*directories, *files)]
    return sorted(found)


async def put_files(submissions: Submissions, submission: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        assert await submissions.put_file(submission, name, parts(data)) == len(data)


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - files are removed in a thread that tells nobody
            await asyncio.sleep(0.001)


async def test_what_is_missing_is_said_until_it_is_here(
    repository: FleetRepository, submissions: Submissions
) -> None:
    first = await submissions.begin()
    with pytest.raises(FileMissing):
        await submissions.missing(first)
    await put_files(submissions, first, repository.files())
    assert await submissions.missing(first) == {SHA256: len(CONTENT)}
    await submissions.put_content(first, SHA256, parts(CONTENT), length=len(CONTENT))
    assert await submissions.missing(first) == {}
    await submissions.commit(first)
    again = await submissions.begin()
    await put_files(submissions, again, repository.files())
    assert await submissions.missing(again) == {}


async def test_a_whole_submission_is_verified_and_taken_over(
    tmp_path: Path, repository: FleetRepository, taker: TrustingTaker, submissions: Submissions
) -> None:
    submission = await submissions.begin()
    await put_files(submissions, submission, repository.files())
    assert await submissions.put_content(submission, SHA256, parts(CONTENT), length=len(CONTENT)) == len(
        CONTENT
    )
    assert taker.named_calls == 1
    assert await submissions.commit(submission) == repository.timestamp_version
    assert (taker.kept / SHA256).read_bytes() == CONTENT
    await settled(lambda: left(tmp_path) == [])
    with pytest.raises(NotFound):
        await submissions.commit(submission)
    assert await submissions.begin() != submission


async def test_until_it_is_committed_everything_is_called_unverified(
    tmp_path: Path, repository: FleetRepository, taker: TrustingTaker, submissions: Submissions
) -> None:
    submission = await submissions.begin()
    await put_files(submissions, submission, repository.files())
    await submissions.put_content(submission, SHA256, parts(CONTENT), length=None)
    directory = tmp_path / DIRECTORY / submission
    assert directory.stat().st_mode & 0o777 == 0o700
    names = {path.name for path in directory.iterdir()}
    assert len(names) == len(repository.files()) + 1
    assert all(name.endswith(".unverified") for name in names)
    assert tree(taker.directory) == {}


# --- names ----------------------------------------------------------------------------------------

TRICKS = [
    "",
    "metadata",
    "metadata/",
    "/metadata/root.json",
    "metadata//root.json",
    "metadata/../agent.sqlite",
    "targets/../../etc/passwd",
    "targets/..",
    "targets/./a",
    "targets/.hidden",
    "other/root.json",
    "../metadata/root.json",
    "metadata/root.json/",
    "metadata\\root.json",
    "metadata/..\\..\\a",
    "metadata/a\x00b",
    "metadata/a\nb",
    "metadata/ä",
    "metadata/a b",
    "metadata/" + "x" * 504,
    "content/" + "ab" * 32,
]


@pytest.mark.parametrize("name", TRICKS)
async def test_a_name_that_leads_elsewhere_is_refused_before_a_byte_is_written(
    tmp_path: Path, submissions: Submissions, name: str
) -> None:
    submission = await submissions.begin()
    with pytest.raises(Misuse, match="not a file of a repository"):
        await submissions.put_file(submission, name, parts(b"x"))
    assert left(tmp_path) == [submission]


@given(st.text(max_size=40) | st.text("metadagrs/.\\%", max_size=20).map("targets/".__add__))
def test_any_name_that_is_taken_stays_below_its_directory(name: str) -> None:
    try:
        checked = parse_file_name(name)
    except Misuse:
        return
    root = Path("/data")
    assert Path(os.path.normpath(root / checked)) == root / checked
    assert checked.startswith(("metadata/", "targets/"))


@pytest.mark.parametrize("digest", ["", "../../x", "AB" * 32, "ab" * 31, "ab" * 33])
async def test_a_content_is_named_by_its_sha256_and_nothing_else(
    submissions: Submissions, digest: str
) -> None:
    submission = await submissions.begin()
    with pytest.raises(Misuse, match="not a SHA-256"):
        await submissions.put_content(submission, digest, parts(b"x"), length=1)


# --- content --------------------------------------------------------------------------------------


@pytest.fixture
async def staged(submissions: Submissions, repository: FleetRepository) -> str:
    """A submission whose metadata is here."""
    submission = await submissions.begin()
    await put_files(submissions, submission, repository.files())
    return submission


def contents_left(data: Path) -> list[int]:
    """Sizes of large files in the staging area."""
    sizes = [path.stat().st_size for path in (data / DIRECTORY).glob("*/*")]
    return [size for size in sizes if size > 100_000]


@pytest.mark.parametrize(
    ("data", "length", "message"),
    [
        (CONTENT[:-1] + b"x", len(CONTENT), "and SHA-256"),
        (CONTENT[:-1], None, f"has {len(CONTENT) - 1} bytes"),
        (CONTENT + b"x", None, "and more came"),
        (CONTENT, len(CONTENT) + 1, f"has {len(CONTENT)} bytes, not"),
        (b"", 0, "not 0"),
    ],
    ids=["changed", "short", "long", "announced-long", "announced-empty"],
)
async def test_other_bytes_than_the_signed_ones_are_removed(
    tmp_path: Path, submissions: Submissions, staged: str, data: bytes, length: int | None, message: str
) -> None:
    with pytest.raises(ContentMismatch, match=message):
        await submissions.put_content(staged, SHA256, parts(data), length=length)
    assert contents_left(tmp_path) == []
    await submissions.put_content(staged, SHA256, parts(CONTENT), length=len(CONTENT))
    assert contents_left(tmp_path) == [len(CONTENT)]


async def test_an_endless_body_ends_at_the_signed_length(submissions: Submissions, staged: str) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 65536
            yield b"x" * 65536

    with pytest.raises(ContentMismatch, match="more came"):
        await submissions.put_content(staged, SHA256, endless(), length=None)
    assert taken <= len(CONTENT) + 65536


async def test_content_that_no_metadata_names_is_refused(
    tmp_path: Path, submissions: Submissions, staged: str
) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ContentMismatch, match="names no content"):
        await submissions.put_content(staged, other, parts(b"other"), length=5)
    assert contents_left(tmp_path) == []


async def test_content_before_metadata_is_refused(submissions: Submissions) -> None:
    submission = await submissions.begin()
    with pytest.raises(FileMissing):
        await submissions.put_content(submission, SHA256, parts(CONTENT), length=None)


async def test_the_same_content_twice_is_kept_once(
    tmp_path: Path, submissions: Submissions, staged: str
) -> None:
    for _ in range(2):
        await submissions.put_content(staged, SHA256, parts(CONTENT), length=None)
    assert contents_left(tmp_path) == [len(CONTENT)]


async def test_a_broken_upload_leaves_nothing(tmp_path: Path, submissions: Submissions, staged: str) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield CONTENT[: 2 * limits.MIB]
        raise RequestRefused("the body broke off", status=400)

    with pytest.raises(RequestRefused, match="broke off"):
        await submissions.put_content(staged, SHA256, breaks(), length=None)
    assert contents_left(tmp_path) == []


async def test_a_cancelled_upload_leaves_nothing(
    tmp_path: Path, submissions: Submissions, staged: str
) -> None:
    reached = asyncio.Event()

    async def stalls() -> AsyncIterator[bytes]:
        yield CONTENT[: 2 * limits.MIB]
        reached.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(submissions.put_content(staged, SHA256, stalls(), length=None))
    await asyncio.wait_for(reached.wait(), WAIT_S)
    assert contents_left(tmp_path) != []
    upload.cancel()
    await asyncio.gather(upload, return_exceptions=True)
    assert contents_left(tmp_path) == []
    await submissions.put_content(staged, SHA256, parts(CONTENT), length=None)


# --- trust ----------------------------------------------------------------------------------------


async def test_metadata_signed_by_nobody_we_trust_is_refused_and_dropped(
    tmp_path: Path, repository: FleetRepository, taker: TrustingTaker, submissions: Submissions
) -> None:
    """A thief has the build key alone, and signs the timestamp with it too."""
    files = Thief(repository, sign_as={"timestamp": "releases", "snapshot": "releases"}).publish({})
    submission = await submissions.begin()
    await put_files(submissions, submission, files)
    with pytest.raises(MetadataInvalid):
        await submissions.put_content(submission, SHA256, parts(CONTENT), length=None)
    with pytest.raises(MetadataInvalid):
        await submissions.commit(submission)
    with pytest.raises(NotFound):
        await submissions.commit(submission)
    assert taker.trust.load() is None
    await settled(lambda: left(tmp_path) == [])


async def test_an_old_timestamp_is_refused_as_replayed(
    repository: FleetRepository, taker: TrustingTaker, submissions: Submissions
) -> None:
    old = repository.files()
    repository.bump_timestamp()
    await asyncio.to_thread(taker.trust.refresh, Files(repository.files()))
    submission = await submissions.begin()
    await put_files(submissions, submission, old)
    with pytest.raises(MetadataReplayed):
        await submissions.commit(submission)


class Files:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def fetch(self, name: str, max_length: int) -> bytes:
        if name not in self.files:
            raise FileMissing(name)
        return self.files[name]


async def test_an_incomplete_submission_can_be_completed(
    repository: FleetRepository, submissions: Submissions
) -> None:
    files = repository.files()
    missing = next(name for name in files if name.endswith("release.json"))
    submission = await submissions.begin()
    await put_files(submissions, submission, {name: data for name, data in files.items() if name != missing})
    with pytest.raises(FileMissing):
        await submissions.commit(submission)
    await put_files(submissions, submission, {missing: files[missing]})
    await submissions.commit(submission)


async def test_a_replaced_file_is_judged_anew(repository: FleetRepository, submissions: Submissions) -> None:
    files = repository.files()
    submission = await submissions.begin()
    await put_files(submissions, submission, {**files, TIMESTAMP_NAME: b"{}"})
    with pytest.raises(MetadataInvalid):
        await submissions.put_content(submission, SHA256, parts(CONTENT), length=None)
    await put_files(submissions, submission, {TIMESTAMP_NAME: files[TIMESTAMP_NAME]})
    await submissions.put_content(submission, SHA256, parts(CONTENT), length=None)


async def test_when_the_device_had_no_room_the_commit_can_be_repeated(
    taker: TrustingTaker, submissions: Submissions, staged: str
) -> None:
    """The content was adopted, then the disk was full: it is not asked for again."""
    await submissions.put_content(staged, SHA256, parts(CONTENT), length=None)
    taker.failures.append(DiskFull("no space left"))
    with pytest.raises(DiskFull):
        await submissions.commit(staged)
    await submissions.commit(staged)
    assert (taker.kept / SHA256).read_bytes() == CONTENT


def test_a_staged_file_longer_than_asked_for_is_an_endless_data_attack(tmp_path: Path) -> None:
    files = StagedFiles()
    name = parse_file_name("metadata/1.root.json")
    (tmp_path / "a").write_bytes(b"12345")
    files.add(name, tmp_path / "a")
    assert files.fetch(name, 5) == b"12345"
    with pytest.raises(PeerMisbehaved) as caught:
        files.fetch(name, 4)
    assert caught.value.kind == "file-too-large"


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bound"),
    [("metadata/1.root.json", limits.METADATA_BYTES_MAX), ("targets/a/b.torrent", limits.TORRENT_BYTES_MAX)],
)
async def test_a_file_is_bounded(tmp_path: Path, submissions: Submissions, name: str, bound: int) -> None:
    submission = await submissions.begin()
    with pytest.raises(RequestRefused) as caught:
        await submissions.put_file(submission, name, parts(bytes(bound + 1)))
    assert caught.value.status == 413
    assert left(tmp_path) == [submission]
    assert await submissions.put_file(submission, name, parts(bytes(bound))) == bound


async def test_all_files_together_are_bounded(
    tmp_path: Path, submissions: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILES_BYTES_MAX", 10)
    submission = await submissions.begin()
    await submissions.put_file(submission, "targets/a", parts(b"123456"))
    with pytest.raises(RequestRefused):
        await submissions.put_file(submission, "targets/b", parts(b"12345"))
    await submissions.put_file(submission, "targets/b", parts(b"1234"))
    await submissions.put_file(submission, "targets/a", parts(b"654321"))
    assert len(left(tmp_path)) == 3


async def test_files_that_arrive_at_once_are_bounded_together(
    tmp_path: Path, submissions: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILES_BYTES_MAX", 10)
    submission = await submissions.begin()
    results = await asyncio.gather(
        *(submissions.put_file(submission, f"targets/{n}", parts(b"1234", size=1)) for n in range(4)),
        return_exceptions=True,
    )
    assert sorted(str(type(each).__name__) for each in results) == ["RequestRefused"] * 2 + ["int"] * 2
    assert len(left(tmp_path)) == 1 + 2


async def test_the_number_of_files_is_bounded(
    tmp_path: Path, submissions: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILES_MAX", 2)
    submission = await submissions.begin()
    for name in ("targets/a", "targets/b", "targets/a"):
        await submissions.put_file(submission, name, parts(b"x"))
    with pytest.raises(RequestRefused) as caught:
        await submissions.put_file(submission, "targets/c", parts(b"x"))
    assert caught.value.status == 413
    assert len(left(tmp_path)) == 3


# --- one at a time --------------------------------------------------------------------------------


async def test_a_second_submission_waits_for_the_first_or_gives_it_up(
    tmp_path: Path, submissions: Submissions
) -> None:
    first = await submissions.begin()
    with pytest.raises(Conflict, match=f"submission {first} is under way") as caught:
        await submissions.begin()
    assert f"DELETE /v1/submit/{first}" in caught.value.hint
    submissions.abandon(first)
    second = await submissions.begin()
    with pytest.raises(NotFound):
        await submissions.put_file(first, "targets/a", parts(b"x"))
    await settled(lambda: left(tmp_path) == [second])


async def test_what_arrives_for_an_abandoned_submission_is_stopped(
    tmp_path: Path, submissions: Submissions
) -> None:
    submission = await submissions.begin()
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        waiting.set()
        await go_on.wait()
        yield b"y"

    upload = asyncio.create_task(submissions.put_file(submission, "targets/a", slow()))
    await asyncio.wait_for(waiting.wait(), WAIT_S)
    submissions.abandon(submission)
    go_on.set()
    with pytest.raises(NotFound, match="given up"):
        await upload
    await settled(lambda: left(tmp_path) == [])


async def test_one_thing_cannot_arrive_twice_at_once_nor_during_a_commit(
    taker: TrustingTaker, submissions: Submissions, staged: str
) -> None:
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        waiting.set()
        await go_on.wait()
        yield CONTENT

    upload = asyncio.create_task(submissions.put_content(staged, SHA256, slow(), length=None))
    await asyncio.wait_for(waiting.wait(), WAIT_S)
    with pytest.raises(Conflict):
        await submissions.put_content(staged, SHA256, parts(CONTENT), length=None)
    with pytest.raises(Conflict):
        await submissions.commit(staged)
    go_on.set()
    await upload

    taker.gate = asyncio.Event()
    commit = asyncio.create_task(submissions.commit(staged))
    await asyncio.sleep(0)
    for attempt in (
        submissions.put_file(staged, "targets/a", parts(b"x")),
        submissions.commit(staged),
    ):
        with pytest.raises(Conflict):
            await attempt
    with pytest.raises(Conflict, match="being taken over"):
        submissions.abandon(staged)
    taker.gate.set()
    await commit


async def test_an_abandoned_submission_is_dropped_after_a_while(tmp_path: Path, taker: TrustingTaker) -> None:
    submissions = Submissions(tmp_path, taker, new_id=lambda: uuid4().hex, idle_s=0.02)
    first = await submissions.begin()
    await submissions.put_file(first, "targets/a", parts(b"x"))
    await settled(lambda: left(tmp_path) == [])
    with pytest.raises(NotFound, match="under way") as caught:
        await submissions.commit(first)
    assert "begin again" in caught.value.hint
    await submissions.close()


async def test_a_slow_upload_is_not_idle(tmp_path: Path, taker: TrustingTaker) -> None:
    submissions = Submissions(tmp_path, taker, new_id=lambda: "s", idle_s=0.01)
    await submissions.begin()
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await go_on.wait()

    upload = asyncio.create_task(submissions.put_file("s", "targets/a", slow()))
    await asyncio.sleep(0.05)
    go_on.set()
    assert await upload == 1
    await submissions.close()


async def test_what_a_killed_process_left_is_removed_at_start(tmp_path: Path, taker: TrustingTaker) -> None:
    old = tmp_path / DIRECTORY / "old"
    old.mkdir(parents=True)
    (old / "1.unverified").write_bytes(b"x")
    submissions = Submissions(tmp_path, taker, new_id=lambda: "s")
    await submissions.start()
    assert not (tmp_path / DIRECTORY).exists()
    await submissions.close()


# --- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB, less than the content and the margin need."""
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


def fill(disk: Path, *, but: int) -> None:
    """Leave so many bytes free."""
    with (disk / "ballast").open("ab") as file:
        file.write(bytes(free_bytes(disk) - but))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
async def test_disk_full_leaves_nothing_and_works_once_there_is_room(
    small_disk: Path, repository: FleetRepository, taker: TrustingTaker
) -> None:
    submissions = Submissions(small_disk, taker, new_id=lambda: "s")
    await submissions.begin()
    await put_files(submissions, "s", repository.files())
    before = left(small_disk)

    fill(small_disk, but=limits.DISK_MARGIN_BYTES + len(CONTENT) - 4096)
    with pytest.raises(DiskFull, match="no space for"):
        await submissions.put_content("s", SHA256, parts(CONTENT), length=None)

    fill(small_disk, but=2 * limits.MIB)
    with pytest.raises(DiskFull, match="no space left"):
        await submissions.put_file("s", "targets/large", parts(bytes(4 * limits.MIB)))
    assert left(small_disk) == before

    (small_disk / "ballast").unlink()
    await submissions.put_content("s", SHA256, parts(CONTENT), length=None)
    await submissions.close()
    assert left(small_disk) == []


async def test_a_data_directory_that_cannot_be_written_is_a_clear_error(
    tmp_path: Path, taker: TrustingTaker
) -> None:
    (tmp_path / DIRECTORY).write_text("in the way")
    submissions = Submissions(tmp_path, taker, new_id=lambda: "s")
    with pytest.raises(DriftseedError, match="cannot write") as caught:
        await submissions.begin()
    assert caught.value.reason == "device"
    (tmp_path / DIRECTORY).unlink()
    assert await submissions.begin() == "s"
    await submissions.close()
