"""Limits that no other test meets by name: each at its bound, and one past it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from driftseed.agent.config import AgentConfig
from driftseed.core import limits
from driftseed.core.errors import MetadataInvalid, PeerMisbehaved
from driftseed.core.gossip import NoticeBook
from driftseed.core.ids import DeviceId
from driftseed.core.model import HealthCheck, NodeAddress
from driftseed.core.neighbours import DirectoryBook, Tie, choose_prunes
from driftseed.core.rate import TokenBucket
from driftseed.install.modules.unpack import unpack
from driftseed.net.loopback import LoopbackAddresses
from driftseed.net.relay import RelayServer
from driftseed.net.relay_frames import Forward, FrameType, parse_client_frame, ping_frame
from driftseed.node.node import NodeOptions
from driftseed.trust.chain import DELEGATED, delegated_roles
from driftseed.trust.tufapi import DelegatedRole, Delegations, Targets

OWN = DeviceId("ff" * 32)


def device(number: int) -> DeviceId:
    return DeviceId(f"{number:064x}")


@pytest.mark.parametrize(
    ("rate", "burst"),
    [
        (limits.FRAMES_PER_SECOND_MAX, limits.FRAMES_BURST_MAX),
        (limits.LAN_ANNOUNCEMENTS_PER_SECOND, limits.LAN_ANNOUNCEMENTS_BURST),
        (limits.STUN_ANSWERS_PER_SECOND, limits.STUN_ANSWERS_PER_SECOND),
        (limits.DIAL_BACKS_PER_SECOND, limits.DIAL_BACKS_BURST),
    ],
    ids=["frames", "announcements", "stun", "dial-backs"],
)
def test_rates(rate: float, burst: float) -> None:
    """The burst at once, then as many as the rate lets come back in a second."""
    bucket = TokenBucket(rate, float(burst))
    assert all(bucket.take(1.0, 0.0) for _ in range(int(burst)))
    assert not bucket.take(1.0, 0.0)
    assert all(bucket.take(1.0, 1.0) for _ in range(int(rate)))
    assert not bucket.take(1.0, 1.0)


def test_notices_kept() -> None:
    book = NoticeBook()
    for number in range(limits.NOTICES_KEPT_MAX):
        assert book.first_sight(b"%d" % number, OWN)
    assert not book.first_sight(b"0", OWN), "at the bound the first is still known, and is the newest now"
    assert book.first_sight(b"one more", OWN)
    assert book.first_sight(b"1", OWN), "one past it, the oldest is new again"


def test_lan_contacts() -> None:
    book = DirectoryBook(OWN)

    def announce(number: int) -> None:
        book.announced(NodeAddress(device=device(number), addrs=["192.0.2.1:1"]), 0.0)

    for number in range(limits.LAN_CONTACTS_MAX):
        announce(number)
    assert book.is_announced(device(0))
    announce(limits.LAN_CONTACTS_MAX)
    assert not book.is_announced(device(0))
    assert book.is_announced(device(1))


@pytest.mark.parametrize("past", [0, 1])
def test_incoming_links(past: int) -> None:
    ties = [
        Tie(device=device(number), role="agent", outgoing=False, since=float(number))
        for number in range(limits.LINKS_INCOMING_MAX + past)
    ]
    assert len(choose_prunes(ties, neighbours_max=limits.NEIGHBOURS_ACTIVE_MAX)) == past


@pytest.mark.parametrize("past", [0, 1])
def test_announced_neighbours(past: int) -> None:
    ties = [
        Tie(device=device(number), role="agent", outgoing=True, since=float(number), announced=True)
        for number in range(limits.LAN_NEIGHBOURS_MAX + past)
    ]
    assert len(choose_prunes(ties, neighbours_max=0)) == past


def _targets(roles: int) -> Targets:
    names = [*sorted(DELEGATED), *(f"team-{number}" for number in range(roles - len(DELEGATED)))]
    made = {
        name: DelegatedRole(name, ["00" * 32], 1, terminating=True, paths=[f"{name}/*"]) for name in names
    }
    return Targets(delegations=Delegations({}, made))


def test_delegations() -> None:
    assert len(delegated_roles(_targets(limits.DELEGATIONS_MAX))) == limits.DELEGATIONS_MAX
    with pytest.raises(MetadataInvalid, match=str(limits.DELEGATIONS_MAX)):
        delegated_roles(_targets(limits.DELEGATIONS_MAX + 1))


def test_relay_frames() -> None:
    ping = ping_frame(bytes(8))
    parse_client_frame(ping.ljust(limits.RELAY_FRAME_BYTES_MAX, b"\0"))
    with pytest.raises(PeerMisbehaved, match="a relay frame of") as refused:
        parse_client_frame(ping.ljust(limits.RELAY_FRAME_BYTES_MAX + 1, b"\0"))
    assert refused.value.kind == "frame-too-large"


def test_relay_payloads() -> None:
    head = bytes([FrameType.DATAGRAM_TO]) + bytes(33)
    assert isinstance(parse_client_frame(head + bytes(limits.RELAY_PAYLOAD_BYTES_MAX)), Forward)
    with pytest.raises(PeerMisbehaved, match="a relayed payload of") as refused:
        parse_client_frame(head + bytes(limits.RELAY_PAYLOAD_BYTES_MAX + 1))
    assert refused.value.kind == "frame-too-large"


def test_loopback_addresses() -> None:
    table = LoopbackAddresses()
    for number in range(limits.LOOPBACK_ADDRESSES_MAX):
        table.address_of(device(number))
    first = table.address_of(device(0))
    assert table.device_at(first) == device(0)
    table.address_of(device(limits.LOOPBACK_ADDRESSES_MAX))
    assert len(table) == limits.LOOPBACK_ADDRESSES_MAX
    assert table.device_at(first) == device(0), "used last, so another gives way"


@pytest.mark.parametrize(
    ("where", "parameter", "value"),
    [
        (unpack, "bytes_max", limits.UNPACKED_BYTES_MAX),
        (unpack, "entries_max", limits.UNPACKED_ENTRIES_MAX),
        (RelayServer, "bytes_per_second", limits.RELAY_BYTES_PER_SECOND),
        (RelayServer, "clients_max", limits.RELAY_CLIENTS_MAX),
        (NodeOptions, "accept_max", 4 * limits.LINKS_INCOMING_MAX),
        (NoticeBook, "peers_max", limits.HUB_LINKS_MAX),
    ],
)
def test_a_limit_that_is_a_parameter_is_its_default(
    where: Callable[..., Any], parameter: str, value: float
) -> None:
    """Too large to be met in a test: the parameter is, elsewhere, and this is where its value comes from."""
    assert inspect.signature(where).parameters[parameter].default == value


def test_limits_that_are_defaults_of_settings_and_documents() -> None:
    assert AgentConfig().content_quota_bytes == limits.CONTENT_QUOTA_DEFAULT
    assert HealthCheck(command=["x"]).timeout_s == limits.HEALTH_TIMEOUT_S
