"""Finding members on the own network by mDNS, with no internet and no hub.

``zeroconf`` does the speaking; it is imported only when there is a network to speak on. What others announce is
read by ``core.lan`` and handed on as a hint where to dial.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from driftseed.core import lan, limits
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import NodeAddress
from driftseed.core.rate import TokenBucket
from driftseed.net.paths import parse_socket_addr

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

_log = logging.getLogger(__name__)

RESOLVE_MS: Final = 3000
"""Milliseconds for which the details of an announced device are asked for."""
RETRY_S: Final = 30.0
"""Seconds after which a network is tried again that would not have us, and interfaces are looked at anew."""


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface with an address."""

    name: str
    index: int
    address: lan.IpInterface


class LanDiscovery:
    """Announces this device on its networks and listens for others.

    Args:
        device: ourselves.
        fleet: ours; others are not heard.
        bound: gives the UDP sockets that we listen on, ``IP:PORT``.
        found: told where a device says it is, in the event loop; its key is not proved.
        moved: told that the networks are others than before, and nobody on them is found yet.
        dropped: told of what no honest device would announce: reason, device, detail.
        interfaces: names or addresses of the interfaces to use; none for all but loopback.
    """

    def __init__(
        self,
        device: DeviceId,
        fleet: FleetId,
        *,
        bound: Callable[[], Sequence[str]],
        found: Callable[[NodeAddress], None],
        moved: Callable[[], None],
        dropped: Callable[[str, str, str], None],
        interfaces: Sequence[str] = (),
    ) -> None:
        self._device = device
        self._fleet = fleet
        self._bound = bound
        self._found = found
        self._moved = moved
        self._dropped = dropped
        self._names = tuple(interfaces)
        self._changed = asyncio.Event()
        self._using: tuple[Interface, ...] = ()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._resolving: set[asyncio.Task[None]] = set()
        self._bucket = TokenBucket(limits.LAN_ANNOUNCEMENTS_PER_SECOND, float(limits.LAN_ANNOUNCEMENTS_BURST))

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Names of the interfaces that are in use."""
        return tuple(dict.fromkeys(each.name for each in self._using))

    def network_changed(self) -> None:
        """Look at the interfaces again."""
        self._changed.set()

    async def run(self) -> None:
        """Announce and listen until cancelled; a network that does not work is tried again."""
        try:
            while True:
                self._changed.clear()
                await self._follow_interfaces()
                try:
                    async with asyncio.timeout(RETRY_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            await self._stop()

    async def _follow_interfaces(self) -> None:
        wanted = usable(await asyncio.to_thread(all_interfaces), self._names, self._bound())
        if wanted == self._using:
            return
        await self._stop()
        self._moved()
        if not wanted:
            return
        try:
            await self._start(wanted)
        except OSError as error:
            # No multicast here, or no permission: whoever can be dialled otherwise still is.
            _log.warning("no discovery on the LAN", extra={"fields": {"why": str(error)}})
            await self._stop()

    async def _start(self, wanted: tuple[Interface, ...]) -> None:
        zeroconf = await asyncio.to_thread(importlib.import_module, "zeroconf.asyncio")
        self._using = wanted
        started: AsyncZeroconf = zeroconf.AsyncZeroconf(interfaces=_speaking(wanted))
        self._zeroconf = started
        port4, port6 = _ports(self._bound())
        info = zeroconf.AsyncServiceInfo(
            lan.SERVICE,
            lan.instance_name(self._device),
            port=port4 or port6 or 0,
            properties=lan.properties(self._device, self._fleet, port6=port6),
            server=lan.host_name(self._device),
            parsed_addresses=[str(each.address.ip) for each in wanted],
        )
        # The name is from our key: who else has it is a copy of this device or a liar, and dialling tells.
        announcing = await started.async_register_service(info, cooperating_responders=True)
        self._browser = zeroconf.AsyncServiceBrowser(
            started.zeroconf, lan.SERVICE, handlers=[self._on_service]
        )
        self._keep(announcing)
        _log.info("on the LAN", extra={"fields": {"interfaces": ",".join(self.interfaces)}})

    async def _stop(self) -> None:
        self._using = ()
        for task in self._resolving:
            task.cancel()
        if self._resolving:
            await asyncio.wait(self._resolving, timeout=limits.SHUTDOWN_S)
        browser, self._browser = self._browser, None
        started, self._zeroconf = self._zeroconf, None
        if browser is not None:
            await browser.async_cancel()
        if started is not None:
            await started.async_close()

    def _on_service(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Take an event of the browser; the parameters' names are its calling convention."""
        if state_change.name == "Removed" or name == lan.instance_name(self._device):
            return
        if len(self._resolving) >= limits.LAN_RESOLVING_MAX or not self._bucket.take(1.0, time.monotonic()):
            self._dropped("lan-flood", "", name[:64])
            return
        self._keep(self._resolve(zeroconf, service_type, name))

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._resolving.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._resolving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("mDNS", extra={"fields": {"why": f"{type(error).__name__}: {error}"[:256]}})

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        library: Any = importlib.import_module("zeroconf.asyncio")
        errors: Any = importlib.import_module("zeroconf")
        try:
            info = library.AsyncServiceInfo(service_type, name)
            if not await info.async_request(zeroconf, RESOLVE_MS):
                return
            addresses = [
                ipaddress.ip_address(each) for each in info.addresses_by_version(errors.IPVersion.All)
            ]
        except (errors.Error, ValueError) as error:
            self._dropped("lan-malformed", "", f"{name[:64]}: {error}"[:256])
            return
        read = lan.read(
            info.properties,
            addresses,
            info.port,
            own=self._device,
            fleet=self._fleet,
            networks=[each.address for each in self._using],
        )
        if isinstance(read, NodeAddress):
            self._found(read)
        elif read.faulty:
            self._dropped(read.reason, "", name[:64])


