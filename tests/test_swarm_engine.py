"""Real engines, each its own process, exchanging real content over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from driftseed.core import limits
from driftseed.core.errors import EngineFailed
from driftseed.swarm import bencode, client, protocol
from driftseed.swarm.adoption import adopt
from driftseed.swarm.client import Engine
from driftseed.swarm.content import ContentStore
from support_swarm import MIB, WAIT_S, Content, HostileSeed, Node, make_content, running


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return make_content(tmp_path / "origin", 32 * MIB)


@pytest.fixture
def small(tmp_path: Path) -> Content:
    return make_content(tmp_path / "origin", 3 * MIB + 17, seed=1)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    async with running(tmp_path, 2) as (seed, leech):
        yield seed, leech


async def test_one_fetches_from_one(pair: tuple[Node, Node], content: Content) -> None:
    seed, leech = pair
    await seed.engine.seed(content.torrent, content.path)
    await leech.fetch_from(content, seed)
    await leech.wait(protocol.Completed)
    assert leech.partial(content).read_bytes() == content.data
    final = await leech.wait(protocol.Progress, lambda event: event.done == event.total == len(content.data))
    assert final.downloaded >= len(content.data)
    assert leech.engine.progress[content.sha256].done == len(content.data)
    assert content.path.read_bytes() == content.data
    assert [path.name for path in content.path.parent.iterdir()] == [content.path.name]


async def test_three_fetch_from_one_and_from_each_other(tmp_path: Path, content: Content) -> None:
    async with running(tmp_path, 4, upload_limit=16 * MIB) as (seed, *leeches):
        await seed.engine.seed(content.torrent, content.path)
        for leech in leeches:
            await leech.fetch_from(content, seed, *(other for other in leeches if other is not leech))
        await asyncio.gather(*(leech.wait(protocol.Completed) for leech in leeches))
        for leech in leeches:
            assert leech.partial(content).read_bytes() == content.data
        sent = seed.engine.progress[content.sha256].uploaded
        assert sent < 2.5 * len(content.data), "the origin did not send it three times"


async def test_empty_content_is_complete_without_a_transfer(pair: tuple[Node, Node], tmp_path: Path) -> None:
    _, leech = pair
    empty = make_content(tmp_path / "origin", 0)
    await leech.fetch_from(empty)
    await leech.wait(protocol.Completed)
    assert leech.partial(empty).read_bytes() == b""


async def test_upload_limit_holds_on_loopback(tmp_path: Path, small: Content) -> None:
    """Loopback is a local network to libtorrent, and its limits leave local networks out."""
    async with running(tmp_path, 2, upload_limit=1 * MIB) as (seed, leech):
        await seed.engine.seed(small.torrent, small.path)
        started = asyncio.get_running_loop().time()
        await leech.fetch_from(small, seed)
        await leech.wait(protocol.Completed)
        # 3 MiB at 1 MiB/s, of which the first second's worth may be sent at once.
        assert asyncio.get_running_loop().time() - started > 1.5


async def test_limits_can_be_changed_while_it_runs(tmp_path: Path, content: Content) -> None:
    async with running(tmp_path, 2, upload_limit=256 * 1024) as (seed, leech):
        await seed.engine.seed(content.torrent, content.path)
        await leech.fetch_from(content, seed)
        await leech.wait(protocol.Progress, lambda event: 0 < event.done < event.total)
        await seed.engine.set_limits(0, 0)
        await leech.wait(protocol.Completed)  # the rest would have needed two minutes


async def test_seed_of_bad_pieces_is_banned_and_another_completes(
    pair: tuple[Node, Node], small: Content, tmp_path: Path
) -> None:
    seed, leech = pair
    with HostileSeed(small, tmp_path / "hostile") as hostile:
        await leech.fetch_from(small)
        await leech.engine.connect_peer(small.sha256, hostile.ip, hostile.port)
        failed = await leech.wait(protocol.HashFailed)
        assert failed.sha256 == small.sha256
        banned = await leech.wait(protocol.Banned)
        assert banned.ip == hostile.ip

        await seed.engine.seed(small.torrent, small.path)
        await leech.engine.connect_peer(small.sha256, *seed.engine.listen_address)
        await leech.wait(protocol.Completed)
        assert leech.partial(small).read_bytes() == small.data
        assert {event.ip for event in leech.said(protocol.Banned)} == {hostile.ip}


async def test_banned_device_stays_banned_when_it_comes_from_another_port_or_after_a_restart(
    pair: tuple[Node, Node], small: Content, tmp_path: Path
) -> None:
    _, leech = pair
    with HostileSeed(small, tmp_path / "hostile") as hostile:
        await leech.fetch_from(small)
        await leech.engine.connect_peer(small.sha256, hostile.ip, hostile.port)
        await leech.wait(protocol.Banned)

    async def refused() -> None:
        with socket.socket() as peer:
            peer.bind((hostile.ip, 0))
            peer.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(peer, leech.engine.listen_address)
            await loop.sock_sendall(peer, handshake(small))
            async with asyncio.timeout(WAIT_S):
                try:
                    assert await loop.sock_recv(peer, 1) == b""
                except ConnectionResetError:
                    return

    await refused()
    skip = len(leech.events)
    await kill(leech)
    await leech.wait(protocol.Ready, skip=skip)
    await refused()


def handshake(content: Content) -> bytes:
    """The first message of a BitTorrent connection (BEP 3; BEP 52 for the truncated hash)."""
    torrent = bencode.decode(content.torrent.data)
    assert isinstance(torrent, dict)
    info_hash = hashlib.sha256(bencode.encode(torrent[b"info"])).digest()[:20]
    return b"\x13BitTorrent protocol" + bytes(8) + info_hash + b"-XX0000-abcdefghijkl"


async def kill(node: Node) -> None:
    pid = node.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def test_killed_engine_is_started_again_and_the_transfer_completes(
    tmp_path: Path, content: Content
) -> None:
    async with running(tmp_path, 2, upload_limit=16 * MIB) as (seed, leech):
        await seed.engine.seed(content.torrent, content.path)
        await leech.fetch_from(content, seed)
        await leech.wait(protocol.Progress, lambda event: 0 < event.done < event.total)
        first = leech.engine.pid
        skip = len(leech.events)
        await kill(leech)
        died = await leech.wait(protocol.Died, skip=skip)
        assert died.status == -signal.SIGKILL
        assert not leech.engine.running
        with pytest.raises(EngineFailed):
            _ = leech.engine.listen_address
        await seed.engine.set_limits(0, 0)
        await leech.wait(protocol.Completed, skip=skip)
        assert leech.engine.pid != first
        assert leech.partial(content).read_bytes() == content.data


async def test_killed_seed_serves_again_at_its_new_port(tmp_path: Path, content: Content) -> None:
    async with running(tmp_path, 2, upload_limit=16 * MIB) as (seed, leech):
        await seed.engine.seed(content.torrent, content.path)
        await leech.fetch_from(content, seed)
        await leech.wait(protocol.Progress, lambda event: 0 < event.done < event.total)
        skip = len(seed.events)
        await kill(seed)
        await seed.engine.set_limits(0, 0)
        ready = await seed.wait(protocol.Ready, skip=skip)
        await leech.engine.connect_peer(content.sha256, ready.ip, ready.port)
        await leech.wait(protocol.Completed)
        assert leech.partial(content).read_bytes() == content.data


async def test_engine_that_dies_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RESTART_DELAY_MAX_S", 0.0)
    async with running(tmp_path, 1) as (node,):
        for _ in range(client.DEATHS_MAX):
            skip = len(node.events)
            await kill(node)
            await node.wait(protocol.Ready, skip=skip)
        await kill(node)
        await node.wait(protocol.GaveUp)
        assert not node.engine.running
        assert len(node.said(protocol.Died)) == client.DEATHS_MAX + 1
        await node.engine.start()
        assert node.engine.running


async def test_engine_that_hangs_is_killed_when_stopped(tmp_path: Path) -> None:
    node = Node(tmp_path / "node")
    await node.engine.start()
    pid = node.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(limits.SHUTDOWN_S):
        await node.engine.stop()
    assert not alive(pid)


def alive(pid: int | None) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_stop_ends_the_process_and_start_carries_on(pair: tuple[Node, Node], small: Content) -> None:
    seed, leech = pair
    await leech.fetch_from(small)
    pid = leech.engine.pid
    await leech.engine.stop()
    assert not alive(pid)
    assert not leech.said(protocol.Died)
    await leech.engine.start()
    await seed.engine.seed(small.torrent, small.path)
    await leech.engine.connect_peer(small.sha256, *seed.engine.listen_address)
    await leech.wait(protocol.Completed)


async def test_commands_before_the_start_are_carried_out_at_the_start(tmp_path: Path, small: Content) -> None:
    async with running(tmp_path, 1) as (seed,):
        await seed.engine.seed(small.torrent, small.path)
        late = Node(tmp_path / "late")
        await late.fetch_from(small, seed)
        await late.engine.start()
        try:
            await late.wait(protocol.Completed)
        finally:
            await late.engine.stop()


async def test_removed_content_is_carried_no_more_and_can_be_fetched_again(
    pair: tuple[Node, Node], small: Content
) -> None:
    seed, leech = pair
    await seed.engine.seed(small.torrent, small.path)
    await leech.fetch_from(small, seed)
    await leech.wait(protocol.Completed)
    await leech.engine.remove(small.sha256)
    assert small.sha256 not in leech.engine.carried
    assert small.sha256 not in leech.engine.progress
    leech.partial(small).unlink()
    skip = len(leech.events)
    await leech.fetch_from(small, seed)
    await leech.wait(protocol.Completed, skip=skip)
    assert leech.partial(small).read_bytes() == small.data


async def test_partial_file_that_rotted_between_runs_is_mended(tmp_path: Path, small: Content) -> None:
    async with running(tmp_path, 2, upload_limit=1 * MIB) as (seed, leech):
        await seed.engine.seed(small.torrent, small.path)
        await leech.fetch_from(small, seed)
        await leech.wait(protocol.Progress, lambda event: event.done > len(small.data) // 3)
        await leech.engine.stop()
        partial = leech.partial(small)
        before = partial.read_bytes()
        assert before != small.data
        with partial.open("r+b") as file:
            file.write(bytes(64 * 1024))
        skip = len(leech.events)
        await leech.engine.start()
        await seed.engine.set_limits(0, 0)
        await leech.wait(protocol.Completed, skip=skip)
        assert partial.read_bytes() == small.data
        last = await leech.wait(
            protocol.Progress, lambda event: event.done == event.total and not event.checking, skip=skip
        )
        assert last.downloaded < len(small.data), "what was good is kept"


async def test_adoption_keeps_the_connections_of_others(tmp_path: Path, content: Content) -> None:
    """The middle one completes, is renamed, and goes on serving the last one by the same connection."""
    async with running(tmp_path, 3) as (seed, middle, last):
        await seed.engine.seed(content.torrent, content.path)
        await middle.engine.set_limits(4 * MIB, 0)
        await middle.fetch_from(content, seed)
        await last.fetch_from(content, middle)
        await middle.wait(protocol.Completed)
        await last.wait(protocol.Progress, lambda event: event.done > 0)
        assert not last.said(protocol.Completed)

        store = ContentStore(middle.directory, 1 << 30)
        artifact = content.verified(middle.partial(content))
        path = await adopt(middle.engine, store, content.torrent, artifact)
        assert path == middle.path(content)
        assert path.read_bytes() == content.data
        assert not middle.partial(content).exists()
        await middle.engine.set_limits(0, 0)
        await last.wait(protocol.Completed)
        assert last.partial(content).read_bytes() == content.data
        assert len(last.said(protocol.PeerConnected)) == 1
        assert not middle.said(protocol.StorageFailed)
        assert not middle.said(protocol.Failed)


async def test_adoption_without_a_living_engine_still_happens(tmp_path: Path, small: Content) -> None:
    node = Node(tmp_path / "node")
    node.partial(small).write_bytes(small.data)
    await node.engine.fetch(small.torrent, node.directory)
    store = ContentStore(node.directory, 1 << 30)
    path = await adopt(node.engine, store, small.torrent, small.verified(node.partial(small)))
    assert path.read_bytes() == small.data
    assert not node.partial(small).exists()
    async with running(tmp_path, 1) as (leech,):
        await node.engine.start()
        try:
            await leech.fetch_from(small, node)
            await leech.wait(protocol.Completed)
        finally:
            await node.engine.stop()


async def test_torrent_that_the_engine_does_not_take_is_told(pair: tuple[Node, Node], small: Content) -> None:
    _, leech = pair
    broken = type(small.torrent)(small.artifact, small.torrent.data[:-10])
    await leech.engine.fetch(broken, leech.directory)
    failed = await leech.wait(protocol.Failed)
    assert failed.sha256 == small.sha256
    assert leech.engine.running


async def test_seed_whose_file_is_gone_is_told(pair: tuple[Node, Node], small: Content) -> None:
    seed, _ = pair
    small.path.unlink()
    await seed.engine.seed(small.torrent, small.path)
    failed = await seed.wait(protocol.Failed)
    assert failed.sha256 == small.sha256
    assert not small.path.exists()


async def test_seed_whose_file_has_rotted_is_told_and_nobody_gets_it(
    pair: tuple[Node, Node], small: Content
) -> None:
    seed, leech = pair
    rotten = bytes(64 * 1024) + small.data[64 * 1024 :]
    small.path.write_bytes(rotten)
    await seed.engine.seed(small.torrent, small.path)
    await leech.fetch_from(small, seed)
    await seed.wait(protocol.Failed)
    assert not leech.said(protocol.Completed)
    assert small.path.read_bytes() == rotten, "a file that may be somebody's own is not mended"


async def test_peer_cannot_make_the_engine_connect_elsewhere(pair: tuple[Node, Node], small: Content) -> None:
    """Neither by peer exchange (off) nor by a hole-punch message (BEP 55): here any address is refused."""
    _, leech = pair
    await leech.fetch_from(small)
    with socket.create_server(("0.0.0.0", 0)) as victim:
        victim.setblocking(False)
        port = victim.getsockname()[1]
        for address in _addresses_of_this_machine():
            await leech.engine.connect_peer(small.sha256, address, port)
        await leech.engine.connect_peer(small.sha256, "127.0.0.9", port)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(WAIT_S):
            connection, (ip, _) = await loop.sock_accept(victim)
        connection.close()
        assert ip.startswith("127."), "the only connection is the one within loopback"


def _addresses_of_this_machine() -> list[str]:
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    return [address for address in addresses if ":" not in address and not address.startswith("127.")]


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], capture_output=True, check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    disk = tmp_path / "tiny"
    disk.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=8m", "driftseed-test", disk)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount a tmpfs: {error.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.root
async def test_full_disk_pauses_and_resumes_with_nothing_lost(
    tiny_disk: Path, tmp_path: Path, content: Content
) -> None:
    async with running(tmp_path, 1) as (seed,):
        await seed.engine.seed(content.torrent, content.path)
        leech = Node(tiny_disk / "content")
        await leech.engine.start()
        try:
            await leech.fetch_from(content, seed)
            failed = await leech.wait(protocol.StorageFailed)
            assert failed.errno == errno.ENOSPC
            assert leech.engine.running
            await asyncio.to_thread(mount, "-o", "remount,size=48m", tiny_disk)
            await leech.engine.resume(content.sha256)
            await leech.wait(protocol.Completed)
            assert leech.partial(content).read_bytes() == content.data
            assert len(leech.said(protocol.StorageFailed)) == 1
            last = await leech.wait(protocol.Progress, lambda event: event.done == event.total)
            # What had been written was not fetched again; what was on its way to the disk was.
            assert last.downloaded < 2 * len(content.data)
        finally:
            await leech.engine.stop()


async def run_engine(data: bytes) -> tuple[int, bytes]:
    """Start the engine's module by itself, send it bytes, close, and see how it ends."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "driftseed.swarm.engine",
            str(theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            stderr=asyncio.subprocess.PIPE,
        )
    reader, writer = await asyncio.open_connection(sock=ours)
    async with asyncio.timeout(WAIT_S):
        await reader.readexactly(4)  # it is ready
        writer.write(data)
        writer.write_eof()
        _, stderr = await process.communicate()
    writer.close()
    await writer.wait_closed()
    assert process.returncode is not None
    return process.returncode, stderr


