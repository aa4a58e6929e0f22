"""The doctor's words: each thing that can be wrong with a network is named, with what to ask for."""

from __future__ import annotations

import pytest

from driftseed.core import limits
from driftseed.core.doctor import Finding, Measured, Verdict, Way, findings
from driftseed.core.natprobe import Behaviour, Filtering, Mapping

HUB = Way(name="192.0.2.7:7700", ms=20.0)
NO_HUB = Way(name="192.0.2.7:7700", ms=None, why="does not answer within 5 s")
RELAY = Way(name="http://192.0.2.7:7700", ms=22.0)
NO_RELAY = Way(name="http://192.0.2.7:7700", ms=None, why="timed out")
EASY = Behaviour(Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT, hairpin=True)
SYMMETRIC = Behaviour(Mapping.ADDRESS_AND_PORT_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT, hairpin=False)


def well(**changes: object) -> Measured:
    values: dict[str, object] = {
        "hubs": [HUB],
        "relays": [RELAY],
        "nat": EASY,
        "stun_servers": 2,
        "port_mapping": ["UPnP"],
        "ipv6": ["2001:db8::1"],
        "ipv6_route": True,
        "clock_skew_s": 0.2,
        "free_bytes": limits.GIB,
        "lan_interfaces": ["eth0"],
    }
    return Measured(**(values | changes))  # type: ignore[arg-type]  # each test names the field it changes


def of(check: str, measured: Measured) -> Finding:
    (found,) = [each for each in findings(measured) if each.check == check]
    return found


def test_where_all_is_well_nothing_is_asked_for_that_matters() -> None:
    assert {each.verdict for each in findings(well())} == {Verdict.GOOD}


@pytest.mark.parametrize(
    ("check", "changes", "verdict", "words"),
    [
        ("udp", {"hubs": [NO_HUB], "stun_servers": 0}, Verdict.FAIR, "outgoing UDP"),
        ("udp", {"hubs": [NO_HUB], "stun_servers": 0, "relays": [NO_RELAY]}, Verdict.BAD, "outgoing TCP"),
        ("udp", {"hubs": [], "stun_servers": 0}, Verdict.UNKNOWN, "join"),
        ("hub", {"hubs": [NO_HUB]}, Verdict.BAD, "192.0.2.7:7700"),
        ("hub", {"hubs": [Way(name="h", ms=900.0)]}, Verdict.FAIR, ""),
        ("relay", {"relays": [NO_RELAY]}, Verdict.BAD, "WebSockets"),
        ("relay", {"relays": []}, Verdict.UNKNOWN, "relay"),
        ("nat", {"nat": SYMMETRIC}, Verdict.FAIR, "endpoint-independent mapping"),
        ("nat", {"nat": None, "stun_servers": 0}, Verdict.UNKNOWN, "--stun"),
        ("hairpin", {"nat": SYMMETRIC}, Verdict.FAIR, "hairpin"),
        ("port-mapping", {"port_mapping": [], "nat": SYMMETRIC}, Verdict.FAIR, "UPnP"),
        ("port-mapping", {"port_mapping": None}, Verdict.UNKNOWN, ""),
        ("ipv6", {"ipv6": [], "ipv6_route": False}, Verdict.FAIR, "IPv6"),
        ("ipv6", {"ipv6_route": False}, Verdict.FAIR, "default route"),
        ("proxy", {"proxy": "http://proxy:3128"}, Verdict.FAIR, "past the proxy"),
        (
            "proxy",
            {"proxy": "http://proxy:3128", "hubs": [NO_HUB], "relays": [NO_RELAY]},
            Verdict.BAD,
            "past the proxy",
        ),
        ("clock", {"clock_skew_s": -86400.0}, Verdict.BAD, "NTP"),
        ("clock", {"clock_skew_s": None}, Verdict.UNKNOWN, ""),
        ("disk", {"free_bytes": 1000}, Verdict.BAD, "free some space"),
        ("lan", {"lan_interfaces": []}, Verdict.FAIR, ""),
    ],
)
def test_each_trouble_is_named_with_what_to_ask_for(
    check: str, changes: dict[str, object], verdict: Verdict, words: str
) -> None:
    found = of(check, well(**changes))
    assert found.verdict is verdict
    assert words in found.ask


def test_the_clock_is_said_to_be_ahead_or_behind() -> None:
    assert "behind" in of("clock", well(clock_skew_s=-7200.0)).said
    assert "ahead" in of("clock", well(clock_skew_s=7200.0)).said


def test_one_hub_alone_cannot_tell_everything_and_it_is_said() -> None:
    assert "one hub" in of("nat", well(stun_servers=1)).said
    assert "one hub" not in of("nat", well(stun_servers=2)).said
