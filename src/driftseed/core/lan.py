"""What a device says of itself on its own network (mDNS, DNS-SD: RFC 6762 and 6763), and how it is read.

One service instance of ``_driftseed._udp`` per device. SRV has the UDP port of its IPv4 socket, A and AAAA its
addresses, and TXT, each value ASCII::

    v   "1"
    id  the device's key, 64 hexadecimal digits
    f   the fleet, as ``fleet_tag`` writes it: members recognise it, others learn nothing from it
    p6  UDP port of its IPv6 socket, if it has one

Anybody on the network can announce anything. What is read here is therefore only a hint where to dial; the
dial proves the key and the membership. And it is only ever a hint at the own network: an announcement cannot
have a device send packets anywhere else.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from driftseed.core.errors import Misuse
from driftseed.core.ids import DeviceId, FleetId, parse_device_id
from driftseed.core.model import NodeAddress

SERVICE: Final = "_driftseed._udp.local."
VERSION: Final = b"1"
ADDRESSES_MAX: Final = 4
"""Addresses that are taken from one announcement."""
_LABEL_CHARS: Final = 32

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IpInterface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Ignored:
    """An announcement that leads nowhere."""

    reason: str
    """``own``, ``other-fleet``; or, of something that no device of ours would say, ``lan-malformed`` or
    ``lan-off-link``."""

    @property
    def faulty(self) -> bool:
        """Whether no honest device would have said it."""
        return self.reason.startswith("lan-")


def fleet_tag(fleet: FleetId) -> str:
    """A short name of a fleet that says nothing to those who do not know the fleet: 16 hexadecimal digits."""
    return hashlib.sha256(b"driftseed lan 1\x00" + bytes.fromhex(fleet)).hexdigest()[:16]


def instance_name(device: DeviceId) -> str:
    """Name of a device's service instance: a DNS label may have 63 bytes, so it is the beginning of the key."""
    return f"{device[:_LABEL_CHARS]}.{SERVICE}"


def host_name(device: DeviceId) -> str:
    """Name that a device's addresses are announced under."""
    return f"{device[:_LABEL_CHARS]}.local."


def properties(device: DeviceId, fleet: FleetId, *, port6: int | None) -> dict[str, bytes]:
    """The TXT record of a device."""
    said = {"v": VERSION, "id": device.encode(), "f": fleet_tag(fleet).encode()}
    if port6 is not None:
        said["p6"] = str(port6).encode()
    return said


def read(
    said: Mapping[bytes, bytes | None],
    addresses: Iterable[IpAddress],
    port4: int | None,
    *,
    own: DeviceId,
    fleet: FleetId,
    networks: Collection[IpInterface],
) -> NodeAddress | Ignored:
    """Read one announcement.

    Args:
        said: the TXT record.
        addresses: A and AAAA.
        port4: of SRV.
        own: ourselves.
        fleet: ours.
        networks: our own interfaces: only addresses on one of their networks are taken.
    """
    if said.get(b"v") != VERSION or said.get(b"f") is None:
        return Ignored("lan-malformed")
    if said.get(b"f") != fleet_tag(fleet).encode():
        return Ignored("other-fleet")
    try:
        device = parse_device_id((said.get(b"id") or b"").decode("ascii"))
        port6 = _port(said.get(b"p6"))
    except (Misuse, UnicodeDecodeError, ValueError):
        return Ignored("lan-malformed")
    if device == own:
        return Ignored("own")
    found: list[str] = []
    for address in addresses:
        port = port4 if address.version == 4 else port6
        if port and 0 < port <= 0xFFFF and _on_link(address, networks) and len(found) < ADDRESSES_MAX:
            found.append(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    if not found:
        return Ignored("lan-off-link")
    return NodeAddress(device=device, addrs=list(dict.fromkeys(found)))


def _port(text: bytes | None) -> int | None:
    if text is None:
        return None
    if len(text) > 5 or not text.isdigit():
        raise ValueError("not a port")
    return int(text)


def _on_link(address: IpAddress, networks: Collection[IpInterface]) -> bool:
    # A link-local IPv6 address means nothing without its interface, which an address to dial cannot carry.
    if address.is_multicast or address.is_unspecified or (address.version == 6 and address.is_link_local):
        return False
    return any(_is_host(address, each) for each in networks if each.version == address.version)


def _is_host(address: IpAddress, interface: IpInterface) -> bool:
    """Whether it is one machine's address on the interface's network: not the network's own, nor everyone's."""
    network = interface.network
    if address not in network:
        return False
    if network.max_prefixlen - network.prefixlen < 2:  # two machines and nothing else (RFC 3021)
        return True
    return address not in {network.network_address, network.broadcast_address}
