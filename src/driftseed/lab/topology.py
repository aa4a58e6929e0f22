"""Sites around an internet: what a scenario says, turned into namespaces, cables and rules.

::

    device --.                         .-- device
    device ---+-- lan [router] wan ---- internet ---- wan [router] lan --+-- device
    device --'            (NAT)                              (NAT)        '- device

Addresses exist inside the laboratory only. Its internet is 11.18.0.0/15: routers and programs treat the ranges
that are reserved for tests as private networks, and then do other things. 192.168.0.0/16 are its
homes, 100.64.0.0/10 (RFC 6598) its carriers, 2001:db8::/32 (RFC 3849) its IPv6.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from driftseed.core.errors import Misuse
from driftseed.lab.lines import DelayLine, Shape, shape
from driftseed.lab.nat import CARRIERS, FIREWALL_V6, NatKind, carrier_rules, rules, sysctls
from driftseed.lab.netns import Namespace
from driftseed.lab.portmap import PortMapper

SITES_MAX = 200
"""Sites of one laboratory: each has a number in its addresses."""
DEVICES_MAX = 200
"""Devices of one site."""
_FIRST_DEVICE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place with one way to the internet.

    Args:
        name: letters, digits and dashes.
        nat: what its router is.
        devices: how many are on its LAN.
        line: its way to the internet.
        ipv6: it has IPv6 too, with a firewall that lets nothing in unasked.
        port_mapping: its router opens ports when it is asked to by UPnP, NAT-PMP or PCP.
        carrier: which carrier's NAT it is behind; sites of a kind that has one share it when nothing is said.
        also: further addresses that the first device has, as the last byte of its LAN's.
    """

    name: str
    nat: NatKind = NatKind.PUBLIC
    devices: int = 1
    line: Shape = field(default_factory=Shape)
    ipv6: bool = False
    port_mapping: bool = False
    carrier: str | None = None
    also: Sequence[int] = ()


@dataclass(slots=True)
class Device:
    """A machine in a site's LAN."""

    name: str
    site: str
    namespace: Namespace
    ip: str
    ip6: str | None


@dataclass(slots=True)
class Router:
    """A site's router, and the cable to it."""

    site: Site
    number: int
    namespace: Namespace
    parent: Namespace
    port: str
    """The interface of ``parent`` at the other end of the cable."""
    wan: str
    lan: ipaddress.IPv4Network
    lan6: ipaddress.IPv6Network | None
    devices: list[Device] = field(default_factory=list)


