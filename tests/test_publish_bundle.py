"""Bundles: carried by hand, believed as little as anything else."""

from __future__ import annotations

import asyncio
import hashlib
import io
import subprocess
import tarfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.agent.api import routes
from driftseed.agent.config import ConfigStore
from driftseed.agent.control import Control
from driftseed.agent.localhttp import LocalServer
from driftseed.agent.submissions import Submissions
from driftseed.cli.main import run
from driftseed.core import archive, limits
from driftseed.core.errors import (
    ContentMismatch,
    DriftseedError,
    FileMissing,
    Misuse,
    NotFound,
    TrustError,
    WrongFleet,
)
from driftseed.core.ids import FleetId
from driftseed.core.lifecycle import State
from driftseed.core.model import Artifact
from driftseed.publish import bundle
from driftseed.publish.bundle import BundleResult, Readable
from driftseed.trust.device import FleetTrust
from driftseed.trust.source import FilesSource
from support_fleet import Fleet, fleet_in, settled


class Hands:
    """Takes a bundle into memory."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet: FleetId = fleet.repository.fleet_id
        self.first_root: bytes | None = fleet.repository.first_root
        self.files: Mapping[str, bytes] = {}
        self.contents: dict[str, bytes] = {}
        self.committed = False

    def metadata(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)

    def content(self, artifact: Artifact, body: Readable) -> None:
        data = bytearray()
        while chunk := body.read(1 << 16):
            data += chunk
        if hashlib.sha256(data).hexdigest() != artifact.sha256:
            raise ContentMismatch("not what it should be")
        self.contents[artifact.sha256] = bytes(data)

    def commit(self) -> int:
        self.committed = True
        return 1


def quiet(done: int, total: int, what: str) -> None:
    return None


def exported(fleet: Fleet, *releases: str) -> bytes:
    out = io.BytesIO()
    repository = fleet.repository
    trust = FleetTrust(fleet.directory / f"look-{uuid.uuid4().hex}", repository.first_root, time.time)
    bundle.export(
        out,
        name="test",
        files=repository.files(),
        fleet=trust.refresh(FilesSource(repository.files().get)),
        content=repository.content,
        releases=releases,
        progress=quiet,
    )
    return out.getvalue()


def taken(data: bytes, hands: Hands, *, dry_run: bool = False) -> BundleResult:
    return bundle.take(
        io.BytesIO(data), hands, size=len(data), dry_run=dry_run, progress=quiet, clock=time.time
    )


def with_release(fleet: Fleet, name: str = "app", size: int = 100_000) -> str:
    path = fleet.directory / f"{name}.bin"
    path.write_bytes(name.encode() * (size // len(name)))
    return fleet.release(name, "1.0", [str(path)], meta={"path": f"{name}.bin"})


def entries(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = []
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            found.append((member.name, file.read()))
        return found


def packed(parts: list[tuple[str, bytes]]) -> bytes:
    return b"".join(
        archive.header(name, len(data), 0) + data + bytes(-len(data) % 512) for name, data in parts
    ) + (archive.END)


# --- the format -----------------------------------------------------------------------------------


def test_any_tar_lists_what_is_in_it_and_reads_the_same_bytes(tmp_path: Path) -> None:
    long = "targets/releases/" + "a" * 64 + "." + "n" * 128 + "-" + "v" * 128 + ".json"
    path = tmp_path / "x.bundle"
    path.write_bytes(packed([("bundle.json", b"{}"), (long, b"x" * 1000)]))
    listed = subprocess.run(["tar", "tf", str(path)], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["bundle.json", long]
    assert entries(path.read_bytes()) == [("bundle.json", b"{}"), (long, b"x" * 1000)]


@given(st.sampled_from([0, 1, 511, 512, 513, 8**11 - 1, 8**11, limits.ARTIFACT_BYTES_MAX]))
def test_sizes_survive_beyond_what_octal_digits_hold(size: int) -> None:
    found = archive.parse_header(archive.header("content/" + "ab" * 32, size, 0))
    assert found is not None
    assert found.size == size


@given(st.binary(min_size=512, max_size=512))
def test_no_block_of_noise_is_taken_for_a_header(block: bytes) -> None:
    if block != bytes(512):
        with pytest.raises(Misuse):
            archive.parse_header(block)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "metadata/../../x",
        "metadata/.hidden",
        "targets/a//b",
        "content/short",
        "content/" + "AB" * 32,
        "content/" + "ab" * 32 + "/x",
        "metadata/a\nb",
        "",
        "targets/" + "x" * 600,
    ],
)
def test_a_name_that_could_lead_anywhere_is_no_name(name: str) -> None:
    with pytest.raises(Misuse):
        archive.check_name(name)


# --- hostile bundles ------------------------------------------------------------------------------


@pytest.fixture
async def fleet(tmp_path: Path) -> Fleet:
    async with fleet_in(tmp_path) as made:
        with_release(made)
        return made


def tar_of(member: tarfile.TarInfo, data: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def hostile_members() -> list[tarfile.TarInfo]:
    found = []
    for name, kind in [
        ("../../../tmp/evil", tarfile.REGTYPE),
        ("metadata/link", tarfile.SYMTYPE),
        ("metadata/hard", tarfile.LNKTYPE),
        ("metadata/device", tarfile.CHRTYPE),
        ("metadata/fifo", tarfile.FIFOTYPE),
        ("metadata", tarfile.DIRTYPE),
        ("metadata/sparse", tarfile.GNUTYPE_SPARSE),
    ]:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        found.append(member)
    return found


@pytest.mark.parametrize("member", hostile_members(), ids=lambda member: member.name)
async def test_anything_but_plain_files_of_known_names_is_refused(
    fleet: Fleet, member: tarfile.TarInfo
) -> None:
    hands = Hands(fleet)
    with pytest.raises(Misuse):
        taken(tar_of(member), hands)
    assert (hands.files, hands.contents, hands.committed) == ({}, {}, False)


async def test_a_bundle_cut_off_anywhere_is_refused_and_never_committed(fleet: Fleet) -> None:
    whole = exported(fleet)
    for cut in [0, 1, 511, 512, 700, len(whole) // 3, len(whole) // 2, len(whole) - 1500, len(whole) - 1]:
        hands = Hands(fleet)
        with pytest.raises(DriftseedError) as caught:
            taken(whole[:cut], hands)
        assert not isinstance(caught.value, TrustError), f"cut at {cut}"
        assert not hands.committed


async def test_a_changed_content_is_refused(fleet: Fleet) -> None:
    parts = entries(exported(fleet))
    name, data = parts[-1]
    evil = packed([*parts[:-1], (name, b"X" + data[1:])])
    for dry_run in (True, False):
        hands = Hands(fleet)
        with pytest.raises(ContentMismatch):
            taken(evil, hands, dry_run=dry_run)
        assert not hands.committed


async def test_content_that_no_metadata_names_is_not_even_looked_at(fleet: Fleet) -> None:
    """A bomb: gigabytes that somebody put in beside what is signed."""
    parts = entries(exported(fleet))
    bomb = (archive.CONTENT + "ee" * 32, b"")
    head = packed([*parts[:-1]])[: -len(archive.END)] + archive.header(bomb[0], 1 << 40, 0)
    hands = Hands(fleet)
    with pytest.raises(ContentMismatch):
        taken(head, hands)
    assert hands.contents == {}


async def test_the_same_content_twice_is_refused(fleet: Fleet) -> None:
    parts = entries(exported(fleet))
    with pytest.raises(ContentMismatch):
        taken(packed([*parts, parts[-1]]), Hands(fleet))


async def test_metadata_is_bounded_in_size_and_number(fleet: Fleet) -> None:
    with pytest.raises(Misuse, match="too much"):
        taken(archive.header("metadata/1.root.json", 1 << 40, 0), Hands(fleet))
    many = [(f"metadata/{number}.x.json", b"") for number in range(bundle.FILES_MAX + 1)]
    with pytest.raises(Misuse, match="too much"):
        taken(packed(many), Hands(fleet))


async def test_a_bundle_of_another_fleet_is_refused_also_when_it_lies_about_it(
    fleet: Fleet, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    async with fleet_in(tmp_path / "other") as other:
        with_release(other)
        foreign = exported(other)
    with pytest.raises(WrongFleet):
        taken(foreign, Hands(fleet))
    lying = packed([each for each in entries(foreign) if each[0] != archive.DESCRIPTION])
    hands = Hands(fleet)
    with pytest.raises(TrustError):
        taken(lying, hands)
    hands.first_root = None
    with pytest.raises(WrongFleet):
        taken(lying, hands)
    assert hands.files == {}


async def test_metadata_that_is_not_signed_is_refused_before_any_content(fleet: Fleet) -> None:
    parts = [
        (name, data.replace(b'"version":', b'"version": ', 1) if name.endswith("timestamp.json") else data)
        for name, data in entries(exported(fleet))
    ]
    evil = [(n, d[:-20] + b" " * 20 if n.endswith("snapshot.json") else d) for n, d in parts]
    hands = Hands(fleet)
    with pytest.raises((TrustError, FileMissing, DriftseedError)):
        taken(packed(evil), hands)
    assert (hands.files, hands.contents) == ({}, {})


async def test_only_what_was_asked_for_is_exported(fleet: Fleet) -> None:
    with_release(fleet, "other")
    for which in ("app", "app=1.0"):
        hands = Hands(fleet)
        result = taken(exported(fleet, which), hands)
        assert len(hands.contents) == len(result.missing) == 1
    with pytest.raises(NotFound, match="nothing"):
        exported(fleet, "nothing")


async def test_a_dry_run_hands_nothing_over(fleet: Fleet) -> None:
    hands = Hands(fleet)
    result = taken(exported(fleet), hands, dry_run=True)
    assert result.dry_run
    assert len(result.contents) == 1
    assert (hands.files, hands.contents, hands.committed) == ({}, {}, False)


# --- the commands, with a real agent ---------------------------------------------------------------


async def test_a_stick_updates_a_device_that_does_not_run_and_one_device_exports_for_the_next(
    tmp_path: Path,
) -> None:
    """From the fleet directory into a resting device; it installs without any network; it exports what it has."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        await fleet.join("device")
        await fleet.join("second")
        await fleet.stop(hub)
        deployment = with_release(fleet)
        stick = tmp_path / "stick.bundle"
        assert run(["bundle", "export", str(tmp_path / "fleet"), str(stick)]) == 0
        assert run(["bundle", "export", str(tmp_path / "fleet"), str(stick)]) == Misuse.exit_code
        assert run(["bundle", "import", str(stick), "--data", str(tmp_path / "device"), "--dry-run"]) == 0
        assert not list((tmp_path / "device").glob("content/*"))
        assert run(["bundle", "import", str(stick), "--data", str(tmp_path / "device")]) == 0
        agent = await fleet.start_agent("device")
        assert await settled([agent], deployment) == [State.SUCCEEDED]
        await fleet.stop(agent)
        copy = tmp_path / "copy.bundle"
        assert run(["bundle", "export", str(tmp_path / "device"), str(copy)]) == 0
        assert run(["bundle", "import", str(copy), "--data", str(tmp_path / "second")]) == 0
        second = await fleet.start_agent("second")
        assert await settled([second], deployment) == [State.SUCCEEDED]


