"""Tunnels: TCP on loopback, a stream between two endpoints, TCP on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits, wire
from driftseed.core.errors import PeerMisbehaved, PeerUnreachable
from driftseed.core.ids import DeviceId, Digest
from driftseed.core.limits import MIB
from driftseed.net.budget import RelayBudget
from driftseed.net.endpoint import Connection, Endpoint, Stream
from driftseed.net.loopback import LoopbackAddresses
from driftseed.net.paths import Path
from driftseed.net.tunnel import Flow, TcpAddress, Tunnels, _Meter
from support_net import WAIT_S, connected, two_endpoints

SHA = Digest("ab" * 32)
OTHER_SHA = Digest("cd" * 32)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Pair:
    """Two nodes with a tunnel link; the second one serves ``SHA`` from a local TCP server."""

    one: Endpoint
    two: Endpoint
    out: Connection
    into: Connection
    near: Tunnels
    far: Tunnels
    sources: list[str] = field(default_factory=list)
    """Addresses from which the serving engine was connected."""
    failures: list[BaseException] = field(default_factory=list)
    ended: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    async def expose(self, sha256: Digest = SHA) -> TcpAddress:
        return await self.near.expose(self.two.device, sha256)

    async def connect(self, sha256: Digest = SHA) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*await self.expose(sha256))


@asynccontextmanager
async def pair(handler: Handler, *, streams_max: int = 64) -> AsyncIterator[Pair]:
    sources: list[str] = []

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sources.append(writer.get_extra_info("peername")[0])
        try:
            await handler(reader, writer)
        except ConnectionError:
            torn.append(writer)
        finally:
            writer.close()

    torn: list[asyncio.StreamWriter] = []
    async with two_endpoints() as (one, two):
        out, into = await connected(one, two, wire.ALPN_TUNNEL)

        async def opener(device: DeviceId) -> Connection:
            if device != two.device:
                raise PeerUnreachable(f"{device[:10]} is not there")
            return out

        server = await asyncio.start_server(engine, "127.0.0.1", 0)
        address: TcpAddress = server.sockets[0].getsockname()
        state = Pair(
            one,
            two,
            out,
            into,
            Tunnels(opener, streams_max=streams_max),
            Tunnels(opener, streams_max=streams_max),
            sources,
        )

        async def served(sha256: Digest) -> TcpAddress | None:
            return address if sha256 == SHA else None

        async def serve_one(stream: Stream) -> None:
            try:
                await state.far.serve(into, stream, served)
            except PeerMisbehaved as error:
                state.failures.append(error)
            finally:
                state.ended.put_nowait(None)

        async def serve_all() -> None:
            async with asyncio.TaskGroup() as group:
                while True:
                    group.create_task(serve_one(await into.accept_stream()))

        serving = asyncio.create_task(serve_all())
        try:
            async with asyncio.timeout(WAIT_S * 2):
                yield state
        finally:
            await state.near.close()
            await state.far.close()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            server.close()
            await server.wait_closed()


async def read_to_end(reader: asyncio.StreamReader) -> None:
    while await reader.read(MIB):
        pass


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(MIB):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def test_32_mebibytes_go_there_and_back_unchanged() -> None:
    """Both directions at once; the end of ours (half-close) does not cut theirs short."""
    blob = random.Random(1).randbytes(4 * MIB)
    total = 32 * MIB
    async with pair(echo) as state:
        reader, writer = await state.connect()

        async def send() -> None:
            for _ in range(total // len(blob)):
                writer.write(blob)
                await writer.drain()
            writer.write_eof()

        async def receive() -> str:
            digest = hashlib.sha256()
            while data := await reader.read(MIB):
                digest.update(data)
            return digest.hexdigest()

        _, got = await asyncio.gather(send(), receive())
        writer.close()
        await state.ended.get()
    assert got == hashlib.sha256(blob * (total // len(blob))).hexdigest()
    flow = Flow(state.two.device, SHA, "lan", "out")
    assert state.near.carried == {flow: total, flow._replace(direction="in"): total}
    flow = Flow(state.one.device, SHA, "lan", "out")
    assert state.far.carried == {flow: total, flow._replace(direction="in"): total}
    assert state.near.active == state.far.active == 0


async def test_each_side_meets_the_other_at_its_own_loopback_address() -> None:
    """So that the engine's ban of an address is a ban of one device, listener and source alike."""
    async with pair(echo) as state:
        address = await state.expose()
        assert await state.expose() == address
        _, writer = await state.connect()
        writer.write_eof()
        await state.ended.get()
        writer.close()
        assert address[0] == state.near.addresses.address_of(state.two.device)
        assert state.sources == [state.far.addresses.address_of(state.one.device)]
        assert state.far.addresses.device_at(state.sources[0]) == state.one.device


