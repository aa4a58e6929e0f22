# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed status``, ``devices``, ``deployments``: what a hub knows of the fleet."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer

from driftseed.cli.options import JsonOption
from driftseed.cli.output import print_json, print_table, say, short
from driftseed.cli.secrets import read_token
from driftseed.core.errors import Misuse

HubOption = Annotated[
    str,
    typer.Option(
        "--hub",
        envvar="DRIFTSEED_HUB",
        metavar="DATADIR|SOCKET|URL",
        help="The hub: its data directory or socket on this machine, or http(s)://HOST:PORT.",
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="@FILE|-|TOKEN",
        help="The hub's API token: in a file, on standard input, or itself; DRIFTSEED_TOKEN if not given.",
    ),
]
HUB_DEFAULT: Final = "/var/lib/driftseed-hub"
CLEAR_SCREEN: Final = "\x1b[H\x1b[2J"
"""ECMA-48: cursor home, erase the display. Everything else that is printed is made harmless first."""
WATCH_INTERVAL_S: Final = 2.0
"""Seconds between two looks with ``--watch``."""
ATTENTION_SHOWN_MAX: Final = 20
"""Stuck devices that ``status`` lists; ``devices`` lists them all."""


def status(
    *, hub: HubOption = HUB_DEFAULT, token: TokenOption = None, json_output: JsonOption = False
) -> None:
    """Show a fleet as a hub sees it, and which devices are stuck and why."""
    from driftseed.cli import views
    from driftseed.cli.client import hub_client

    client = hub_client(hub, read_token(token))
    answer = client.get("/v1/status")
    stuck = views.attention(client.get("/v1/devices").get("devices", []))
    if json_output:
        print_json({**answer, "attention": stuck})
        return
    for line in views.hub_lines(answer):
        say(line)
    if not stuck:
        say("\nevery device is well")
        return
    say(f"\n{len(stuck)} need a look:")
    shown = stuck[:ATTENTION_SHOWN_MAX]
    print_table(
        ("DEVICE", "STATE", "UPDATE", "WHY"),
        [[short(one["device"]), one["state"], one["update"], one["why"]] for one in shown],
    )
    if len(shown) < len(stuck):
        say(f"... and {len(stuck) - len(shown)} more: driftseed devices")


def devices(
    *,
    hub: HubOption = HUB_DEFAULT,
    token: TokenOption = None,
    json_output: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every two seconds, until Ctrl-C.")
    ] = False,
) -> None:
    """List the devices, those that are stuck first, each with the reason."""
    from driftseed.cli import views
    from driftseed.cli.client import hub_client

    if watch and json_output:
        raise Misuse("--watch is for people and --json for programs", hint="give one of them")
    client = hub_client(hub, read_token(token))
    while True:
        answer = client.get("/v1/devices")
        if json_output:
            print_json(answer)
            return
        if watch:
            typer.echo(CLEAR_SCREEN, nl=False)
        print_table(views.DEVICE_COLUMNS, views.device_rows(answer.get("devices", [])), right=("HEARD",))
        if not watch:
            return
        time.sleep(WATCH_INTERVAL_S)


def deployments(
    *, hub: HubOption = HUB_DEFAULT, token: TokenOption = None, json_output: JsonOption = False
) -> None:
    """List the deployments with how far each has got, and on which devices it failed."""
    from driftseed.cli import views
    from driftseed.cli.client import hub_client

    answer = hub_client(hub, read_token(token)).get("/v1/deployments")
    if json_output:
        print_json(answer)
        return
    found = answer.get("deployments", [])
    print_table(
        views.DEPLOYMENT_COLUMNS,
        views.deployment_rows(found),
        right=tuple(name.upper() for name in views.DEPLOYMENT_COUNTS),
    )
    if failures := views.deployment_failures(found):
        say("\nfailed on:")
        print_table(("RELEASE", "DEVICE", "WHY"), failures)
