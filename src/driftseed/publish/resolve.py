"""Turns the written address of a hub into one that can be dialled and signed: names become IP addresses."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from driftseed.core import limits
from driftseed.core.addresses import HostPort, WrittenAddress
from driftseed.core.errors import Misuse
from driftseed.core.model import NodeAddress


@dataclass(frozen=True, slots=True)
class ResolvedAddress:
    """An address without host names, and what was found for those that it had."""

    address: NodeAddress
    notes: tuple[str, ...]
    """In words: devices dial what is written here, and a name's later changes do not reach them."""


def resolve_address(written: WrittenAddress) -> ResolvedAddress:
    """Look host names up; the relay's URL keeps its name, as whoever uses it resolves it.

    Blocks for as long as the system's resolver does.

    Raises:
        Misuse: a name has no address, or the hub ends up with more addresses than a device may have.
    """
    addrs: list[str] = []
    notes: list[str] = []
    for host in written.hosts:
        found = [str(host)] if host.is_address else _look_up(host)
        if not host.is_address:
            notes.append(f"{host.host} is {', '.join(found)} today; run this command again when it moves")
        addrs += [addr for addr in found if addr not in addrs]
    if len(addrs) > limits.ADDRESSES_PER_DEVICE_MAX:
        raise Misuse(
            f"{len(addrs)} addresses for one hub, and {limits.ADDRESSES_PER_DEVICE_MAX} are allowed",
            hint="write the IP addresses of those that devices shall use",
        )
    return ResolvedAddress(NodeAddress(device=written.device, addrs=addrs, relay=written.relay), tuple(notes))


def _look_up(host: HostPort) -> list[str]:
    try:
        answers = socket.getaddrinfo(host.host, host.port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise Misuse(
            f"the name {host.host!r} has no address: {error.strerror}",
            hint="check the name and this machine's network, or write the IP address",
        ) from None
    found: list[str] = []
    for _family, _type, _protocol, _name, sockaddr in answers:
        # A link-local address carries a scope, which only this machine understands.
        text = str(HostPort(str(sockaddr[0]), host.port))
        if "%" not in text and text not in found:
            found.append(text)
    return found
