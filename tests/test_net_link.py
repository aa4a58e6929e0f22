"""Membership first: who gets past the handshake, and what the others learn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
import pytest

from driftseed.core import limits, wire
from driftseed.core.errors import (
    DriftseedError,
    LinkClosed,
    MembershipExpired,
    NotAMember,
    PeerMisbehaved,
    PeerStalled,
    TransportError,
    WrongFleet,
)
from driftseed.net.endpoint import Connection, Stream
from driftseed.net.link import Link, greet_in, greet_out
from support_net import (
    FLEET,
    OTHER_FLEET,
    WAIT_S,
    NamedMembers,
    certificate,
    connected,
    two_endpoints,
)


@pytest.fixture(autouse=True)
def brief_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused side that does not close, as some here do not, is waited for in vain."""
    monkeypatch.setattr(limits, "REFUSAL_LINGER_S", 0.3)


def outcome_of(result: Link | BaseException) -> type[object]:
    return type(result)


async def greet(
    *,
    out_word: str = "member",
    in_word: str = "member",
    out_fleet: bool = True,
    out_clock: Callable[[], float] = time.time,
) -> tuple[Link | BaseException, Link | BaseException]:
    """Both sides' results of one handshake."""
    async with two_endpoints() as (one, two):
        out, into = await connected(one, two)
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(
                greet_out(
                    out,
                    FLEET if out_fleet else OTHER_FLEET,
                    certificate(one, out_word),
                    NamedMembers(),
                    out_clock,
                ),
                greet_in(into, FLEET, certificate(two, in_word), NamedMembers(), time.time),
                return_exceptions=True,
            )
        failed = any(isinstance(result, BaseException) for result in results)
        assert out.closed == failed
        return results


async def test_two_members_know_each_other_and_share_a_control_stream() -> None:
    async with two_endpoints() as (one, two):
        out, into = await connected(one, two)
        async with asyncio.timeout(WAIT_S):
            there, here = await asyncio.gather(
                greet_out(out, FLEET, certificate(one), NamedMembers(), time.time),
                greet_in(into, FLEET, certificate(two), NamedMembers(), time.time),
            )
            assert (there.member.device, here.member.device) == (two.device, one.device)
            assert abs(there.clock_offset_s) < 1
            assert abs(here.clock_offset_s) < 1
            await there.control.write_frame(wire.State(timestamp_version=7))
            await here.control.write_frame(wire.State(timestamp_version=8))
            assert await here.control.read_frame() == wire.State(timestamp_version=7)
            assert await there.control.read_frame() == wire.State(timestamp_version=8)


async def test_a_clock_that_is_far_off_is_measured_on_both_sides() -> None:
    out, into = await greet(out_clock=lambda: time.time() + 86_400)
    assert isinstance(out, Link)
    assert isinstance(into, Link)
    assert out.clock_offset_s == pytest.approx(-86_400, abs=5)
    assert into.clock_offset_s == pytest.approx(86_400, abs=5)


@pytest.mark.parametrize(
    ("out_word", "in_word", "kind"),
    [
        ("forged", "member", NotAMember),
        ("member", "forged", NotAMember),
        ("expired", "member", MembershipExpired),
        ("member", "expired", MembershipExpired),
    ],
)
async def test_a_stranger_is_refused_by_either_side_and_told_why(
    out_word: str, in_word: str, kind: type[DriftseedError]
) -> None:
    out, into = await greet(out_word=out_word, in_word=in_word)
    assert type(out) is kind
    if out_word != "member":
        assert type(into) is kind
        assert isinstance(out, DriftseedError)
        assert f"refuses us ({kind.reason})" in out.message
        assert "is not signed" in out.message or "ended" in out.message
        assert out.hint
    else:
        # The dialling side found it out last; the accepting one hears of it on its control stream.
        assert isinstance(into, Link)


async def test_a_device_of_another_fleet_is_refused_and_told_so() -> None:
    out, into = await greet(out_fleet=False)
    assert type(out) is WrongFleet
    assert type(into) is WrongFleet
    assert isinstance(out, WrongFleet)
    assert "refuses us (wrong-fleet)" in out.message


async def test_a_borrowed_certificate_does_not_help() -> None:
    """A member's certificate, shown by another key: TLS proves the key, the certificate names it."""
    async with two_endpoints() as (one, two):
        out, into = await connected(one, two)
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(
                greet_out(out, FLEET, certificate(two), NamedMembers(), time.time),
                greet_in(into, FLEET, certificate(two), NamedMembers(), time.time),
                return_exceptions=True,
            )
    assert [outcome_of(result) for result in results] == [NotAMember, NotAMember]


