"""A scenario: who is where, how each is connected, what happens when, and what has to come of it.

Written as TOML; ``docs/lab.md`` shows one with everything in it. Times are seconds from publishing on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct, field

from driftseed.core.errors import Misuse, NotFound
from driftseed.lab.lines import Shape
from driftseed.lab.nat import NatKind
from driftseed.lab.topology import Site

FILE_BYTES_MAX: Final = 256 * 1024
DEVICES_MAX: Final = 64
"""Agents of one scenario: each is a process of some 130 MB, engine included."""
CLOCK_MAX_S: Final = 1800.0

Name = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,31}\Z")]
Seconds = Annotated[float, Meta(ge=0.0, le=CLOCK_MAX_S)]
Megabits = Annotated[float, Meta(gt=0.0, le=10_000.0)]


class LineSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A way to the internet; see ``lines.Shape``."""

    up: Megabits | None = None
    down: Megabits | None = None
    delay_ms: Annotated[float, Meta(ge=0.0, le=5000.0)] = 0.0
    loss_percent: Annotated[float, Meta(ge=0.0, lt=100.0)] = 0.0


class SiteSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place with devices in it; see ``topology.Site``."""

    name: Name
    nat: NatKind = NatKind.PORT_RESTRICTED
    devices: Annotated[int, Meta(ge=0, le=DEVICES_MAX)] = 1
    line: LineSpec = LineSpec()
    ipv6: bool = False
    port_mapping: bool = False
    carrier: Name | None = None


class HubSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A hub, at a public address of its own."""

    name: Name
    line: LineSpec = LineSpec()


class Cut(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="cut"):
    """A site's way to the internet fails for a while."""

    at_s: Seconds
    site: Name
    for_s: Seconds


class Flap(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="flap"):
    """It comes and goes, until the end."""

    at_s: Seconds
    site: Name
    up_s: Annotated[float, Meta(gt=0.0)]
    down_s: Annotated[float, Meta(gt=0.0)]


class Move(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="move"):
    """A device is carried to another site: another network, another address."""

    at_s: Seconds
    device: str
    """``SITE-NUMBER``, as it was at the beginning."""
    to: Name


class ForgetBindings(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="forget-bindings"
):
    """A site's router is switched off and on."""

    at_s: Seconds
    site: Name


class KillHub(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="kill-hub"):
    """A hub's power goes."""

    at_s: Seconds
    hub: Name


class StartHub(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="start-hub"
):
    """It comes back."""

    at_s: Seconds
    hub: Name


class KillDevice(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="kill-device"
):
    """A device's power goes."""

    at_s: Seconds
    device: str


class StartDevice(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="start-device"
):
    """It comes back."""

    at_s: Seconds
    device: str


PowerEvent: TypeAlias = KillHub | StartHub | KillDevice | StartDevice
Event: TypeAlias = Cut | Flap | Move | ForgetBindings | PowerEvent


