"""Measures what a device's network is like, for ``driftseed doctor``; ``core.doctor`` puts it into words.

With sockets of its own and a key of its own, beside an agent that runs: nothing of the agent is disturbed.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from driftseed.core import wire
from driftseed.core.doctor import Measured, Way
from driftseed.core.errors import DriftseedError
from driftseed.core.model import NodeAddress
from driftseed.core.natprobe import Behaviour, classify
from driftseed.net import portmap, stun
from driftseed.net.endpoint import Endpoint
from driftseed.net.identity import Identity
from driftseed.net.lan import Interface, all_interfaces, usable
from driftseed.net.paths import parse_socket_addr
from driftseed.store.files import free_bytes

DIAL_S: Final = 5.0
"""Seconds for each hub."""
PING_S: Final = 5.0
"""Seconds for each relay."""
_EVERYWHERE: Final = ("0.0.0.0:1", "[::]:1")


async def measure(
    directory: Path,
    hubs: Sequence[NodeAddress],
    stun_servers: Sequence[tuple[str, int]],
    router: str | None,
) -> Measured:
    """Look at the network.

    Args:
        directory: on the file system that updates are kept on.
        hubs: to be reached.
        stun_servers: address and first port of each; none: for each hub the port after its own.
        router: the default gateway, to be asked whether it opens ports; None when there is none.
    """
    relays = sorted({hub.relay for hub in hubs if hub.relay})
    asked = list(stun_servers) or _stun_beside(hubs)
    interfaces = await asyncio.to_thread(all_interfaces)
    async with asyncio.TaskGroup() as group:
        by_udp = group.create_task(_reach(hubs))
        by_tcp = [group.create_task(asyncio.to_thread(_ping, url)) for url in relays]
        nat = group.create_task(_nat(asked))
        ports = group.create_task(portmap.spoken(router)) if router is not None else None
    pings = [task.result() for task in by_tcp]
    behaviour, answered = nat.result()
    return Measured(
        hubs=by_udp.result(),
        relays=[way for way, _ in pings],
        nat=behaviour,
        stun_servers=answered,
        port_mapping=ports.result() if ports is not None else None,
        ipv6=_global_ipv6(interfaces),
        ipv6_route=_has_ipv6_route(),
        proxy=os.environ.get("https_proxy")
        or os.environ.get("HTTPS_PROXY")
        or os.environ.get("http_proxy")
        or "",
        clock_skew_s=next((skew for _, skew in pings if skew is not None), None),
        free_bytes=free_bytes(directory),
        lan_interfaces=sorted({each.name for each in usable(interfaces, (), _EVERYWHERE)}),
    )


def _stun_beside(hubs: Sequence[NodeAddress]) -> list[tuple[str, int]]:
    found: dict[tuple[str, int], None] = {}
    for hub in hubs:
        for parsed in map(parse_socket_addr, hub.addrs):
            if parsed is not None and parsed[0].version == 4 and parsed[1] < 0xFFFE:
                found[str(parsed[0]), parsed[1] + 1] = None
    return list(found)


async def _reach(hubs: Sequence[NodeAddress]) -> list[Way]:
    """Dial each hub directly, as a stranger: to be answered at all is what counts."""
    if not hubs:
        return []
    endpoint = await Endpoint.open(Identity.generate(), alpns=[wire.ALPN_OVERLAY])
    try:
        return list(await asyncio.gather(*(_reach_one(endpoint, hub) for hub in hubs)))
    finally:
        await endpoint.close()


async def _reach_one(endpoint: Endpoint, hub: NodeAddress) -> Way:
    name = ", ".join(hub.addrs) or hub.device[:16]
    began = time.monotonic()
    try:
        connection = await endpoint.dial(
            NodeAddress(device=hub.device, addrs=hub.addrs), wire.ALPN_OVERLAY, DIAL_S
        )
    except DriftseedError as error:
        return Way(name=name, ms=None, why=error.message)
    # The handshake takes one round trip (RFC 9000, section 7); the path's own figure is better once there is one.
    handshake_ms = (time.monotonic() - began) * 1000
    ms = float(connection.path().rtt_ms) or handshake_ms
    connection.close(0, "looked at the network")
    return Way(name=name, ms=min(ms, handshake_ms))


def _ping(url: str) -> tuple[Way, float | None]:
    """Ask a relay whether it is there; also this clock minus its, in seconds."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=PING_S)
    try:
        connection.connect()
        began = time.monotonic()
        connection.request("GET", f"{parts.path.rstrip('/')}/ping")
        response = connection.getresponse()
        response.read(1024)
        ms = (time.monotonic() - began) * 1000
        if not 200 <= response.status < 300:
            return Way(
                name=url, ms=None, why=f"HTTP status {response.status}: what answers there is no relay"
            ), None
        return Way(name=url, ms=ms), _skew(response.getheader("Date"))
    except (OSError, http.client.HTTPException) as error:
        return Way(name=url, ms=None, why=str(error) or type(error).__name__), None
    finally:
        connection.close()


def _skew(date: str | None) -> float | None:
    try:
        return time.time() - parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None


async def _nat(servers: Sequence[tuple[str, int]]) -> tuple[Behaviour | None, int]:
    try:
        seen = await stun.observe(servers)
    except OSError:
        return None, 0
    return (classify(seen.observations) if seen.servers else None), seen.servers


def _global_ipv6(interfaces: Sequence[Interface]) -> list[str]:
    return sorted(
        {
            str(each.address.ip)
            for each in interfaces
            if each.address.version == 6 and each.address.ip.is_global
        }
    )


def _has_ipv6_route() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            # Connecting a UDP socket sends nothing; it only has the kernel look for a way (a root name server's address).
            probe.connect(("2001:500:2f::f", 9))
    except OSError:
        return False
    return True