async def test_data_after_the_other_side_has_finished_still_arrives() -> None:
    async def speak_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = await reader.read()
        writer.write(b"heard " + heard)

    async with pair(speak_late) as state:
        reader, writer = await state.connect()
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read() == b"heard question"
        writer.close()


async def test_an_artifact_that_is_not_served_closes_the_local_connection() -> None:
    async with pair(echo) as state:
        reader, writer = await state.connect(OTHER_SHA)
        assert await reader.read() == b""
        writer.close()
        assert state.near.counters["refused"] == 1
        assert state.far.counters["not-served"] == 1
        assert state.sources == []
        assert state.near.carried == {}


async def test_an_engine_that_is_gone_is_said_to_serve_nothing() -> None:
    async with pair(echo) as state:
        dead = await asyncio.start_server(echo, "127.0.0.1", 0)
        address: TcpAddress = dead.sockets[0].getsockname()
        dead.close()
        await dead.wait_closed()

        async def at_the_dead_one(sha256: Digest) -> TcpAddress | None:
            return address

        mine = await state.into.open_stream()
        await mine.write_frame(wire.TunnelOpen(sha256=SHA))
        theirs = await state.out.accept_stream()
        await state.near.serve(state.out, theirs, at_the_dead_one)
        assert await mine.read_frame() == wire.TunnelAccept(accepted=False)
        assert state.near.counters["engine-gone"] == 1


async def test_a_device_that_cannot_be_reached_closes_the_local_connection() -> None:
    async with pair(echo) as state:
        address = await state.near.expose(DeviceId("77" * 32), SHA)
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b""
        writer.close()
        assert state.near.counters["unreachable"] == 1


@pytest.mark.parametrize("who", ["near", "far"])
async def test_a_connection_lost_in_the_middle_breaks_both_local_ends(who: str) -> None:
    """Neither engine may take a torn connection for a finished one."""
    broken: asyncio.Queue[str] = asyncio.Queue()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(MIB))
                await writer.drain()
        except ConnectionError:
            broken.put_nowait("far engine")

    async with pair(flood) as state:
        reader, writer = await state.connect()
        await reader.readexactly(3 * MIB)
        (state.out if who == "near" else state.into).close(1, "pulled")
        with pytest.raises(ConnectionError):
            await read_to_end(reader)
        assert await broken.get() == "far engine"
        await state.ended.get()
        writer.close()
        assert state.near.counters["broken"] == 1


async def test_a_local_engine_that_dies_breaks_the_far_end_too() -> None:
    broken: asyncio.Queue[str] = asyncio.Queue()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(MIB))
                await writer.drain()
        except ConnectionError:
            broken.put_nowait("far engine")

    async with pair(flood) as state:
        reader, writer = await state.connect()
        await reader.readexactly(MIB)
        writer.transport.abort()
        assert await broken.get() == "far engine"
        await state.ended.get()


async def test_a_reader_that_stops_stops_the_sender_instead_of_filling_memory() -> None:
    sent = 0
    blocked = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(MIB))
            sent += MIB
            try:
                async with asyncio.timeout(1.0):
                    await writer.drain()
            except TimeoutError:
                blocked.set()
                return

    async with pair(flood) as state:
        _, writer = await state.connect()
        await blocked.wait()
        writer.transport.abort()
    # The reader's own buffer, four kernel buffers, the stream's window and a chunk at each end.
    assert sent < 40 * MIB


