"""What was measured of a device's network, put into words that a person can act on: pure.

Each finding says what is so, and where something could be better also what to ask the network's owner for. None of
it is needed for updates to arrive as long as one way to a hub, or to a neighbour, works.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from msgspec import Struct

from driftseed.core import limits
from driftseed.core.natprobe import Behaviour, Filtering, Mapping

SLOW_MS: Final = 800.0
"""Milliseconds for one question and answer above which a way is called slow."""


class Verdict(StrEnum):
    """How good something is."""

    GOOD = "good"
    FAIR = "fair"
    """It works, and could be better."""
    BAD = "bad"
    UNKNOWN = "unknown"


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    check: str
    """Token: ``udp``, ``nat``, ``hairpin``, ``port-mapping``, ``ipv6``, ``hub``, ``relay``, ``proxy``, ``clock``, ``disk``, ``lan``."""
    verdict: Verdict
    said: str
    ask: str = ""
    """What to ask the network's owner for, or to do."""


class Way(Struct, frozen=True, kw_only=True):
    """A hub or relay that was tried."""

    name: str
    """A hub's address, or a relay's URL."""
    ms: float | None
    """Milliseconds of a round trip; None when it does not answer."""
    why: str = ""
    """Why not."""


class Measured(Struct, frozen=True, kw_only=True):
    """Everything that was measured; None for what could not be."""

    hubs: Sequence[Way] = ()
    """By UDP, each directly."""
    relays: Sequence[Way] = ()
    nat: Behaviour | None = None
    stun_servers: int = 0
    """Hubs that answered STUN."""
    port_mapping: Sequence[str] | None = None
    """Protocols that the router answered: ``NAT-PMP``, ``UPnP``."""
    ipv6: Sequence[str] = ()
    """Global IPv6 addresses."""
    ipv6_route: bool = False
    proxy: str = ""
    """HTTP proxy of the environment."""
    clock_skew_s: float | None = None
    """This clock minus a hub's."""
    free_bytes: int = 0
    lan_interfaces: Sequence[str] = ()


def findings(measured: Measured) -> list[Finding]:
    """Everything in words, the most important first."""
    found = [_udp(measured), *map(_hub, measured.hubs), *map(_relay, measured.relays)]
    if not measured.relays:
        found.append(
            Finding(
                check="relay",
                verdict=Verdict.UNKNOWN,
                said="no hub of this device names a relay",
                ask="without one, devices behind the strictest NATs cannot be reached: start the hub with its relay",
            )
        )
    found += [_nat(measured), *_hairpin(measured), _port_mapping(measured), _ipv6(measured)]
    if measured.proxy:
        found.append(
            Finding(
                check="proxy",
                verdict=Verdict.BAD if _unreachable(measured) else Verdict.FAIR,
                said=f"an HTTP proxy is set ({measured.proxy}), and the network engine cannot use one",
                ask="allow TCP to the hub's port past the proxy",
            )
        )
    found += [_clock(measured), _disk(measured), _lan(measured)]
    return found


def _unreachable(measured: Measured) -> bool:
    return all(way.ms is None for way in (*measured.hubs, *measured.relays))


def _udp(measured: Measured) -> Finding:
    if any(way.ms is not None for way in measured.hubs) or measured.stun_servers:
        return Finding(check="udp", verdict=Verdict.GOOD, said="UDP passes to a hub")
    if not measured.hubs:
        return Finding(
            check="udp",
            verdict=Verdict.UNKNOWN,
            said="no hub's address is known, so nothing was tried",
            ask="join the fleet, or name a hub with --hub",
        )
    if any(way.ms is not None for way in measured.relays):
        return Finding(
            check="udp",
            verdict=Verdict.FAIR,
            said="UDP does not pass; the relay on TCP works, so updates arrive, and every byte goes through the hub",
            ask="ask for outgoing UDP to be allowed, at least to the hub's address and port, with answers let in",
        )
    return Finding(
        check="udp",
        verdict=Verdict.BAD,
        said="no hub can be reached, neither by UDP nor by the relay on TCP",
        ask="ask for outgoing TCP to the hub's port, and better also UDP to it; check that the hub runs",
    )


def _hub(way: Way) -> Finding:
    if way.ms is None:
        return Finding(
            check="hub",
            verdict=Verdict.BAD,
            said=f"hub {way.name} does not answer by UDP: {way.why}",
            ask=f"ask for outgoing UDP to {way.name} to be allowed, and for answers to come back",
        )
    return Finding(
        check="hub", verdict=_speed(way.ms), said=f"hub {way.name} answers by UDP in {way.ms:.0f} ms"
    )


def _relay(way: Way) -> Finding:
    if way.ms is None:
        return Finding(
            check="relay",
            verdict=Verdict.BAD,
            said=f"relay {way.name} does not answer: {way.why}",
            ask=f"ask for outgoing TCP to {way.name}, with WebSockets let through (HTTP/1.1 Upgrade)",
        )
    return Finding(check="relay", verdict=_speed(way.ms), said=f"relay {way.name} answers in {way.ms:.0f} ms")


def _speed(ms: float) -> Verdict:
    return Verdict.GOOD if ms < SLOW_MS else Verdict.FAIR


