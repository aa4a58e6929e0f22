"""``driftseed publish``: hands what was signed to any node that can be reached, and may then go offline."""

from __future__ import annotations

from typing import Annotated

import typer

from driftseed.cli.options import FleetDirectory, JsonOption
from driftseed.cli.values import parse_duration


def publish(
    directory: FleetDirectory,
    *,
    via: Annotated[
        str,
        typer.Option(
            "--via", metavar="TICKET|SOCKET", help="A ticket of the fleet, or an agent's or hub's socket."
        ),
    ],
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="Give up after this long without success.")
    ] = "10m",
    json_output: JsonOption = False,
) -> None:
    """Hand the signed metadata and the content to a node of the fleet."""
    seconds = parse_duration(timeout)
    import asyncio  # noqa: PLC0415 - see cli/main.py

    import msgspec  # noqa: PLC0415 - as above

    from driftseed.cli.fleetdir import open_fleet  # noqa: PLC0415 - as above
    from driftseed.cli.output import human_bytes, print_json, progress_bar, say  # noqa: PLC0415 - as above
    from driftseed.publish.send import publish as send  # noqa: PLC0415 - as above

    repository = open_fleet(directory)
    with progress_bar(0) as progress:
        result = asyncio.run(send(repository, via, timeout_s=seconds, progress=progress))
    if json_output:
        print_json(msgspec.to_builtins(result))
        return
    say(
        f"published timestamp {result.timestamp_version} to {result.node}: "
        f"{result.files} metadata files, {human_bytes(result.content_bytes)} of content"
    )
