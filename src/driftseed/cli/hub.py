# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed hub``: the publicly reachable node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driftseed.cli.options import JsonOption, LogFileOption, LogFormatOption, LogLevelOption
from driftseed.cli.values import parse_size
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
        str,
        typer.Option(
            "--quota", metavar="BYTES", help="Content to keep besides what is deployed, such as 50G."
        ),
    ] = "8G",
    upload_limit: Annotated[
        str,
        typer.Option(
            "--upload-limit", metavar="BYTES", help="Content sent per second, such as 4M; 0: no limit."
        ),
    ] = "0",
    download_limit: Annotated[
        str,
        typer.Option(
            "--download-limit", metavar="BYTES", help="Content fetched per second, such as 4M; 0: no limit."
        ),
    ] = "0",
    stun: Annotated[
        int | None,
        typer.Option(
            "--stun",
            metavar="PORT",
            min=1,
            max=65534,
            help="Answer STUN at this UDP port and the next, for 'driftseed doctor', which looks at the port after --listen.",
        ),
    ] = None,
    json_output: JsonOption = False,
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
    if not kit.exists() or kit.is_dir():
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
                quota_bytes=parse_size(quota),
                upload_limit=parse_size(upload_limit),
                download_limit=parse_size(download_limit),
            ),
            stun=stun,
            json_output=json_output,
            log=LogOptions(format=log_format, file=log_file, level=log_level),
        )
    )