def all_interfaces() -> list[Interface]:
    """Every interface of this machine with every address that it has."""
    import ifaddr  # noqa: PLC0415 - comes with zeroconf and is as rarely needed

    found = []
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            # IPv6 addresses come with flow and scope.
            text = each.ip if isinstance(each.ip, str) else each.ip[0]
            address = ipaddress.ip_interface(f"{text}/{each.network_prefix}")
            found.append(Interface(str(adapter.name), adapter.index or 0, address))
    return found


def usable(
    interfaces: Iterable[Interface], names: Collection[str], bound: Sequence[str]
) -> tuple[Interface, ...]:
    """The interfaces on which others could find us.

    Args:
        interfaces: all there are.
        names: names or addresses of those to use; none for all but loopback.
        bound: our sockets: one that is bound to an address is not reachable by another.
    """
    sockets = [parsed[0] for parsed in map(parse_socket_addr, bound) if parsed is not None]

    def wanted(each: Interface) -> bool:
        ip = each.address.ip
        chosen = (
            each.name in names or str(ip) in names if names else not (ip.is_loopback or each.name == "lo")
        )
        return chosen and any(
            own.version == ip.version and (own.is_unspecified or own == ip) for own in sockets
        )

    return tuple(sorted(filter(wanted, interfaces), key=lambda each: (each.index, str(each.address))))


def _speaking(interfaces: Iterable[Interface]) -> list[str | int]:
    """What zeroconf shall speak on: IPv4 addresses; by its index an interface that has none."""
    four = [each for each in interfaces if each.address.version == 4]
    spoken: list[str | int] = [str(each.address.ip) for each in four]
    with_four = {each.index for each in four}
    six = {each.index for each in interfaces if each.address.version == 6 and each.index not in with_four}
    return spoken + sorted(six)


def _ports(bound: Sequence[str]) -> tuple[int | None, int | None]:
    """Ports of our IPv4 and IPv6 sockets."""
    parsed = [each for each in map(parse_socket_addr, bound) if each is not None]
    ports = {ip.version: port for ip, port in reversed(parsed)}
    return ports.get(4), ports.get(6)
