"""Endpoints: who can be dialled, who gets in, and what no peer can break."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path as FilePath
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits, wire
from driftseed.core.errors import (
    DeviceError,
    LinkClosed,
    Misuse,
    PeerStalled,
    PeerUnreachable,
    PortTaken,
    StoreDamaged,
    UnsafePermissions,
)
from driftseed.core.ids import DeviceId
from driftseed.core.model import NodeAddress
from driftseed.net.endpoint import Endpoint, Path
from driftseed.net.identity import Identity
from driftseed.net.paths import classify, format_socket_addr, parse_socket_addr, usable_addrs
from support_net import ALPNS, WAIT_S, accepted, connected, endpoint, two_endpoints, until
from support_relay import relay

NOBODY = Identity.generate().device


class TestIdentity:
    def test_a_key_is_made_once_and_is_readable_by_its_owner_only(self, tmp_path: FilePath) -> None:
        path = tmp_path / "identity"
        first = Identity.load_or_create(path)
        assert Identity.load_or_create(path).device == first.device
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_key_that_others_can_read_is_refused(self, tmp_path: FilePath) -> None:
        path = tmp_path / "identity"
        Identity.load_or_create(path)
        path.chmod(0o644)
        with pytest.raises(UnsafePermissions):
            Identity.load_or_create(path)

    def test_a_damaged_key_is_not_replaced_by_another_identity(self, tmp_path: FilePath) -> None:
        path = tmp_path / "identity"
        Identity.load_or_create(path)
        path.write_bytes(b"torn")
        with pytest.raises(StoreDamaged, match="4 bytes"):
            Identity.load_or_create(path)
        assert path.read_bytes() == b"torn"

    async def test_the_transport_and_the_signature_are_of_the_same_key(self) -> None:
        identity = Identity.generate()
        async with endpoint(identity) as opened:
            assert opened.device == identity.device
            assert len(identity.sign(b"report")) == 64
        assert identity.secret.hex() not in repr(identity)


class TestOpening:
    @pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0"])
    async def test_an_address_to_listen_on_opens_no_other_one_to_the_network(self, bind: str) -> None:
        """The engine would open the wildcard of the other address family beside it."""
        async with endpoint(bind=bind) as opened:
            sockets = [parsed[0] for parsed in map(parse_socket_addr, opened.bound) if parsed is not None]
            assert len(sockets) == 2
            assert all(ip.is_loopback for ip in sockets), opened.bound
            family = 6 if bind.startswith("[") else 4
            told = [parsed[0].version for parsed in map(parse_socket_addr, opened.addresses()) if parsed]
            assert told == [family], "what only this machine could use is not told to others"

    async def test_a_wildcard_opens_both_address_families(self) -> None:
        async with endpoint(bind="0.0.0.0:0") as opened:
            assert {each.rpartition(":")[0] for each in opened.bound} == {"0.0.0.0", "[::]"}

    async def test_a_taken_port_is_said_to_be_taken(self) -> None:
        async with endpoint() as first:
            with pytest.raises(PortTaken, match=f"127.0.0.1:{first.port}"):
                await Endpoint.open(Identity.generate(), bind=f"127.0.0.1:{first.port}", alpns=ALPNS)

    async def test_an_address_of_another_machine_cannot_be_bound(self) -> None:
        with pytest.raises(DeviceError, match=r"cannot listen on 192\.0\.2\.77:0"):
            await Endpoint.open(Identity.generate(), bind="192.0.2.77:0", alpns=ALPNS)

    @pytest.mark.parametrize("bind", ["nonsense", "localhost:1", "1.2.3.4", "1.2.3.4:70000"])
    async def test_a_place_to_listen_that_is_none_is_misuse(self, bind: str) -> None:
        with pytest.raises(Misuse, match="not an address"):
            await Endpoint.open(Identity.generate(), bind=bind, alpns=ALPNS)

    async def test_a_relay_that_is_no_url_is_misuse(self) -> None:
        with pytest.raises(Misuse, match="relay"):
            await Endpoint.open(
                Identity.generate(), bind="127.0.0.1:0", alpns=ALPNS, relays=["relay.example"]
            )

    async def test_its_own_addresses_can_be_dialled_and_external_ones_come_and_go(self) -> None:
        async with endpoint() as opened:
            assert opened.addresses() == [f"127.0.0.1:{opened.port}"]
            await opened.add_external("203.0.113.9:7")
            await opened.add_external("203.0.113.9:7")
            await opened.add_external("not an address")
            await opened.remove_external("203.0.113.9:7")
            await opened.remove_external("203.0.113.9:7")
            assert opened.address() == NodeAddress(device=opened.device, addrs=opened.addresses(), relay=None)

    async def test_relays_can_be_changed_and_changed_back(self) -> None:
        async with relay() as (server, url), endpoint() as opened:
            assert opened.relay is None
            await opened.set_relays([url])
            await until(lambda: server.stats()["clients"] == 1)
            await opened.set_relays([])
            with pytest.raises(Misuse):
                await opened.set_relays(["ftp://x"])

    async def test_closing_ends_accepting_and_connections_and_may_be_repeated(self) -> None:
        async with two_endpoints() as (one, two):
            out, into = await connected(one, two)
            waiting = [asyncio.create_task(two.accept()) for _ in range(2)]
            await asyncio.sleep(0)
            async with asyncio.timeout(limits.SHUTDOWN_S):
                await two.close()
                await two.close()
                assert await asyncio.gather(*waiting) == [None, None]
                assert await two.accept() is None
                await out.wait_closed()
            assert out.closed
            assert into.closed
            with pytest.raises(LinkClosed):
                await out.open_stream()


class TestDialling:
    async def test_a_device_of_which_no_address_is_known_fails_at_once(self) -> None:
        async with endpoint() as one:
            with pytest.raises(PeerUnreachable, match="neither an address nor a relay"):
                await one.dial(NodeAddress(device=NOBODY), wire.ALPN_OVERLAY)

    async def test_a_device_that_is_not_there_fails_in_the_time_given(self) -> None:
        async with endpoint() as one:
            loop = asyncio.get_running_loop()
            start = loop.time()
            with pytest.raises(PeerUnreachable, match=r"within 0\.3 s"):
                await one.dial(
                    NodeAddress(device=NOBODY, addrs=["127.0.0.1:9"]), wire.ALPN_OVERLAY, timeout=0.3
                )
            assert loop.time() - start < 3

    async def test_another_key_at_the_right_address_is_not_the_device(self) -> None:
        async with two_endpoints() as (one, two):
            with pytest.raises(PeerUnreachable):
                await one.dial(
                    NodeAddress(device=NOBODY, addrs=two.addresses()), wire.ALPN_OVERLAY, timeout=2
                )
            assert not two.counters["handshake-timeout"]

    async def test_a_key_that_is_none_cannot_be_dialled(self) -> None:
        async with endpoint() as one:
            with pytest.raises(PeerUnreachable, match="not a valid public key"):
                await one.dial(NodeAddress(device="02" + "00" * 31, addrs=["127.0.0.1:9"]), wire.ALPN_OVERLAY)

    async def test_addresses_that_cannot_be_sent_to_do_not_spoil_the_others(self) -> None:
        """A hostile directory entry."""
        async with two_endpoints() as (one, two):
            addrs = ["garbage", "0.0.0.0:5", "224.0.0.1:5", "255.255.255.255:5", *two.addresses()]
            address = NodeAddress(device=two.device, addrs=addrs)
            out, _ = await asyncio.gather(one.dial(address, wire.ALPN_OVERLAY), accepted(two))
            assert out.remote == two.device

    async def test_a_protocol_that_is_not_spoken_is_refused_and_the_next_one_gets_in(self) -> None:
        async with two_endpoints() as (one, two):
            with pytest.raises(PeerUnreachable, match="protocol"):
                await one.dial(two.address(), b"nonsense/1", timeout=WAIT_S)
            out, into = await connected(one, two)
            assert (out.alpn, into.alpn) == (wire.ALPN_OVERLAY, wire.ALPN_OVERLAY)
            assert two.counters["handshake-failed"] == 1

    async def test_a_device_that_dialled_us_can_be_dialled_back_without_an_address(self) -> None:
        async with two_endpoints() as (one, two):
            await connected(one, two)
            back, _ = await asyncio.gather(
                two.dial(NodeAddress(device=one.device), wire.ALPN_TUNNEL), accepted(one)
            )
            assert back.remote == one.device


class TestConnections:
    async def test_the_path_is_known_and_so_is_where_the_peer_is_seen(self) -> None:
        async with two_endpoints() as (one, two):
            out, into = await connected(one, two)
            assert out.path().kind == "lan"
            assert out.remote_socket_addr() == f"127.0.0.1:{two.port}"
            assert into.remote_socket_addr() == f"127.0.0.1:{one.port}"

    async def test_a_move_from_the_relay_to_a_direct_path_is_reported(self) -> None:
        async with (
            relay() as (_, url),
            endpoint(relays=[url]) as one,
            endpoint(relays=[url]) as two,
            asyncio.timeout(WAIT_S),
        ):
            address = NodeAddress(device=two.device, relay=url)
            out, _ = await asyncio.gather(one.dial(address, wire.ALPN_OVERLAY), accepted(two))
            moved: asyncio.Queue[Path] = asyncio.Queue()
            watch = out.watch_path(moved.put_nowait)
            while out.path().kind == "relayed":
                await moved.get()
            assert out.path().kind == "lan"
            await watch.stop()
            await watch.stop()

    async def test_waiting_for_a_stream_that_nobody_opens_ends(self) -> None:
        async with two_endpoints() as (one, two):
            _, into = await connected(one, two)
            with pytest.raises(PeerStalled, match="opened no stream"):
                await into.accept_stream(0.05)

    async def test_why_a_connection_was_closed_reaches_the_other_side(self) -> None:
        async with two_endpoints() as (one, two):
            out, into = await connected(one, two)
            assert not into.closed
            out.close(7, "tired " * 100)
            async with asyncio.timeout(WAIT_S):
                assert "tired" in await into.wait_closed()
            with pytest.raises(LinkClosed, match="ended"):
                await into.accept_stream()

    async def test_a_change_of_our_own_addresses_is_reported(self) -> None:
        async with relay() as (_, url), endpoint() as one, asyncio.timeout(WAIT_S):
            changed = asyncio.Event()
            one.on_address_change(changed.set)
            await one.set_relays([url])
            await changed.wait()


class OnlyFirst(asyncio.DatagramProtocol):
    """Forwards the first datagram of a handshake and swallows the rest: a half-open connection."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.forwarded = False
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self.forwarded and addr != self.target and self.transport is not None:
            self.forwarded = True
            self.transport.sendto(data, self.target)