async def test_closing_ends_everything_within_the_time_of_a_shutdown() -> None:
    async with pair(echo) as state:
        reader, writer = await state.connect()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        async with asyncio.timeout(limits.SHUTDOWN_S):
            await state.near.close()
        with pytest.raises(ConnectionError):
            await read_to_end(reader)
        writer.close()
        await state.ended.get()
        assert state.near.active == state.far.active == 0


async def test_withdrawing_closes_the_port_and_leaves_open_tunnels_alone() -> None:
    async with pair(echo) as state:
        reader, writer = await state.connect()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        address = await state.expose()
        await state.near.withdraw(state.two.device, SHA)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        writer.close()


async def test_tunnels_of_one_device_are_bounded() -> None:
    async with pair(echo, streams_max=2) as state:
        held = [await state.connect() for _ in range(2)]
        for reader, writer in held:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        reader, writer = await state.connect()
        assert await reader.read() == b""
        assert state.near.counters["too-many"] == 1
        for _, each in [*held, (reader, writer)]:
            each.close()


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (wire.encode(wire.State()), "tunnel-out-of-order"),
        (b"\xff\xff\xff\xff\x30", "frame-too-large"),
        (wire.HEADER.pack(5, 0x30) + b"\xc1\xc1\xc1\xc1", "frame-malformed"),
        (wire.encode(wire.TunnelOpen(sha256="Z" * 64)), "frame-malformed"),
        (wire.encode(wire.TunnelOpen(sha256="../../etc/passwd")), "frame-malformed"),
    ],
)
async def test_a_stream_that_does_not_open_a_tunnel_is_named_and_dropped(first: bytes, kind: str) -> None:
    async with pair(echo) as state:
        stream = await state.out.open_stream()
        await stream.write_raw(first)
        await state.ended.get()
        assert [getattr(failure, "kind", None) for failure in state.failures] == [kind]
        assert state.sources == []
        reader, writer = await state.connect()
        writer.write(b"still works")
        assert await reader.readexactly(11) == b"still works"
        writer.close()


@pytest.mark.parametrize("past", [0, 1])
def test_counted_flows_are_bounded(past: int) -> None:
    class Still:
        remote = DeviceId("11" * 32)

        def path(self) -> Path:
            return Path("direct", 1, "192.0.2.1:1")

    async def count() -> dict[Flow, int]:
        carried: dict[Flow, int] = {}
        for number in range(limits.FLOWS_KEPT_MAX + past):
            meter = _Meter(carried, Still(), Digest(f"{number:064x}"), RelayBudget())  # type: ignore[arg-type]  # all it needs
            meter.sent(1)
            meter.sent(2)
        return carried

    carried = asyncio.run(count())
    assert len(carried) == limits.FLOWS_KEPT_MAX
    assert set(carried.values()) == {3}
    assert any(flow.sha256 == f"{0:064x}" for flow in carried) == (not past), "the oldest gives way"


class TestLoopbackAddresses:
    def test_the_same_device_gets_the_same_address_in_every_process(self) -> None:
        device = DeviceId("5a" * 32)
        assert LoopbackAddresses().address_of(device) == LoopbackAddresses().address_of(device)

    @given(st.lists(st.binary(min_size=32, max_size=32), unique=True, max_size=300))
    def test_devices_have_addresses_of_their_own_that_nothing_else_uses(self, keys: list[bytes]) -> None:
        table = LoopbackAddresses()
        given_out = [table.address_of(DeviceId(key.hex())) for key in keys]
        assert len(set(given_out)) == len(keys)
        for key, address in zip(keys, given_out, strict=True):
            ip = ipaddress.IPv4Address(address)
            assert ipaddress.IPv4Address("127.0.1.0") <= ip <= ipaddress.IPv4Address("127.254.255.255")
            assert table.device_at(address) == key.hex()

    def test_the_table_is_bounded_and_forgets_the_one_not_used_for_longest(self) -> None:
        table = LoopbackAddresses(size=3)
        devices = [DeviceId(f"{n:064x}") for n in range(4)]
        first = [table.address_of(device) for device in devices[:3]]
        table.address_of(devices[0])
        table.address_of(devices[3])
        assert len(table) == 3
        assert table.device_at(first[0]) == devices[0]
        assert table.device_at(first[1]) is None
