"""Every kind of NAT against every other, dialled from both sides, measured with the product's own parts."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec

from driftseed.core.errors import LabFailed
from driftseed.core.natprobe import Behaviour, PathAtBest, best_path
from driftseed.lab.fleet import Hub, LabFleet
from driftseed.lab.nat import CARRIERS, NatKind
from driftseed.lab.prober import SERVER_SITE, check, probe
from driftseed.lab.processes import HOME, START_S, Child, Processes
from driftseed.lab.topology import Site, World
from driftseed.net.identity import Identity

HUB_SITE: Final = Site(name="hub")
PAYLOAD_BYTES: Final = 4 * 1024 * 1024
SETTLE_S: Final = 3.0
"""Seconds for which a relayed connection may become direct; three times what is aimed at."""
CELL_S: Final = 60.0
"""Seconds after which one connection is given up."""
AT_ONCE: Final = 2
"""Connections measured at once: each has a sender and a receiver, and few machines have more cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What came of one device dialling another."""

    dialler: str
    answerer: str
    expected: PathAtBest
    connected: bool
    path: str = ""
    """``lan``, ``direct`` or ``relayed``: where it ended up."""
    first_path: str = ""
    connect_s: float = 0.0
    first_byte_s: float = 0.0
    """Seconds from dialling to the first byte of an answer, handshake and membership included."""
    direct_s: float | None = None
    """Seconds from the first connection, over whatever path, to the direct path; None: never."""
    goodput_mbytes: float = 0.0
    """Megabytes per second, of 4 MiB, once the path had settled."""
    rtt_ms: int = 0
    failure: str = ""

    @property
    def as_expected(self) -> bool:
        """Connected, and directly where that is possible. A path that is better than expected is fine."""
        return self.connected and (self.expected == "relayed" or self.path != "relayed")


async def nat_matrix(arguments: Any) -> Any:
    """The experiment: ``{"kinds": [...]}`` to a list of cells, each as JSON values."""
    kinds = [NatKind(each) for each in arguments["kinds"]]
    sites = [Site(name=f"{side}-{kind}", nat=kind) for kind in kinds for side in "ab"]
    async with _measuring(sites) as (behaviours, members):
        cells = await _measure(kinds, behaviours, members)
    return {
        "behaviours": {str(kind): asdict(behaviours[f"a-{kind}"]) for kind in kinds},
        "cells": _as_json(cells),
    }


async def assisted(_arguments: Any) -> Any:
    """The experiment: symmetric NATs, hopeless by themselves, with port mapping or IPv6; to a list of cells."""
    hard = NatKind.SYMMETRIC
    sites = [
        *(Site(name=f"{side}-upnp", nat=hard, port_mapping=True) for side in "ab"),
        *(Site(name=f"{side}-ipv6", nat=hard, ipv6=True) for side in "ab"),
        Site(name="plain", nat=hard),
    ]
    pairs = (
        ("a-upnp", "b-upnp"),
        ("plain", "b-upnp"),
        ("a-upnp", "plain"),
        ("a-ipv6", "b-ipv6"),
    )
    async with _measuring(sites) as (_, members):
        cells = [
            await measure_pair(here, there, "direct", members[here], members[there]) for here, there in pairs
        ]
    return {"cells": _as_json(cells)}


@contextlib.asynccontextmanager
async def _measuring(
    sites: Sequence[Site],
) -> AsyncIterator[tuple[dict[str, Behaviour], dict[str, Running]]]:
    """A world with a hub and a member at each site, all of whose NATs are what they say."""
    world = World.build([SERVER_SITE, HUB_SITE, *sites])
    processes = Processes()
    try:
        names = [site.name for site in sites]
        behaviours = await probe(world, names)
        check(behaviours, {site.name: site.nat for site in sites})
        _say(f"{len(sites)} NATs behave as they are named")
        fleet = LabFleet(processes)
        hub = await fleet.start_hub(world.device(HUB_SITE.name))
        started = await asyncio.gather(*(start_member(fleet, hub, world, name) for name in names))
        _say(f"{len(started)} devices have their hub")
        yield behaviours, dict(zip(names, started, strict=True))
    finally:
        await processes.close()
        world.close()


def _as_json(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    return [{**asdict(cell), "as_expected": cell.as_expected} for cell in cells]


@dataclass(frozen=True, slots=True)
class Running:
    """A member of the matrix that has its hub."""

    child: Child
    address: dict[str, Any]


async def start_member(fleet: LabFleet, hub: Hub, world: World, site: str) -> Running:
    """Start a member on a site's first device, and wait until it has its hub.

    Raises:
        LabFailed: it has not, in time.
    """
    identity = Identity.generate()
    device = world.device(site)
    child = await fleet.processes.start(device.name, device.namespace, ["-m", "driftseed.lab.member"])
    setup = {
        "data": str(HOME / device.name),
        "fleet": fleet.repository.fleet_id,
        "first_root": fleet.repository.first_root.hex(),
        "certificate": fleet.certificate(identity).hex(),
        "enrolment_keys": [fleet.repository.enrolment_key().public_key().public_bytes_raw().hex()],
        "secret": identity.secret.hex(),
        "hub": msgspec.to_builtins(hub.address),
    }
    await child.answer(setup, START_S)
    answer = await child.answer({"do": "ready"}, START_S)
    return Running(child, answer["address"])


async def _measure(
    kinds: Sequence[NatKind], behaviours: dict[str, Behaviour], members: dict[str, Running]
) -> list[Cell]:
    # A process measures one connection at a time; pairs are ordered so that neighbours in the list differ.
    busy = {name: asyncio.Lock() for name in members}
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(dialler: NatKind, answerer: NatKind) -> Cell:
        here, there = f"a-{dialler}", f"b-{answerer}"
        shared = dialler is answerer and dialler in CARRIERS
        expected = best_path(behaviours[here], behaviours[there], shared_nat=shared)
        async with busy[here], busy[there], slots:
            cell = await measure_pair(dialler, answerer, expected, members[here], members[there])
        _say(f"{dialler} -> {answerer}: {cell.path or 'not connected'}{'' if cell.as_expected else ' (!)'}")
        return cell

    size = len(kinds)
    diagonals = [(kinds[row], kinds[(row + shift) % size]) for shift in range(size) for row in range(size)]
    cells = await asyncio.gather(*(one(*pair) for pair in diagonals))
    order = {str(kind): place for place, kind in enumerate(kinds)}
    return sorted(cells, key=lambda cell: (order[cell.dialler], order[cell.answerer]))


async def measure_pair(
    dialler: str, answerer: str, expected: PathAtBest, here: Running, there: Running
) -> Cell:
    """Have one member dial the other once."""
    request = {
        "do": "dial",
        "address": there.address,
        "bytes": PAYLOAD_BYTES,
        "settle_s": SETTLE_S,
    }
    try:
        found = await here.child.answer(request, CELL_S)
    except LabFailed as error:
        return Cell(
            dialler=dialler, answerer=answerer, expected=expected, connected=False, failure=error.message
        )
    return Cell(dialler=dialler, answerer=answerer, expected=expected, connected=True, **found)


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")
    sys.stderr.flush()
