"""How the address of a hub is written, so that a person can copy it from one machine to another.

::

    DEVICEID[@HOST:PORT[,HOST:PORT...]][;relay=URL]

``DEVICEID`` is the hub's key in hexadecimal. ``HOST`` is an IPv4 address, an IPv6 address in brackets or a
host name; a name must be resolved before dialling, which is not done here. Without ``;relay=`` the relay is
``http://HOST:PORT`` of the first address, as a hub serves its relay beside its UDP port; ``;relay=none``
says that there is none.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from driftseed.core import limits
from driftseed.core.errors import Misuse
from driftseed.core.ids import DeviceId, parse_device_id
from driftseed.core.model import NodeAddress

RELAY_URL_CHARS_MAX: Final = 256
"""Characters of a relay's URL (as in the signed documents)."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?")
_DOTTED_NUMBERS = re.compile(r"[0-9.]+")
_PORT = re.compile(r"[0-9]{1,5}")
_HINT: Final = "it looks like DEVICEID@HOST:PORT or DEVICEID@HOST:PORT,[IPv6]:PORT;relay=URL"


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host, by address or by name, and a port."""

    host: str
    """Without brackets; an IP address is in its shortest form."""
    port: int

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address, so that nothing need be resolved."""
        return _ip(self.host) is not None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class WrittenAddress:
    """An address as it was written: its host names are still names."""

    device: DeviceId
    hosts: tuple[HostPort, ...]
    relay: str | None


def parse_host_port(text: str, what: str = "an address") -> HostPort:
    """Read ``HOST:PORT``, ``IPv4:PORT`` or ``[IPv6]:PORT``.

    Args:
        text: what a person wrote.
        what: what it is, for the message ("an address to listen on").

    Raises:
        Misuse: no port, a port outside 0 to 65535, or a host that is neither an address nor a host name.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65535:
        raise Misuse(f"not {what}: {text[:160]!r}", hint="write HOST:PORT, with a port of 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        six = _ip(host[1:-1])
        if isinstance(six, ipaddress.IPv6Address):
            return HostPort(str(six), int(port))
    elif isinstance(four := _ip(host), ipaddress.IPv4Address):
        return HostPort(str(four), int(port))
    elif _NAME.fullmatch(host) and not _DOTTED_NUMBERS.fullmatch(host):
        return HostPort(host.lower(), int(port))
    raise Misuse(
        f"not {what}: {text[:160]!r}",
        hint="the host is an IPv4 address, an [IPv6 address] in brackets, or a host name",
    )


def parse_relay_url(text: str) -> str:
    """Check a relay's URL.

    Raises:
        Misuse: not http:// or https:// with a host, longer than 256 characters, or with spaces in it.
    """
    hint = "a relay's URL looks like https://relay.example.org or http://192.0.2.7:7700"
    # urlsplit drops tabs and newlines, so they are looked for in the text itself.
    if len(text) > RELAY_URL_CHARS_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise Misuse(f"not a relay's URL: {text[:160]!r}", hint=hint)
    try:
        parts = urlsplit(text)
        usable = text.startswith(("http://", "https://")) and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Misuse(f"not a relay's URL: {text[:160]!r}", hint=hint)
    return text


def parse_address(text: str) -> WrittenAddress:
    """Read an address as a hub prints it.

    Raises:
        Misuse: it is not of the form at the top of this module, names more addresses than a device may
            have, or says neither an address nor a relay.
    """
    where, semicolon, parameter = text.strip().partition(";")
    device_text, at, hosts_text = where.partition("@")
    try:
        device = parse_device_id(device_text)
    except Misuse as error:
        raise Misuse(f"not the address of a hub: {text[:160]!r}: {error.message}", hint=_HINT) from None
    hosts = (
        tuple(parse_host_port(host, "the address of a hub") for host in hosts_text.split(",")) if at else ()
    )
    if any(host.port == 0 for host in hosts):
        raise Misuse(f"nobody can be reached at port 0: {where[:160]!r}", hint=_HINT)
    if len(hosts) > limits.ADDRESSES_PER_DEVICE_MAX:
        raise Misuse(
            f"{len(hosts)} addresses for one hub, and {limits.ADDRESSES_PER_DEVICE_MAX} are allowed",
            hint="leave out those that nobody can reach it by",
        )
    if not semicolon:
        relay = f"http://{hosts[0]}" if hosts else None
    elif not parameter.startswith("relay="):
        raise Misuse(f"not the address of a hub: what is {parameter[:80]!r}?", hint=_HINT)
    elif parameter == "relay=none":
        relay = None
    else:
        relay = parse_relay_url(parameter.removeprefix("relay="))
    if not hosts and relay is None:
        raise Misuse(f"no way to reach the hub in {text[:160]!r}", hint=_HINT)
    return WrittenAddress(device, hosts, relay)


def format_address(address: NodeAddress) -> str:
    """Write an address so that ``parse_address`` reads the same again."""
    text = address.device
    if address.addrs:
        text += "@" + ",".join(address.addrs)
    if address.relay is None:
        return f"{text};relay=none"
    if address.addrs and address.relay == f"http://{address.addrs[0]}":
        return text
    return f"{text};relay={address.relay}"


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    # A zone ("fe80::1%eth0") means something on one machine only.
    return None if isinstance(found, ipaddress.IPv6Address) and found.scope_id else found