@asynccontextmanager
async def half_open(dialler: Endpoint, target: Endpoint) -> AsyncIterator[None]:
    """A handshake at ``target`` that never gets further than its first packet."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: OnlyFirst(("127.0.0.1", target.port)), local_addr=("127.0.0.1", 0)
    )
    host, port = transport.get_extra_info("sockname")
    address = NodeAddress(device=target.device, addrs=[f"{host}:{port}"])
    dialling = asyncio.create_task(dialler.dial(address, wire.ALPN_OVERLAY, timeout=WAIT_S))
    try:
        yield
    finally:
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)
        transport.close()


class TestHostileArrivals:
    async def test_datagrams_of_garbage_change_nothing(self) -> None:
        async with two_endpoints() as (one, two):
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=("127.0.0.1", two.port)
            )
            for size in (0, 1, 20, 300, 1200, 1400):
                transport.sendto(os.urandom(size))
                transport.sendto(b"\xc0\0\0\0\1" + os.urandom(size))
            out, _ = await connected(one, two)
            assert not out.closed
            transport.close()

    async def test_a_half_open_handshake_is_given_up_counted_and_delays_nobody(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.5)
        async with two_endpoints() as (one, two), endpoint() as slow, half_open(slow, two):
            async with asyncio.timeout(WAIT_S):
                await until(lambda: bool(two._pending))
                out, _ = await connected(one, two)
                assert not out.closed
                await until(lambda: two.counters["handshake-timeout"] > 0)
                await until(lambda: not two._pending)

    async def test_a_crowd_of_half_open_handshakes_does_not_keep_an_honest_device_out(self) -> None:
        async with (
            endpoint() as one,
            endpoint() as slow,
            endpoint(pending_max=4) as two,
            AsyncExitStack() as stack,
        ):
            for _ in range(12):
                await stack.enter_async_context(half_open(slow, two))
            # It may be turned away while all places are taken, and dials again, as every device does.
            async with asyncio.timeout(WAIT_S):
                while True:
                    try:
                        out, _ = await connected(one, two)
                    except PeerUnreachable:
                        continue
                    break
            assert not out.closed
            assert len(two._pending) <= 5

    async def test_connections_that_nobody_looks_at_are_bounded(self) -> None:
        async with endpoint() as one, endpoint(pending_max=2) as two, asyncio.timeout(WAIT_S):
            dialled = [await one.dial(two.address(), wire.ALPN_OVERLAY) for _ in range(4)]
            await until(lambda: two.counters["handshake-refused"] == 2)
            assert two._accepted.qsize() == 2
            await asyncio.wait(
                [asyncio.create_task(connection.wait_closed()) for connection in dialled],
                return_when=asyncio.FIRST_COMPLETED,
            )


class TestPaths:
    @pytest.mark.parametrize(
        ("remote", "own", "kind"),
        [
            ("127.0.0.1:5", [], "lan"),
            ("[::1]:5", [], "lan"),
            ("169.254.3.4:5", [], "lan"),
            ("[fe80::1]:5", [], "lan"),
            ("192.168.1.7:5", ["192.168.1.9:4711"], "lan"),
            ("192.168.2.7:5", ["192.168.1.9:4711"], "direct"),
            ("10.0.0.7:5", [], "direct"),
            ("10.0.0.7:5", ["10.0.0.9:5"], "lan"),
            ("172.31.0.7:5", ["172.31.0.9:5"], "lan"),
            ("172.32.0.7:5", ["172.32.0.9:5"], "direct"),
            ("[fd12:3456::7]:5", ["[fd12:3456::9]:5"], "lan"),
            # A carrier's customers (RFC 6598), and what Python too calls private: RFC 2544, RFC 5737, 240.0.0.0/4.
            ("100.64.1.7:5", ["100.64.1.9:5"], "direct"),
            ("100.127.1.7:5", ["100.127.1.9:5"], "direct"),
            ("198.18.1.7:5", ["198.18.1.9:5"], "direct"),
            ("198.19.1.7:5", ["198.19.1.9:5"], "direct"),
            ("192.0.2.7:5", ["192.0.2.9:5"], "direct"),
            ("198.51.100.7:5", ["198.51.100.9:5"], "direct"),
            ("203.0.113.7:5", ["203.0.113.9:5"], "direct"),
            ("192.0.0.7:5", ["192.0.0.9:5"], "direct"),
            ("240.0.0.7:5", ["240.0.0.9:5"], "direct"),
            ("198.51.100.7:5", ["203.0.113.9:5"], "direct"),
            ("8.8.8.7:5", ["8.8.8.9:5"], "direct"),
            ("[2001:db8:1:2::7]:5", ["[2001:db8:1:2::9]:5"], "lan"),
            ("[2a00:1450:4001:2::7]:5", ["[2a00:1450:4001:2::9]:5"], "lan"),
            ("[2a00:1450:4001:3::7]:5", ["[2a00:1450:4001:2::9]:5"], "direct"),
            ("[::ffff:192.168.1.7]:5", ["192.168.1.9:4711"], "lan"),
            ("http://relay.example/", [], "relayed"),
        ],
    )
    def test_what_counts_as_the_local_network(self, remote: str, own: list[str], kind: str) -> None:
        assert classify(remote, own) == kind

    @given(st.ip_addresses(), st.integers(0, 0xFFFF))
    def test_socket_addresses_come_back(self, ip: object, port: int) -> None:
        parsed = parse_socket_addr(f"[{ip}]:{port}" if ":" in str(ip) else f"{ip}:{port}")
        assert parsed is not None
        assert parse_socket_addr(format_socket_addr(*parsed)) == parsed

    @given(st.text(max_size=40))
    def test_no_text_breaks_the_parser(self, text: str) -> None:
        parsed = parse_socket_addr(text)
        assert parsed is None or parse_socket_addr(format_socket_addr(*parsed)) == parsed

    @pytest.mark.parametrize(
        "text",
        ["1.2.3.4", "1.2.3.4:", "1.2.3.4:-1", "1.2.3.4:65536", "::1:5", "[1.2.3.4]:5", "1.2.3.4:٣", ""],
    )
    def test_what_is_not_quite_an_address_is_none(self, text: str) -> None:
        assert parse_socket_addr(text) is None

    def test_usable_addresses_are_bounded_and_each_once(self) -> None:
        assert usable_addrs(["1.2.3.4:5", "1.2.3.4:5", "0.0.0.0:5", "1.2.3.4:0", "x", "5.6.7.8:9"], 16) == [
            "1.2.3.4:5",
            "5.6.7.8:9",
        ]
        assert len(usable_addrs([f"1.2.3.4:{port}" for port in range(1, 100)], 16)) == 16


def test_a_device_id_is_the_key() -> None:
    assert DeviceId(Identity(b"\1" * 32).device) == Identity(b"\1" * 32).device
