"""Whether the router opens ports on request: asked, and nothing opened.

NAT-PMP (RFC 6886, section 3.2): two zero bytes to the gateway's UDP port 5351 are answered with the external
address. UPnP (UDA 1.1, section 1.3): a search by multicast for an internet gateway device.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Final

NAT_PMP_PORT: Final = 5351
SSDP: Final = ("239.255.255.250", 1900)
WAIT_S: Final = 1.5
_SEARCH: Final = (
    b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
)


def gateway(routes: str | None = None) -> str | None:
    """The default gateway's IPv4 address; None when there is no default route.

    Args:
        routes: contents of ``/proc/net/route`` (proc_net(5)); None reads it.
    """
    if routes is None:
        try:
            routes = Path("/proc/net/route").read_text(encoding="ascii")
        except OSError:
            return None
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and fields[2] != "00000000":
            return socket.inet_ntoa(struct.pack("<I", int(fields[2], 16)))
    return None


async def spoken(router: str) -> list[str]:
    """Protocols by which a router opens ports: ``NAT-PMP``, ``UPnP``."""
    pmp, upnp = await asyncio.gather(_answers(b"\0\0", (router, NAT_PMP_PORT)), _answers(_SEARCH, SSDP))
    found = []
    if len(pmp) >= 12 and pmp[1] == 128 and pmp[2:4] == b"\0\0":
        found.append("NAT-PMP")
    if b"InternetGatewayDevice" in upnp:
        found.append("UPnP")
    return found


async def _answers(question: bytes, to: tuple[str, int]) -> bytes:
    """The first answer; nothing when there is none in time."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        try:
            await loop.sock_sendto(asking, question, to)
            async with asyncio.timeout(WAIT_S):
                return await loop.sock_recv(asking, 2048)
        except (OSError, TimeoutError):
            return b""
