"""Attacks on the overlay by members with real keys: eclipse, amplification; and bombs in what is installed."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from driftseed.core import limits, wire
from driftseed.core.errors import LinkClosed, ModuleFailed, PeerStalled
from driftseed.core.lifecycle import State
from driftseed.install.modules.unpack import unpack
from support_fleet import fleet_in, settled, until
from support_fleet_peer import made_up_peer
from support_trust import Thief


async def test_many_identities_from_one_address_do_not_surround_an_agent(tmp_path: Path) -> None:
    """Eclipse: more members than it takes dial one agent; the hub keeps its place, and updates arrive."""
    many = limits.LINKS_INCOMING_MAX + 3
    async with fleet_in(tmp_path) as fleet, contextlib.AsyncExitStack() as stack:
        await fleet.start_hub()
        (agent,) = await fleet.new_agents("agent")
        overlay = agent.node.overlay
        attackers = [await stack.enter_async_context(made_up_peer(fleet)) for _ in range(many)]

        async def surround(number: int) -> None:
            with contextlib.suppress(LinkClosed, PeerStalled):
                await attackers[number].link(agent)

        for start in range(0, many, 8):
            await asyncio.gather(*(surround(number) for number in range(start, min(start + 8, many))))

        def incoming() -> int:
            return sum(1 for peer in overlay.peers() if not peer.outgoing)

        await until(
            lambda: incoming() == limits.LINKS_INCOMING_MAX, f"all but 32 are let go: {incoming()}", 60.0
        )
        assert overlay.hubs(), "the hub was dialled by the agent itself, and stays"
        assert len(agent.node.book) <= limits.DIRECTORY_KEPT_MAX
        deployment = fleet.release_random("app", "1.0", 50_000)
        await fleet.publish()
        assert await settled([agent], deployment, 60.0) == [State.SUCCEEDED]
        assert (agent.install_root / "app.bin").read_bytes() == (tmp_path / "app-1.0.bin").read_bytes()


async def test_a_notice_that_is_repeated_is_passed_on_once(tmp_path: Path) -> None:
    """Gossip amplification: a hundred times the same notice are a hundred frames in, and one out to each."""
    async with (
        fleet_in(tmp_path) as fleet,
        made_up_peer(fleet) as attacker,
        made_up_peer(fleet) as witness,
    ):
        hub = await fleet.start_hub()
        (agent,) = await fleet.new_agents("agent")
        await until(lambda: agent.node.keeper.ready > 0, "metadata is here")
        await fleet.stop(hub)
        thief = Thief(fleet.repository)
        newer = thief.stamp(thief.chain.timestamp.snapshot_meta)["metadata/timestamp.json"]
        heard = await witness.link(agent)
        out = await attacker.link(agent)
        await out.control.write_raw(wire.encode(wire.Notice(timestamp=newer)) * 100)
        await out.control.write_frame(wire.Observed(addr="192.0.2.1:1"))
        said = agent.node.overlay.peer(attacker.identity.device)
        assert said is not None
        await until(lambda: said.observed_us == "192.0.2.1:1", "all hundred were read")
        notices = 0
        with contextlib.suppress(PeerStalled):
            while True:
                message = await heard.control.read_frame(limits.FRAME_BYTES_MAX, 2.0)
                notices += isinstance(message, wire.Notice) and message.timestamp == newer
        assert notices == 1
        assert not out.connection.closed


def _bomb() -> bytes:
    """64 MiB of nothing in 64 KiB."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        info = tarfile.TarInfo("zeros")
        info.size = 64 * limits.MIB
        packed.addfile(info, io.BytesIO(bytes(info.size)))
    return gzip.compress(out.getvalue(), 9)


def _tar(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        info = tarfile.TarInfo("file")
        info.size = 4
        change(info)
        packed.addfile(info, io.BytesIO(b"evil"))
    return out.getvalue()


def _escape(info: tarfile.TarInfo) -> None:
    info.name = "../../../escaped"


def _absolute(info: tarfile.TarInfo) -> None:
    info.name = "/tmp/driftseed-escaped"


def _device(info: tarfile.TarInfo) -> None:
    info.type, info.size = tarfile.CHRTYPE, 0


def _sparse() -> bytes:
    """A GNU sparse file: one byte that claims to be the last of a tebibyte."""
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    info.size = 512
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398] = b"%011o\0" % (2**33 - 512)
    block[398:410] = b"%011o\0" % 512
    block[483:495] = b"%011o\0" % (2**33 - 1)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512) + bytes(1024)


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (lambda: _tar(_escape), "leads outside"),
        (lambda: _tar(_absolute), "leads outside"),
        (lambda: _tar(_device), "neither file, directory nor link"),
        (_sparse, "neither file, directory nor link"),
    ],
    ids=["dotdot", "absolute", "device", "sparse-bomb"],
)
async def test_an_archive_with_tricks_in_it_is_installed_by_no_agent(
    tmp_path: Path, archive: Callable[[], bytes], words: str
) -> None:
    """Properly signed, released and deployed: the module refuses it, and the device says in words why."""
    async with fleet_in(tmp_path) as fleet:
        await fleet.start_hub()
        (agent,) = await fleet.new_agents("agent")
        path = tmp_path / "app.tar"
        path.write_bytes(archive())
        deployment = fleet.release("app", "1.0", [str(path)], module="directory", meta={"path": "app"})
        await fleet.publish()
        assert await settled([agent], deployment, 60.0) != [State.SUCCEEDED]
        row = agent.journal.update(deployment)
        assert row is not None
        assert words in row.detail
        assert agent.journal.installed() == {}
        assert_nothing_escaped(tmp_path, agent.install_root)


def assert_nothing_escaped(directory: Path, install_root: Path) -> None:
    assert not Path("/tmp/driftseed-escaped").exists()
    assert not list(directory.rglob("escaped"))
    assert not [each for each in install_root.rglob("*") if each.is_file()]


def test_a_decompression_bomb_is_stopped_at_the_bound_and_leaves_little(tmp_path: Path) -> None:
    archive, target = tmp_path / "bomb.tar.gz", tmp_path / "target"
    archive.write_bytes(_bomb())
    assert archive.stat().st_size < 128 * limits.KIB
    target.mkdir()
    with pytest.raises(ModuleFailed, match="when unpacked"):
        unpack(archive, target, bytes_max=limits.MIB)
    assert sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) <= limits.MIB
