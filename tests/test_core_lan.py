"""Announcements on the LAN: who is recognised, and what a hostile one can do (nothing beyond this network)."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import lan
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import NodeAddress

OWN = DeviceId("aa" * 32)
OTHER = DeviceId("bb" * 32)
FLEET = FleetId("f1" * 32)
NETWORKS: list[lan.IpInterface] = [
    ipaddress.ip_interface("192.168.7.2/24"),
    ipaddress.ip_interface("fd00:7::2/64"),
]


def read(
    said: dict[bytes, bytes | None] | None = None, *addresses: str, port: int | None = 4711
) -> NodeAddress | lan.Ignored:
    honest = {key.encode(): value for key, value in lan.properties(OTHER, FLEET, port6=4712).items()}
    return lan.read(
        honest | (said or {}),
        [ipaddress.ip_address(each) for each in addresses or ("192.168.7.9",)],
        port,
        own=OWN,
        fleet=FLEET,
        networks=NETWORKS,
    )


def reason(answer: NodeAddress | lan.Ignored) -> str:
    assert isinstance(answer, lan.Ignored), answer
    return answer.reason


def test_a_member_is_found_at_both_families_each_with_its_port() -> None:
    assert read(None, "192.168.7.9", "fd00:7::9") == NodeAddress(
        device=OTHER, addrs=["192.168.7.9:4711", "[fd00:7::9]:4712"]
    )


def test_the_fleet_is_not_named_but_recognised() -> None:
    said = lan.properties(OWN, FLEET, port6=None)
    assert FLEET.encode()[:16] not in b"".join(said.values())
    assert lan.fleet_tag(FLEET) != lan.fleet_tag(FleetId("f2" * 32))
    assert reason(read({b"f": lan.fleet_tag(FleetId("f2" * 32)).encode()})) == "other-fleet"


def test_we_do_not_find_ourselves() -> None:
    assert reason(read({b"id": OWN.encode()})) == "own"


@pytest.mark.parametrize(
    "said",
    [
        {b"v": b"2"},
        {b"v": None},
        {b"f": None},
        {b"id": None},
        {b"id": b"\xff" * 64},
        {b"id": b"bb" * 31},
        {b"id": b"../" * 20},
        {b"p6": b"99999999"},
        {b"p6": b"-1"},
    ],
)
def test_what_no_device_would_say_is_counted_as_malformed(said: dict[bytes, bytes | None]) -> None:
    assert reason(read(said)) == "lan-malformed"


@pytest.mark.parametrize(
    "address",
    [
        "203.0.113.9",
        "192.168.8.9",
        "127.0.0.1",
        "224.0.0.251",
        "0.0.0.0",
        "192.168.7.255",
        "192.168.7.0",
        "fe80::9",
        "2001:db8::1",
    ],
)
def test_an_announcement_cannot_send_us_anywhere_but_to_this_network(address: str) -> None:
    """Otherwise one multicast packet would have a whole site dial a victim."""
    assert reason(read(None, address)) == "lan-off-link"


def test_addresses_taken_from_one_announcement_are_bounded() -> None:
    found = read(None, *(f"192.168.7.{number}" for number in range(10, 60)))
    assert isinstance(found, NodeAddress)
    assert len(found.addrs) == lan.ADDRESSES_MAX


@pytest.mark.parametrize("port", [None, 0, 65536])
def test_a_port_that_is_none_leads_nowhere(port: int | None) -> None:
    assert reason(read(None, "192.168.7.9", port=port)) == "lan-off-link"


@given(
    st.dictionaries(
        st.sampled_from([b"v", b"id", b"f", b"p6", b"x"]), st.none() | st.binary(max_size=80), max_size=5
    ),
    st.lists(st.ip_addresses(), max_size=8),
    st.none() | st.integers(-1, 70000),
)
def test_anything_at_all_is_read_or_ignored(
    said: dict[bytes, bytes | None], addresses: list[lan.IpAddress], port: int | None
) -> None:
    answer = lan.read(said, addresses, port, own=OWN, fleet=FLEET, networks=NETWORKS)
    if isinstance(answer, NodeAddress):
        assert answer.device != OWN
        assert len(answer.addrs) <= lan.ADDRESSES_MAX
