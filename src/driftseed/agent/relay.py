"""An agent that others can reach may relay for those that cannot be punched: what a hub does, without the hub.

It needs the extra ``hub`` (aiohttp, blake3), which most devices do without.
"""

from __future__ import annotations

import importlib
import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from driftseed.core.addresses import parse_host_port
from driftseed.core.errors import ConfigInvalid, DeviceError
from driftseed.core.ids import DeviceId

if TYPE_CHECKING:
    from driftseed.net.relay import RelayServer


class AgentRelay:
    """A relay for the members that an agent has met.

    Args:
        own: the agent, whom strangers may reach through it to prove membership, and nobody else.
        listen: ``IP:PORT``, TCP.
        url: under which others reach it; empty: ``http://`` and ``listen``.
        expelled: who may not use it, not even as a stranger.

    Raises:
        DeviceError: the extra is not installed.
        ConfigInvalid: a wildcard is listened on and no URL is given.
    """

    def __init__(self, own: DeviceId, listen: str, url: str, expelled: Callable[[DeviceId], bool]) -> None:
        where = parse_host_port(listen, "an address to relay at")
        if not url:
            if not where.is_address or ipaddress.ip_address(where.host).is_unspecified or not where.port:
                raise ConfigInvalid(
                    f"relay_url: with relay_listen={listen} nobody could know where the relay is",
                    hint="such as relay_url=http://192.0.2.7:7700: the address at which others reach it",
                )
            url = f"http://{where}"
        self.url = url
        self._where = where
        self._own = own
        self._members: set[DeviceId] = {own}
        self._expelled = expelled
        self._server: RelayServer = relay_library().RelayServer(
            self._members.__contains__, guests_reach=[own], expelled=expelled
        )

    async def start(self) -> None:
        """Begin to relay. Raises PortTaken or DeviceError."""
        await self._server.start(self._where.host, self._where.port)

    async def close(self) -> None:
        """Tell the clients, and stop."""
        await self._server.close()

    def met(self, device: DeviceId) -> None:
        """A device has proved its membership: from now on it may reach everyone."""
        self._members.add(device)
        self._server.promote(device)

    def expel(self) -> None:
        """Others may be expelled than before: whoever is goes now, and does not come back as a member."""
        self._members -= {device for device in self._members if self._expelled(device)}
        self._server.expel()

    def stats(self) -> dict[str, int]:
        """What it has done; see ``net.relay``."""
        return self._server.stats()


def relay_library() -> Any:
    """The module that relays. Raises DeviceError when the extra is not installed."""
    try:
        return importlib.import_module("driftseed.net.relay")
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"relaying is set up, and needs {error.name}, which is not installed",
            hint="pip install 'driftseed[hub]', or driftseed agent config relay_listen=null relay=null",
        ) from None
