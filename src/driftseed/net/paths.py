"""How the bytes of a connection travel: over the LAN, directly through the internet, or by a relay."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

PathKind: TypeAlias = Literal["lan", "direct", "relayed"]
IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_LAN_PREFIX = {4: 24, 6: 64}
_PRIVATE_V4 = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
"""Addresses that a site gives to its own devices (RFC 1918).

Not ``IPv4Address.is_private``, which means all that is not global: networks for documentation and for benchmarks
(RFC 5737, RFC 2544) are some provider's inside or a laboratory's internet, and no LAN. Nor the carriers' 100.64.0.0/10
(RFC 6598): who shares a /24 of it is another customer, whom a carrier's NAT may well keep apart from us.
"""


@dataclass(frozen=True, slots=True)
class Path:
    """The path on which a connection sends now."""

    kind: PathKind
    rtt_ms: int
    """Round-trip time, milliseconds."""
    remote_addr: str
    """``IP:PORT``, or the relay's URL."""


UNKNOWN_PATH = Path(kind="relayed", rtt_ms=0, remote_addr="")
"""Before a path was ever selected: counted as the costliest kind, so that policies err on the cheap side."""


def parse_socket_addr(text: str) -> tuple[IpAddress, int] | None:
    """Read ``IP:PORT`` or ``[IPv6]:PORT``; None when it is something else.

    IPv4 addresses mapped into IPv6 come back as IPv4.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        return None
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return None
    if bracketed != (ip.version == 6):
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip, int(port)


def format_socket_addr(ip: IpAddress, port: int) -> str:
    """``IP:PORT`` or ``[IPv6]:PORT``."""
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def usable_addrs(addrs: Iterable[str], limit: int) -> list[str]:
    """Keep the addresses that a packet can be sent to, in order, each once.

    Args:
        addrs: from a peer or from the engine.
        limit: most to keep.
    """
    kept: dict[str, None] = {}
    for text in addrs:
        if len(kept) >= limit:
            break
        parsed = parse_socket_addr(text)
        if parsed is None:
            continue
        ip, port = parsed
        if (
            port
            and not ip.is_unspecified
            and not ip.is_multicast
            and not (ip.version == 4 and ip.is_reserved)
        ):
            kept[format_socket_addr(ip, port)] = None
    return list(kept)


def classify(remote: str, own: Iterable[str]) -> PathKind:
    """Say whether a direct path stays on the local network.

    It does when the remote address is loopback or link-local, or when it shares an RFC 1918 /24 or an IPv6 /64 with
    one of our own: the widest guess that needs no netmask.

    Args:
        remote: ``IP:PORT`` of the other side.
        own: our own ``IP:PORT``.
    """
    parsed = parse_socket_addr(remote)
    if parsed is None:
        return "relayed"
    ip, _ = parsed
    if ip.is_loopback or ip.is_link_local:
        return "lan"
    shared = ipaddress.ip_network((ip, _LAN_PREFIX[ip.version]), strict=False)
    near = any(mine is not None and mine[0] in shared for mine in map(parse_socket_addr, own))
    # An IPv6 LAN uses global addresses: there the shared /64 is the link itself (RFC 4291, section 2.5.4).
    return "lan" if near and (ip.version == 6 or any(ip in each for each in _PRIVATE_V4)) else "direct"