async def test_a_running_agent_takes_a_stick_through_its_socket(tmp_path: Path, short_path: Path) -> None:
    """Also one that is older than what the agent trusts by now: its content is still wanted."""
    async with fleet_in(tmp_path) as fleet:
        hub = await fleet.start_hub()
        agent = await fleet.new_agent("device")
        await fleet.stop(hub)
        deployment = with_release(fleet)
        stick = tmp_path / "stick.bundle"
        assert run(["bundle", "export", str(tmp_path / "fleet"), str(stick)]) == 0
        fleet.repository.bump_timestamp()
        newer = tmp_path / "newer.bundle"
        newer.write_bytes(packed([each for each in entries(exported(fleet)) if "content/" not in each[0]]))
        control = Control(agent, ConfigStore(tmp_path / "device"))
        submissions = Submissions(tmp_path / "device", control, new_id=lambda: uuid.uuid4().hex)
        server = LocalServer(short_path / "s", routes(control, submissions), dropped=agent.node.ledger.drop)
        await submissions.start()
        await server.start()
        try:
            for path in (newer, stick):
                command = ["bundle", "import", str(path), "--socket", str(short_path / "s")]
                assert await asyncio.to_thread(run, command) == 0
            assert await settled([agent], deployment) == [State.SUCCEEDED]
        finally:
            await server.close()
            await submissions.close()
