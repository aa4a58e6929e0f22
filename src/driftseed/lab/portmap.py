"""A router that opens ports on request: Debian's ``miniupnpd``, which speaks UPnP, NAT-PMP and PCP."""

from __future__ import annotations

import ipaddress
import subprocess
import uuid
from pathlib import Path
from typing import Final

from driftseed.core.errors import LabUnavailable
from driftseed.lab import tools
from driftseed.lab.netns import Namespace

PACKAGE: Final = "miniupnpd-nftables"
_HOME: Final = Path("/run/miniupnpd")

# The chains that its documentation asks for (/etc/miniupnpd/nft_init.sh), where it puts what was asked of it.
_CHAINS: Final = """
table inet filter {
  chain miniupnpd {
  }
  chain prerouting_miniupnpd {
  }
  chain postrouting_miniupnpd {
  }
  chain prerouting {
    type nat hook prerouting priority -110;
    jump prerouting_miniupnpd
  }
  chain postrouting {
    type nat hook postrouting priority 90;
    jump postrouting_miniupnpd
  }
}
"""


class PortMapper:
    """A running ``miniupnpd``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls, router: Namespace, lan: ipaddress.IPv4Network) -> PortMapper:
        """Start it on a router.

        Raises:
            LabUnavailable: it is not installed.
        """
        program = tools.find("miniupnpd")
        if program is None:
            raise LabUnavailable("a router with port mapping needs miniupnpd", hint=f"apt install {PACKAGE}")
        router.nft(_CHAINS)
        _HOME.mkdir(exist_ok=True)
        path = _HOME / f"{router.name}.conf"
        path.write_text(
            f"""ext_ifname=wan
listening_ip=lan
enable_natpmp=yes
enable_upnp=yes
ipv6_disable=yes
min_lifetime=120
max_lifetime=86400
secure_mode=yes
uuid={uuid.uuid5(uuid.NAMESPACE_OID, router.name)}
allow 1024-65535 {lan} 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
""",
            encoding="ascii",
        )
        with (_HOME / f"{router.name}.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - an argument list of our own
                router.command([program, "-d", "-f", str(path), "-P", str(_HOME / f"{router.name}.pid")]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return cls(process)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
