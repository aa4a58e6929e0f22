# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed doctor``: what the network is like here, and what to ask its owner for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftseed.cli.options import DATA_DEFAULT, DataOption, JsonOption

if TYPE_CHECKING:
    from driftseed.core.model import NodeAddress

UNWELL = 1
"""Exit code when something is bad."""


def doctor(
    *,
    data: DataOption = DATA_DEFAULT,
    hub: Annotated[
        list[str] | None,
        typer.Option("--hub", metavar="ADDRESS", help="A hub to try, besides those that the device knows."),
    ] = None,
    stun: Annotated[
        list[str] | None,
        typer.Option(
            "--stun",
            metavar="HOST:PORT",
            help="A STUN server; otherwise the port after each hub's own is tried.",
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Look at the network from this device: UDP, NAT, relay, IPv6, clock, disk."""
    import asyncio

    from driftseed.agent.doctor import measure
    from driftseed.cli.output import print_json, print_table, say
    from driftseed.core.addresses import parse_address, parse_host_port
    from driftseed.core.doctor import Verdict, findings
    from driftseed.net.portmap import gateway
    from driftseed.publish.resolve import resolve_address

    hubs = {each.device: each for each in _known_hubs(data)}
    for text in hub or ():
        named = resolve_address(parse_address(text)).address
        hubs[named.device] = named
    servers = [parse_host_port(text, "a STUN server") for text in stun or ()]
    directory = data if data.is_dir() else Path.cwd()
    addresses = [(each.host, each.port) for each in servers]
    measured = asyncio.run(measure(directory, list(hubs.values()), addresses, gateway()))
    found = findings(measured)
    if json_output:
        import msgspec

        print_json({"findings": msgspec.to_builtins(found), "measured": msgspec.to_builtins(measured)})
    else:
        print_table(("CHECK", "", "WHAT IS SO"), [[each.check, each.verdict, each.said] for each in found])
        asks = [each for each in found if each.ask and each.verdict is not Verdict.GOOD]
        if asks:
            say("\nWhat to ask the network's owner for, or to do:")
        for each in asks:
            say(f"  {each.check}: {each.ask}")
    if any(each.verdict is Verdict.BAD for each in found):
        raise typer.Exit(UNWELL)


def _known_hubs(data: Path) -> list[NodeAddress]:
    """Hubs that the device joined through, and those that the signed metadata names."""
    import time

    from driftseed.node.home import MEMBERSHIP_FILE, Home
    from driftseed.trust.device import FleetTrust

    if not (data / MEMBERSHIP_FILE).exists():
        return []
    record = Home(data).member()
    fleet = FleetTrust(data / "trust", record.root, time.time).load()
    return [*record.hubs, *(fleet.hubs if fleet else ())]