class World:
    """Everything there is. Make it with ``build``; it is gone when the laboratory's processes are."""

    def __init__(self) -> None:
        self.internet = Namespace.create("internet")
        self.internet.sysctl("ipv4/ip_forward", 1)
        self.internet.sysctl("ipv6/conf/all/forwarding", 1)
        self.routers: dict[str, Router] = {}
        self._carriers: dict[str, tuple[Namespace, int, int]] = {}
        self._lines: list[DelayLine] = []
        self._daemons: list[PortMapper] = []
        self._numbers = 0

    @classmethod
    def build(cls, sites: Sequence[Site]) -> World:
        """Make all sites.

        Raises:
            Misuse: two have one name, or there are more than there are numbers for.
            LabFailed: the system refuses a part of it.
        """
        world = cls()
        for site in sites:
            world.add(site)
        return world

    def device(self, site: str, number: int = 0) -> Device:
        """A device by its site and number."""
        return self.routers[site].devices[number]

    def add(self, site: Site) -> Router:
        """Make a site with its router, its devices and its way to the internet."""
        if site.name in self.routers:
            raise Misuse(f"two sites have the name {site.name!r}")
        if not 0 <= site.devices <= DEVICES_MAX:
            raise Misuse(f"{site.devices} devices in {site.name}", hint=f"at most {DEVICES_MAX}")
        carrier = site.carrier or (site.nat.value if site.nat in CARRIERS else None)
        # Before its own number is taken: a carrier takes one too.
        behind = None if carrier is None else self._carrier(carrier, hairpin=CARRIERS.get(site.nat, False))
        number = self._number()
        router = Namespace.create(site.name)
        home = f"11.18.{number}.0/24" if site.nat is NatKind.PUBLIC else f"192.168.{number}.0/24"
        lan = ipaddress.IPv4Network(home)
        lan6 = ipaddress.IPv6Network(f"2001:db8:1:{number:x}::/64") if site.ipv6 else None
        if behind is None:
            wan, parent, port = self._to_internet(router, number, site)
        else:
            if site.line.needs_line or site.ipv6:
                raise Misuse(f"{site.name}: behind a carrier there is no delay, loss or IPv6 of its own")
            wan, parent, port = self._to_carrier(router, number, behind)
        made = Router(site, number, router, parent, port, wan, lan, lan6)
        self._lan(made)
        router.nft(rules(site.nat, wan))
        for key, value in sysctls(site.nat).items():
            router.sysctl(key, value)
        if site.nat is NatKind.PUBLIC:
            self.internet.ip(f"route add {lan} via {wan}")
        shape(router, "wan", site.line.up)
        shape(parent, port, site.line.down)
        self.routers[site.name] = made
        for place in range(site.devices):
            self.plug_in(made, f"{site.name}-{place}", place)
        if site.port_mapping:
            self._daemons.append(PortMapper.start(router, lan))
        for last in site.also:
            made.devices[0].namespace.ip(f"addr add {lan.network_address + last}/24 dev eth0")
        return made

    def plug_in(self, router: Router, name: str, place: int) -> Device:
        """Make a device and connect it to a site's LAN."""
        namespace = Namespace.create(name)
        device = Device(name, router.site.name, namespace, "", None)
        self._connect(device, router, place)
        router.devices.append(device)
        return device

    def move(self, device: Device, site: str) -> None:
        """Carry a device to another site: its old address and its old cable are gone at once."""
        target = self.routers[site]
        self.routers[device.site].devices.remove(device)
        device.namespace.ip("link del eth0")
        taken = {each.ip for each in target.devices}
        place = next(
            each
            for each in range(DEVICES_MAX)
            if str(target.lan.network_address + _FIRST_DEVICE + each) not in taken
        )
        self._connect(device, target, place)
        target.devices.append(device)

    def set_line(self, site: str, *, up: bool) -> None:
        """Cut a site's way to the internet, or mend it.

        Packets vanish in the middle of it, as they do when a mast fails: no interface of the site goes down.
        """
        namespace = self.routers[site].namespace
        drop = 'type filter hook forward priority -300; oifname "wan" drop; iifname "wan" drop'
        cut = f"table inet cut {{\n chain forward {{\n{drop}\n}}\n}}\n"
        namespace.nft("add table inet cut\ndelete table inet cut\n" + ("" if up else cut))

    def forget_bindings(self, site: str) -> None:
        """Have a site's router lose its table, as one that was switched off and on."""
        router = self.routers[site]
        router.namespace.nft(f"flush ruleset\n{rules(router.site.nat, router.wan)}")

    def uplink_bytes(self, site: str) -> tuple[int, int]:
        """Bytes that a site has sent to and received from the internet so far."""
        return self.routers[site].namespace.bytes_of("wan")

    def close(self) -> None:
        """End what is not the kernel's to end: delay lines and port mappers."""
        for line in self._lines:
            line.close()
        for daemon in self._daemons:
            daemon.close()

    def _number(self) -> int:
        self._numbers += 1
        if self._numbers > SITES_MAX:
            raise Misuse("too many sites", hint=f"a laboratory has at most {SITES_MAX}")
        return self._numbers

    def _to_internet(self, router: Namespace, number: int, site: Site) -> tuple[str, Namespace, str]:
        wan, gateway, port = f"11.19.{number}.2", f"11.19.{number}.1", f"s{number}"
        if site.line.needs_line:
            self._lines.append(DelayLine.connect(router, "wan", self.internet, port, site.line))
        else:
            router.ip(f"link add wan type veth peer name {port} netns {self.internet.name}")
        self.internet.ip(f"addr add {gateway}/24 dev {port}", f"link set {port} up")
        router.ip(f"addr add {wan}/24 dev wan", "link set wan up", f"route add default via {gateway}")
        if site.ipv6:
            prefix = f"2001:db8:0:{number:x}"
            self.internet.ip(
                f"addr add {prefix}::1/64 dev {port} nodad",
                f"route add 2001:db8:1:{number:x}::/64 via {prefix}::2",
            )
            router.ip(f"addr add {prefix}::2/64 dev wan nodad", f"route add default via {prefix}::1")
            router.sysctl("ipv6/conf/all/forwarding", 1)
            router.nft(FIREWALL_V6)
        return wan, self.internet, port

    def _carrier(self, name: str, *, hairpin: bool) -> str:
        if name not in self._carriers:
            number = self._number()
            carrier = Namespace.create(f"carrier-{name}")
            wan, _, _ = self._to_internet(carrier, number, Site(name=name))
            inside = f"100.64.{number}.0/24"
            carrier.sysctl("ipv4/ip_forward", 1)
            _only_route(carrier)
            carrier.ip(
                "link add lan type bridge", f"addr add 100.64.{number}.1/24 dev lan", "link set lan up"
            )
            carrier.nft(carrier_rules(wan, inside, hairpin=hairpin))
            self._carriers[name] = (carrier, number, _FIRST_DEVICE)
        return name

    def _to_carrier(self, router: Namespace, number: int, name: str) -> tuple[str, Namespace, str]:
        carrier, carrier_number, last = self._carriers[name]
        self._carriers[name] = (carrier, carrier_number, last + 1)
        wan, port = f"100.64.{carrier_number}.{last}", f"s{number}"
        router.ip(f"link add wan type veth peer name {port} netns {carrier.name}")
        carrier.ip(f"link set {port} master lan", f"link set {port} up")
        router.ip(
            f"addr add {wan}/24 dev wan",
            "link set wan up",
            f"route add default via 100.64.{carrier_number}.1",
        )
        return wan, carrier, port

    def _lan(self, router: Router) -> None:
        namespace = router.namespace
        namespace.sysctl("ipv4/ip_forward", 1)
        _only_route(namespace)
        namespace.ip(
            "link add lan type bridge",
            f"addr add {router.lan.network_address + 1}/24 dev lan",
            "link set lan up",
        )
        if router.lan6 is not None:
            namespace.ip(f"addr add {router.lan6.network_address + 1}/64 dev lan nodad")

    def _connect(self, device: Device, router: Router, place: int) -> None:
        port = f"d{router.number}-{place}"
        address = router.lan.network_address + _FIRST_DEVICE + place
        device.namespace.ip(f"link add eth0 type veth peer name {port} netns {router.namespace.name}")
        router.namespace.ip(f"link set {port} master lan", f"link set {port} up")
        device.namespace.ip(
            f"addr add {address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {router.lan.network_address + 1}",
        )
        device.ip, device.site, device.ip6 = str(address), router.site.name, None
        if router.lan6 is not None:
            device.ip6 = str(router.lan6.network_address + _FIRST_DEVICE + place)
            device.namespace.ip(
                f"addr add {device.ip6}/64 dev eth0 nodad",
                f"route add default via {router.lan6.network_address + 1}",
            )


def _only_route(namespace: Namespace) -> None:
    """Keep the packet filter off what a bridge passes on, where br_netfilter would put it there.

    Otherwise a hairpinned packet is translated half on its way into the bridge, and never as a routed one.
    """
    for family in ("ip", "ip6"):
        key = f"bridge/bridge-nf-call-{family}tables"
        if Path("/proc/sys/net", key).exists():
            namespace.sysctl(key, 0)