class Expected(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What has to come of it, all devices being up to date at the end; None: nothing in particular.

    Args:
        within_s: from publishing to the last device's success.
        origin_copies_max: payloads that hubs gave to devices, directly or over a relay, all together.
        uplink_copies_max: payloads that came over any one site's way to the internet.
        received_copies_max: payloads that an average device received.
    """

    within_s: Seconds = 120.0
    origin_copies_max: float | None = None
    uplink_copies_max: float | None = None
    received_copies_max: float | None = None


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it."""

    name: str = "scenario"
    payload_bytes: Annotated[int, Meta(ge=1, le=2**30)] = 4_000_000
    hub: list[HubSpec] = field(default_factory=lambda: [HubSpec(name="hub")])
    site: list[SiteSpec] = []
    event: list[Event] = []
    expect: Expected = Expected()

    def sites(self) -> list[Site]:
        """What to build: hubs, and the places of devices."""
        hubs = [Site(name=hub.name, line=shape_of(hub.line)) for hub in self.hub]
        return [*hubs, *(site_of(each) for each in self.site)]

    def devices(self) -> list[str]:
        """All devices by name."""
        return [f"{site.name}-{number}" for site in self.site for number in range(site.devices)]


def shape_of(line: LineSpec) -> Shape:
    """A line as the topology wants it."""
    return Shape(up=line.up, down=line.down, delay_ms=line.delay_ms, loss_percent=line.loss_percent)


def site_of(site: SiteSpec) -> Site:
    """A site as the topology wants it."""
    return Site(
        name=site.name,
        nat=site.nat,
        devices=site.devices,
        line=shape_of(site.line),
        ipv6=site.ipv6,
        port_mapping=site.port_mapping,
        carrier=site.carrier,
    )


def load_scenario(path: Path) -> Scenario:
    """Read a file.

    Raises:
        NotFound: there is none.
        Misuse: as ``parse_scenario``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFound(
            f"there is no scenario {str(path)!r}", hint="docs/lab.md shows how one looks"
        ) from None
    if len(data) > FILE_BYTES_MAX:
        raise Misuse(f"{path} is no scenario: it has more than {FILE_BYTES_MAX} bytes")
    return parse_scenario(data)


def parse_scenario(data: bytes) -> Scenario:
    """Read TOML.

    Raises:
        Misuse: it is none, says what nobody understands, or names a site, device or hub that is not in it.
    """
    try:
        scenario = msgspec.toml.decode(data, type=Scenario)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Misuse(f"not a scenario: {error}", hint="docs/lab.md shows how one looks") from None
    return checked(scenario)


def uniform(
    *,
    sites: int,
    devices: int,
    nat: str,
    line: Mapping[str, float | None],
    payload_bytes: int,
    within_s: float,
) -> Scenario:
    """So many sites of one kind, and nothing that happens to them.

    Raises:
        Misuse: something is out of bounds; the message says what.
    """
    site = {"nat": nat, "devices": devices, "line": line}
    named = [{"name": f"site{number + 1}", **site} for number in range(sites)]
    wanted = {
        "name": "rollout",
        "payload_bytes": payload_bytes,
        "site": named,
        "expect": {"within_s": within_s},
    }
    try:
        return checked(msgspec.convert(wanted, Scenario))
    except msgspec.ValidationError as error:
        raise Misuse(f"no such rollout can be made: {error}", hint=f"kinds: {', '.join(NatKind)}") from None


def from_json(value: Any) -> Scenario:
    """What ``to_json`` made."""
    return msgspec.convert(value, Scenario)


def to_json(scenario: Scenario) -> Any:
    """JSON values."""
    return msgspec.to_builtins(scenario)


def checked(scenario: Scenario) -> Scenario:
    """Make sure that everything that is named is there. Raises Misuse."""
    sites, devices, hubs = (
        [each.name for each in scenario.site],
        scenario.devices(),
        [each.name for each in scenario.hub],
    )
    places = [*sites, *hubs]
    if twice := {name for name in places if places.count(name) > 1}:
        raise Misuse(f"two places are called {min(twice)!r}")
    if not 1 <= len(devices) <= DEVICES_MAX:
        raise Misuse(f"{len(devices)} devices", hint=f"a scenario has 1 to {DEVICES_MAX}")
    if not hubs:
        raise Misuse("no hub: nobody could join", hint="kill it at 0 s if it is not to be there")
    for event in scenario.event:
        match event:
            case Cut(site=name) | Flap(site=name) | ForgetBindings(site=name):
                _known(name, sites, "site")
            case Move(device=device, to=site):
                _known(device, devices, "device")
                _known(site, sites, "site")
            case KillHub(hub=name) | StartHub(hub=name):
                _known(name, hubs, "hub")
            case KillDevice(device=name) | StartDevice(device=name):
                _known(name, devices, "device")
    return scenario


def _known(name: str, names: Iterable[str], what: str) -> None:
    among = list(names)
    if name not in among:
        near = difflib.get_close_matches(name, among, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(among)[:200]}"
        raise Misuse(f"an event names the {what} {name!r}, which is not there", hint=hint)