def _nat(measured: Measured) -> Finding:
    nat = measured.nat
    if nat is None or measured.stun_servers == 0:
        return Finding(
            check="nat",
            verdict=Verdict.UNKNOWN,
            said="no hub answers STUN, so what the NAT does cannot be seen from here",
            ask="start the hub with --stun PORT, and allow UDP to that port and the next",
        )
    partly = "" if measured.stun_servers > 1 else ", as far as one hub can tell"
    if not nat.translated:
        return Finding(check="nat", verdict=Verdict.GOOD, said="there is no NAT: others can dial this device")
    if nat.mapping is Mapping.ENDPOINT_INDEPENDENT:
        easy = nat.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT
        return Finding(
            check="nat",
            verdict=Verdict.GOOD,
            said=f"behind a NAT that keeps one outer address ({nat.mapping} mapping, {nat.filtering} filtering{partly}): "
            + (
                "nearly everyone can be reached directly"
                if easy
                else "direct, except to devices behind a NAT that changes addresses"
            ),
        )
    return Finding(
        check="nat",
        verdict=Verdict.FAIR,
        said=f"behind a NAT that gives a new outer address for each peer ({nat.mapping} mapping{partly}, often called "
        "symmetric): direct only to devices that let anybody in, else through the relay",
        ask="ask for endpoint-independent mapping (RFC 4787, REQ-1; 'full cone' or 'static port'), a port mapping by "
        "UPnP or NAT-PMP, or IPv6",
    )


def _hairpin(measured: Measured) -> list[Finding]:
    nat = measured.nat
    if nat is None or not nat.translated or nat.hairpin is None:
        return []
    if nat.hairpin:
        return [
            Finding(
                check="hairpin",
                verdict=Verdict.GOOD,
                said="the NAT lets its own devices meet at its outer address",
            )
        ]
    return [
        Finding(
            check="hairpin",
            verdict=Verdict.FAIR,
            said="the NAT does not hairpin: devices in different networks behind it meet only through the relay",
            ask="matters behind a provider's NAT only; ask for hairpinning (RFC 4787, REQ-9), or for IPv6",
        )
    ]


def _port_mapping(measured: Measured) -> Finding:
    if measured.port_mapping is None:
        return Finding(
            check="port-mapping", verdict=Verdict.UNKNOWN, said="there is no router to ask for a port"
        )
    if measured.port_mapping:
        spoken = " and ".join(measured.port_mapping)
        return Finding(
            check="port-mapping", verdict=Verdict.GOOD, said=f"the router opens ports on request ({spoken})"
        )
    needed = measured.nat is not None and not measured.nat.predictable
    return Finding(
        check="port-mapping",
        verdict=Verdict.FAIR,
        said="the router does not open ports on request",
        ask="ask for UPnP or NAT-PMP to be switched on: it would make relayed connections direct"
        if needed
        else "",
    )


def _ipv6(measured: Measured) -> Finding:
    if measured.ipv6 and measured.ipv6_route:
        return Finding(
            check="ipv6", verdict=Verdict.GOOD, said=f"IPv6 with {len(measured.ipv6)} global address(es)"
        )
    if measured.ipv6:
        return Finding(
            check="ipv6",
            verdict=Verdict.FAIR,
            said="there are global IPv6 addresses and no way out",
            ask="ask for an IPv6 default route",
        )
    return Finding(
        check="ipv6",
        verdict=Verdict.FAIR,
        said="no IPv6",
        ask="with IPv6 on both sides, devices reach each other directly whatever the NATs do",
    )


def _clock(measured: Measured) -> Finding:
    skew = measured.clock_skew_s
    if skew is None:
        return Finding(check="clock", verdict=Verdict.UNKNOWN, said="no hub could be asked for the time")
    if abs(skew) > limits.CLOCK_SKEW_MAX_S:
        return Finding(
            check="clock",
            verdict=Verdict.BAD,
            said=f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} a hub's",
            ask="set the clock, or allow NTP (UDP 123): what is signed is judged by it",
        )
    return Finding(
        check="clock", verdict=Verdict.GOOD, said=f"this clock differs by {abs(skew):.0f} s from a hub's"
    )


def _disk(measured: Measured) -> Finding:
    mib = measured.free_bytes / limits.MIB
    if measured.free_bytes < 4 * limits.DISK_MARGIN_BYTES:
        return Finding(
            check="disk",
            verdict=Verdict.BAD,
            said=f"{mib:.0f} MiB free for updates",
            ask="free some space, or lower content_quota_bytes",
        )
    return Finding(check="disk", verdict=Verdict.GOOD, said=f"{mib:.0f} MiB free for updates")


def _lan(measured: Measured) -> Finding:
    if not measured.lan_interfaces:
        return Finding(
            check="lan", verdict=Verdict.FAIR, said="no network interface on which neighbours could be found"
        )
    return Finding(
        check="lan",
        verdict=Verdict.GOOD,
        said=f"neighbours are looked for on {', '.join(measured.lan_interfaces)} (mDNS, UDP 5353)",
        ask="if neighbours do not find each other, ask for multicast (mDNS) between clients: 'client isolation' off",
    )
