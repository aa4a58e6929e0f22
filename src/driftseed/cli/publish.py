# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed publish``: hands what was signed to any node that can be reached, and may then go offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftseed.cli.options import FleetDirectory, JsonOption
from driftseed.cli.values import parse_duration

if TYPE_CHECKING:
    from driftseed.cli.output import Bar
    from driftseed.publish.send import PublishResult
    from driftseed.trust.repository import FleetRepository


def publish(
    directory: FleetDirectory,
    *,
    via: Annotated[
        str,
        typer.Option(
            "--via",
            metavar="@FILE|-|TICKET|ADDRESS|SOCKET",
            help="A ticket (in a file, on standard input, or itself), a hub's address, or an agent's socket or "
            "data directory.",
        ),
    ],
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout", metavar="DURATION", help="Give up after this long; again goes on from there."
        ),
    ] = "10m",
    json_output: JsonOption = False,
) -> None:
    """Hand the signed metadata and the content to a node of the fleet, which tells the others."""
    seconds = parse_duration(timeout)
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import human_bytes, print_json, progress_bar, say

    repository = open_fleet(directory)
    where = _where(via)
    with progress_bar() as bar:
        result = _send(repository, where, seconds, bar)
    if json_output:
        import msgspec

        print_json(msgspec.to_builtins(result))
        return
    say(
        f"{result.node} has everything: timestamp {result.timestamp_version}, {result.files} files of metadata, "
        f"{human_bytes(result.content_bytes)} of content, in {result.seconds:.1f} s"
    )


def _where(via: str) -> str:
    """What ``--via`` stands for: a ticket may be in a file, or come by standard input."""
    from driftseed.cli.secrets import STANDARD_INPUT, is_file, read_ticket
    from driftseed.publish.send import is_ticket

    secret = via == STANDARD_INPUT or is_file(via) or is_ticket(via)
    return (read_ticket(via) if secret else via).strip()


def _send(repository: FleetRepository, via: str, timeout_s: float, bar: Bar) -> PublishResult:
    """Choose the way by what ``--via`` looks like: a path that is there, a hub's address, else a ticket."""
    import asyncio

    from driftseed.cli.client import AGENT_SOCKET, Client
    from driftseed.core.addresses import parse_address
    from driftseed.core.errors import AgentUnreachable
    from driftseed.publish import send
    from driftseed.publish.resolve import resolve_address

    if send.is_ticket(via):
        return asyncio.run(send.publish_to_hub(repository, via, timeout_s=timeout_s, progress=bar.show))
    if "@" in via or ";" in via:
        hub = resolve_address(parse_address(via)).address
        return asyncio.run(send.publish_to_nodes(repository, [hub], timeout_s=timeout_s, progress=bar.show))
    path = Path(via)
    if not path.exists():
        raise AgentUnreachable(
            f"{via[:160]!r} is no ticket, no address of a hub, and no socket of an agent",
            hint="--via takes @FILE with a ticket, DEVICEID@HOST:PORT, or DATADIR/agent.sock",
        )
    socket = path / AGENT_SOCKET if path.is_dir() else path
    return send.publish_to_agent(repository, Client(socket, "agent"), progress=bar.show)