async def test_a_refusal_that_is_read_on_an_established_link_says_why() -> None:
    async with two_endpoints() as (one, two):
        out, into = await connected(one, two)
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(
                greet_out(out, FLEET, certificate(one), NamedMembers(), time.time),
                greet_then_read(into, certificate(two, "expired")),
                return_exceptions=True,
            )
    assert type(results[0]) is MembershipExpired
    assert isinstance(results[1], wire.Refused)
    assert results[1].reason == "membership-expired"


async def greet_then_read(into: Connection, own: bytes) -> object:
    link = await greet_in(into, FLEET, own, NamedMembers(), time.time)
    return await link.control.read_frame()


HELLO_ROOM = limits.HELLO_BYTES_MAX


def padded_hello(total: int, device: str) -> bytes:
    """A hello whose frame has exactly ``total`` bytes after the length field, an unknown key as padding."""
    body = {"fleet": FLEET, "certificate": f"member:{device}".encode(), "clock": 0.0, "pad": b""}
    missing = total - 1 - len(msgspec.msgpack.encode(body))
    for size in range(missing, 0, -1):
        body["pad"] = bytes(size)
        encoded = msgspec.msgpack.encode(body)
        if len(encoded) == total - 1:
            return wire.HEADER.pack(total, 0x01) + encoded
    raise AssertionError("no padding fits")


async def greet_raw(first: Callable[[str], bytes], *, end: bool = False) -> Link | BaseException:
    """What the accepting side makes of a dialler that opens with these bytes."""
    async with two_endpoints() as (one, two):
        out, into = await connected(one, two)
        greeting = asyncio.create_task(greet_in(into, FLEET, certificate(two), NamedMembers(), time.time))
        async with asyncio.timeout(WAIT_S):
            stream = await out.open_stream()
            await stream.write_raw(first(one.device))
            if end:
                await stream.finish()
            (result,) = await asyncio.gather(greeting, return_exceptions=True)
            if isinstance(result, BaseException):
                await out.wait_closed()
        return result


async def test_a_hello_of_just_the_allowed_size_is_read() -> None:
    assert isinstance(await greet_raw(lambda device: padded_hello(HELLO_ROOM, device)), Link)


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (lambda device: padded_hello(HELLO_ROOM + 1, device), "frame-too-large"),
        (lambda _: b"\xff\xff\xff\xff\x01", "frame-too-large"),
        (lambda _: b"\0\0\0\0\x01", "frame-empty"),
        (lambda _: b"\0\0\0\x05\x01\xc1\xc1\xc1\xc1", "frame-malformed"),
        (lambda _: b"\0\0\0\x04\x01\x01\x02\x03", "frame-malformed"),
        (lambda _: b"\0\0\0\x02\x7f\x80", "handshake-out-of-order"),
        (lambda _: wire.encode(wire.State()), "handshake-out-of-order"),
        (
            lambda _: wire.encode(wire.Hello(fleet=FLEET, certificate=b"", clock=float("nan"))),
            "frame-malformed",
        ),
    ],
)
async def test_garbage_instead_of_a_hello_closes_the_connection_under_its_name(
    first: Callable[[str], bytes], kind: str
) -> None:
    result = await greet_raw(first)
    assert isinstance(result, PeerMisbehaved), result
    assert result.kind == kind


async def test_a_hello_that_stops_in_the_middle_is_no_hello() -> None:
    result = await greet_raw(lambda device: padded_hello(500, device)[:300], end=True)
    assert isinstance(result, PeerMisbehaved)
    assert result.kind == "frame-truncated"


async def test_a_stream_that_ends_before_the_hello_is_a_closed_link() -> None:
    assert isinstance(await greet_raw(lambda _: b"", end=True), LinkClosed)


async def test_a_peer_that_connects_and_says_nothing_is_given_up_and_others_get_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.5)
    async with two_endpoints() as (one, two):
        silent_out, silent_in = await connected(one, two)
        silent = asyncio.create_task(greet_in(silent_in, FLEET, certificate(two), NamedMembers(), time.time))
        out, into = await connected(one, two)
        async with asyncio.timeout(WAIT_S):
            there, here = await asyncio.gather(
                greet_out(out, FLEET, certificate(one), NamedMembers(), time.time),
                greet_in(into, FLEET, certificate(two), NamedMembers(), time.time),
            )
            assert not silent.done()
            with pytest.raises(PeerStalled):
                await silent
            await silent_out.wait_closed()
            await there.control.write_frame(wire.State())
            assert await here.control.read_frame() == wire.State()