async def test_engine_ends_cleanly_with_its_parent() -> None:
    assert await run_engine(b"") == (0, b"")


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\0\0\0\1\xc1"])
async def test_engine_ends_with_a_message_on_a_garbled_control_stream(garbage: bytes) -> None:
    status, stderr = await run_engine(garbage)
    assert status == 1
    assert stderr.startswith(b"the control stream cannot be followed: ")
    assert b"Traceback" not in stderr


async def test_engine_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import asyncio
        from driftseed.swarm.client import Engine

        async def main():
            engine = Engine(lambda event: None)
            await engine.start()
            print(engine.pid, flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
    """)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(WAIT_S):
        pid = int(await parent.stdout.readline())
        end = os.pidfd_open(pid)
        try:
            parent.kill()
            await parent.wait()
            gone = asyncio.Event()
            asyncio.get_running_loop().add_reader(end, gone.set)
            await gone.wait()
        finally:
            asyncio.get_running_loop().remove_reader(end)
            os.close(end)


async def test_engine_that_cannot_start_is_told_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineFailed, match="does not start") as caught:
        await Engine(lambda _: None).start()
    assert "libtorrent" in caught.value.hint


async def test_remembered_peers_are_bounded(tmp_path: Path, small: Content) -> None:
    engine = Engine(lambda _: None)
    await engine.fetch(small.torrent, tmp_path)
    for port in range(1, 5 * limits.SWARM_PEERS_MAX):
        await engine.connect_peer(small.sha256, "127.0.0.2", port)
    assert len(engine._wanted[small.sha256].peers) == limits.SWARM_PEERS_MAX


async def test_libtorrent_is_not_loaded_into_the_agent() -> None:
    program = (
        "import sys, driftseed.swarm.client, driftseed.swarm.content, driftseed.swarm.torrent, "
        "driftseed.swarm.adoption; sys.exit('libtorrent' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0


def sockets() -> set[str]:
    """Of this process."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor by which this directory is read
            found.add(str(link.readlink()))
    return {each for each in found if each.startswith("socket:")}


async def test_a_start_that_is_given_up_leaves_no_socket_and_no_process() -> None:
    """An agent may be told to stop while its engine starts, at any instant of that."""
    before = sockets()
    for turns in range(6):
        engine = Engine(lambda _event: None)
        starting = asyncio.create_task(engine.start())
        for _ in range(turns):
            await asyncio.sleep(0)  # one turn of the loop: how far the start has come
        starting.cancel()
        await asyncio.wait({starting})
        await engine.stop()
        assert not engine.running
    assert sockets() == before
