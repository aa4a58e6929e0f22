"""The address of a hub as people copy it: what is read is what was written, and slips are named."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.addresses import format_address, parse_address, parse_host_port, parse_relay_url
from driftseed.core.errors import Misuse
from driftseed.core.model import NodeAddress
from driftseed.publish.resolve import resolve_address

ID = "5a" * 32

ports = st.integers(1, 65535)
fours = st.ip_addresses(v=4).map(str)
sixes = st.ip_addresses(v=6).map(str).filter(lambda text: "%" not in text).map("[{}]".format)
sockets = st.builds(lambda host, port: f"{host}:{port}", st.one_of(fours, sixes), ports)
relays = st.one_of(
    st.none(),
    st.builds(lambda scheme, host: f"{scheme}://{host}", st.sampled_from(["http", "https"]), sockets),
)


@given(device=st.binary(min_size=32, max_size=32), addrs=st.lists(sockets, max_size=16), relay=relays)
def test_what_is_written_is_read_again(device: bytes, addrs: list[str], relay: str | None) -> None:
    address = NodeAddress(device=device.hex(), addrs=addrs, relay=relay)
    if not addrs and relay is None:
        with pytest.raises(Misuse, match="no way to reach"):
            parse_address(format_address(address))
        return
    written = parse_address(format_address(address))
    assert (
        NodeAddress(device=written.device, addrs=[str(host) for host in written.hosts], relay=written.relay)
        == address
    )


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_as_misuse(text: str) -> None:
    with contextlib.suppress(Misuse):
        parse_address(text)


@given(st.text(alphabet="0123456789abcdef.:[]@;=,relay/hp\t\n ", max_size=60))
def test_any_tail_is_read_or_refused_as_misuse(tail: str) -> None:
    with contextlib.suppress(Misuse):
        assert parse_address(f"{ID}@{tail}").hosts


def test_the_relay_is_at_the_first_address_unless_it_is_named() -> None:
    assert (
        parse_address(f"{ID}@Hub.Example.org:7700,[2001:DB8::1]:7700").relay == "http://hub.example.org:7700"
    )
    assert parse_address(f"{ID}@192.0.2.7:7700;relay=https://r.example.org").relay == "https://r.example.org"
    assert parse_address(f"{ID}@192.0.2.7:7700;relay=none").relay is None
    assert parse_address(f"{ID};relay=https://r.example.org").hosts == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("192.0.2.7:7700", "not a device id"),
        (f"{ID[:-1]}@192.0.2.7:7700", "not a device id"),
        (f"{ID}@192.0.2.7", "192.0.2.7"),
        (f"{ID}@192.0.2.7:65536", "65536"),
        (f"{ID}@192.0.2.7:0", "port 0"),
        (f"{ID}@192.0.2.256:7700", "256"),
        (f"{ID}@2001:db8::1:7700", "2001:db8"),
        (f"{ID}@[fe80::1%eth0]:7700", "fe80"),
        (f"{ID}@hub example:7700", "hub example"),
        (f"{ID}@", "''"),
        (f"{ID}@192.0.2.7:7700,", "''"),
        (ID, "no way to reach"),
        (f"{ID};relay=none", "no way to reach"),
        (f"{ID}@192.0.2.7:7700;port=3", "port=3"),
        (f"{ID}@192.0.2.7:7700;relay=ftp://x", "ftp"),
        (f"{ID}@192.0.2.7:7700;relay=http://", "http://"),
        (f"{ID}@192.0.2.7:7700;relay=http://x:99999", "99999"),
        (f"{ID}@192.0.2.7:7700;relay=http://a b", "a b"),
        (f"{ID}@" + ",".join(f"192.0.2.7:{port}" for port in range(1, 18)), "17 addresses"),
    ],
)
def test_a_slip_is_named(text: str, says: str) -> None:
    with pytest.raises(Misuse) as caught:
        parse_address(text)
    assert says in caught.value.message
    assert caught.value.hint


def test_a_relay_url_with_a_newline_is_not_what_it_seems() -> None:
    with pytest.raises(Misuse):
        parse_relay_url("http://good.example\n.evil.example")


def test_a_listening_port_may_be_any_free_one() -> None:
    assert str(parse_host_port("[::]:0")) == "[::]:0"
    assert str(parse_host_port("localhost:7700")) == "localhost:7700"


def test_a_name_is_resolved_once_and_that_is_said() -> None:
    resolved = resolve_address(parse_address(f"{ID}@localhost:7700"))
    assert "127.0.0.1:7700" in resolved.address.addrs
    assert resolved.address.relay == "http://localhost:7700"
    assert "localhost is " in resolved.notes[0]


def test_an_address_needs_no_resolving() -> None:
    resolved = resolve_address(parse_address(f"{ID}@192.0.2.7:7700"))
    assert resolved.address.addrs == ["192.0.2.7:7700"]
    assert resolved.notes == ()