async def test_nothing_but_the_hello_is_read_before_membership_is_proved() -> None:
    """What follows the hello at once is kept for whoever reads the control stream, unparsed."""

    def first(device: str) -> bytes:
        hello = wire.Hello(fleet=FLEET, certificate=f"member:{device}".encode())
        return wire.encode(hello) + b"\xff\xff\xff\xff\xff"

    result = await greet_raw(first)
    assert isinstance(result, Link)


async def open_pair(out: Connection, into: Connection) -> tuple[Stream, Stream]:
    mine = await out.open_stream()
    await mine.write_raw(b"\0")
    theirs = await into.accept_stream()
    assert await theirs.read_raw(1) == b"\0"
    return mine, theirs


async def test_a_peer_that_stops_inside_a_frame_has_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 0.3)
    async with two_endpoints() as (one, two), asyncio.timeout(WAIT_S):
        mine, theirs = await open_pair(*await connected(one, two))
        await mine.write_raw(wire.encode(wire.Observed(addr="1.2.3.4:5"))[:-3])
        with pytest.raises(PeerStalled, match="stopped arriving"):
            await theirs.read_frame(timeout=None)
        with pytest.raises(LinkClosed):
            await theirs.read_frame(timeout=None)


async def test_frames_at_the_bound_pass_and_one_byte_past_it_do_not() -> None:
    most = len(wire.encode(wire.Notice(timestamp=bytes(9000)))) - 4
    async with two_endpoints() as (one, two), asyncio.timeout(WAIT_S):
        mine, theirs = await open_pair(*await connected(one, two))
        await mine.write_frame(wire.Notice(timestamp=bytes(9000)))
        await mine.write_frame(wire.State())
        assert await theirs.read_frame(most) == wire.Notice(timestamp=bytes(9000))
        assert await theirs.read_frame(most) == wire.State()
        await mine.write_frame(wire.Notice(timestamp=bytes(9001)))
        with pytest.raises(PeerMisbehaved) as caught:
            await theirs.read_frame(most)
        assert caught.value.kind == "frame-too-large"


async def test_many_frames_in_any_pieces_come_out_as_they_went_in() -> None:
    frames = [wire.Notice(timestamp=bytes([n % 256]) * (n * 37 % 9000)) for n in range(120)]
    sent = b"".join(wire.encode(frame) for frame in frames)
    async with two_endpoints() as (one, two), asyncio.timeout(WAIT_S):
        mine, theirs = await open_pair(*await connected(one, two))

        async def send() -> None:
            for start in range(0, len(sent), 1777):
                await mine.write_raw(sent[start : start + 1777])
            await mine.write_raw(b"rest")
            await mine.finish()

        sending = asyncio.create_task(send())
        assert [await theirs.read_frame() for _ in frames] == frames
        await sending
        rest = b""
        while data := await theirs.read_raw(2):
            rest += data
        assert rest == b"rest"
        assert await theirs.read_frame() is None


async def test_a_reset_stream_is_a_closed_link_to_the_other_side() -> None:
    async with two_endpoints() as (one, two), asyncio.timeout(WAIT_S):
        mine, theirs = await open_pair(*await connected(one, two))
        await mine.reset(7)
        await mine.reset(7)
        with pytest.raises(LinkClosed, match="7"):
            await theirs.read_raw(10)
        with pytest.raises(LinkClosed):
            await mine.write_raw(b"x")


async def test_a_cancelled_read_makes_the_stream_say_so_instead_of_losing_bytes() -> None:
    async with two_endpoints() as (one, two), asyncio.timeout(WAIT_S):
        mine, theirs = await open_pair(*await connected(one, two))
        reading = asyncio.create_task(theirs.read_frame(timeout=None))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await mine.write_frame(wire.State())
        with pytest.raises(TransportError):
            await theirs.read_frame()


async def test_a_stranger_cannot_fill_memory_before_it_proves_anything() -> None:
    """It begins a hello, and fills streams that nobody reads as far as the engine lets it."""
    async with two_endpoints() as (one, two):
        out, into = await connected(one, two)
        greeting = asyncio.create_task(greet_in(into, FLEET, certificate(two), NamedMembers(), time.time))
        first = await out.open_stream()
        await first.write_raw(padded_hello(500, one.device)[:300])

        async def fill() -> None:
            stream = await out.open_stream()
            await stream.write_raw(bytes(2 * limits.MIB))

        async with asyncio.timeout(WAIT_S):
            floods = [asyncio.create_task(fill()) for _ in range(20)]
            with pytest.raises(PeerMisbehaved) as caught:
                await greeting
            await out.wait_closed()
            await asyncio.gather(*floods, return_exceptions=True)
        assert caught.value.kind == "handshake-flood"
