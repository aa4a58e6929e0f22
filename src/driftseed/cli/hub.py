# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed hub``: the publicly reachable node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driftseed.cli.options import LogFileOption, LogFormatOption, LogLevelOption
from driftseed.core import limits
from driftseed.core.errors import Misuse
from driftseed.logs import LogFormat, LogLevel, LogOptions

app = typer.Typer(
    help="Run a hub: it introduces agents, relays, seeds and collects reports.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Keeps ``run`` a subcommand: Typer would fold a group of one command into it."""


@app.command()
def run(
    *,
    kit: Annotated[
        Path, typer.Option("--kit", metavar="FILE", help="What 'driftseed fleet hub-kit' wrote for this hub.")
    ],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="The hub's own directory.")],
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="HOST:PORT", help="UDP for devices, TCP for the relay and the API."),
    ],
    public: Annotated[
        list[str] | None,
        typer.Option(
            "--public",
            metavar="HOST:PORT",
            help="Where devices reach it, if not at --listen. May be repeated.",
        ),
    ] = None,
    relay_url: Annotated[
        str | None,
        typer.Option(
            "--relay-url", metavar="URL", help="Another relay that devices shall use instead of this hub's."
        ),
    ] = None,
    quota: Annotated[
        int, typer.Option("--quota", metavar="BYTES", min=0, help="Content to keep besides what is deployed.")
    ] = limits.CONTENT_QUOTA_DEFAULT,
    upload_limit: Annotated[
        int,
        typer.Option("--upload-limit", metavar="BYTES", min=0, help="Content sent per second; 0: no limit."),
    ] = 0,
    download_limit: Annotated[
        int,
        typer.Option(
            "--download-limit", metavar="BYTES", min=0, help="Content fetched per second; 0: no limit."
        ),
    ] = 0,
    log_format: LogFormatOption = LogFormat.PEOPLE,
    log_file: LogFileOption = None,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Run a hub until it is stopped. Prints its address when it is ready."""
    from driftseed.core.addresses import parse_host_port, parse_relay_url

    for text in (listen, *(public or ())):
        parse_host_port(text, "an address of a hub")
    if relay_url is not None:
        parse_relay_url(relay_url)
    if not kit.is_file():
        raise Misuse(f"there is no hub kit {str(kit)!r}", hint="make one: driftseed fleet hub-kit DIR FILE")
    from driftseed.hub import main as daemon
    from driftseed.node.transfer import ContentSettings

    daemon.run(
        daemon.HubOptions(
            kit=kit,
            data=data,
            listen=listen,
            public=tuple(public or ()),
            relay_url=relay_url,
            content=ContentSettings(
                quota_bytes=quota, upload_limit=upload_limit, download_limit=download_limit
            ),
            log=LogOptions(format=log_format, file=log_file, level=log_level),
        )
    )
