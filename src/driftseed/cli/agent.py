# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed agent``: the daemon on a device, and questions to it over its socket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftseed.cli.options import (
    DATA_DEFAULT,
    DataOption,
    JsonOption,
    LogFileOption,
    LogFormatOption,
    LogLevelOption,
)
from driftseed.cli.values import parse_pairs
from driftseed.core.errors import Misuse, NotFound
from driftseed.logs import LogFormat, LogLevel, LogOptions

if TYPE_CHECKING:
    from driftseed.cli.client import Client

app = typer.Typer(help="Join a fleet, run the agent, ask the running one.", no_args_is_help=True)
update_app = typer.Typer(help="Look at one update, or forget it.", no_args_is_help=True)
app.add_typer(update_app, name="update")

SocketOption = Annotated[
    Path | None, typer.Option("--socket", metavar="PATH", help="The agent's socket, if not DIR/agent.sock.")
]
DeploymentArgument = Annotated[
    str, typer.Argument(metavar="DEPLOYMENT", help="The deployment's id, or the beginning of one.")
]


@app.command()
def join(
    ticket: Annotated[
        str,
        typer.Argument(metavar="TICKET|@FILE|-", help="The ticket, a file with it, or - for standard input."),
    ],
    *,
    data: DataOption = DATA_DEFAULT,
    json_output: JsonOption = False,
) -> None:
    """Become a member of a fleet: trade a ticket's secret for a membership certificate."""
    import time

    from driftseed.cli.secrets import read_ticket
    from driftseed.core.tickets import decode_ticket

    text = read_ticket(ticket)
    # Before a directory and a key are made for it.
    decode_ticket(text, time.time())
    from driftseed.agent.main import join as join_fleet
    from driftseed.cli.output import note, print_json

    joined = join_fleet(text, data)
    if json_output:
        print_json(
            {
                "device": joined.device,
                "fleet": joined.fleet,
                "fleet_name": joined.name,
                "labels": joined.labels,
                "hub": joined.hub,
            }
        )
        return
    note(f"joined the fleet {joined.name!r} as device {joined.device}")
    note(f"now run: driftseed agent run --data {data}")


@app.command()
def run(
    *,
    data: DataOption = DATA_DEFAULT,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="UDP address instead of the configured one."),
    ] = None,
    inventory: Annotated[
        list[str] | None,
        typer.Option(
            "--inventory", metavar="K=V", help="Say this of the device instead of what it finds out."
        ),
    ] = None,
    serve_only: Annotated[
        bool, typer.Option("--serve-only", help="Proxy mode: fetch and serve everything, install nothing.")
    ] = False,
    log_format: LogFormatOption = LogFormat.PEOPLE,
    log_file: LogFileOption = None,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Run the agent until it is stopped."""
    from driftseed.core.addresses import parse_host_port

    if listen is not None:
        parse_host_port(listen, "an address to listen on")
    overrides = parse_pairs(inventory or (), "inventory")
    if not data.is_dir():
        from driftseed.node.home import Home

        Home(data).member()
    from driftseed.agent.program import become

    become(
        {
            "data": data,
            "listen": listen,
            "inventory": overrides,
            "serve_only": serve_only,
            "log": LogOptions(format=log_format, file=log_file, level=log_level),
        }
    )


@app.command()
def status(
    *, data: DataOption = DATA_DEFAULT, socket: SocketOption = None, json_output: JsonOption = False
) -> None:
    """Show how the agent does, and what is wrong."""
    from driftseed.cli import views
    from driftseed.cli.output import print_json, say

    answer = _client(data, socket).get("/v1/status")
    if json_output:
        print_json(answer)
        return
    for line in views.agent_lines(answer):
        say(line)


@app.command()
def peers(
    *, data: DataOption = DATA_DEFAULT, socket: SocketOption = None, json_output: JsonOption = False
) -> None:
    """List the devices it is connected to, and by what kind of path."""
    from driftseed.cli import views
    from driftseed.cli.output import print_json, print_table

    answer = _client(data, socket).get("/v1/peers")
    if json_output:
        print_json(answer)
        return
    print_table(
        views.PEER_COLUMNS, views.peer_rows(answer.get("peers", [])), right=("RTT", "SINCE", "IN", "OUT")
    )


@app.command()
def overlay(
    *, data: DataOption = DATA_DEFAULT, socket: SocketOption = None, json_output: JsonOption = False
) -> None:
    """Show by what addresses the device can be reached, and how many others it knows."""
    from driftseed.cli import views
    from driftseed.cli.output import print_json, say

    answer = _client(data, socket).get("/v1/overlay")
    if json_output:
        print_json(answer)
        return
    for line in views.overlay_lines(answer):
        say(line)


@app.command()
def updates(
    *, data: DataOption = DATA_DEFAULT, socket: SocketOption = None, json_output: JsonOption = False
) -> None:
    """List updates: state, progress, and where their bytes came from."""
    from driftseed.cli import views
    from driftseed.cli.output import print_json, print_table

    answer = _client(data, socket).get("/v1/updates")
    if json_output:
        print_json(answer)
        return
    print_table(
        views.UPDATE_COLUMNS, views.update_rows(answer.get("updates", [])), right=("DONE", "TRIES", "SECONDS")
    )


@app.command()
def config(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="What to change; nothing shows it all."),
    ] = None,
    *,
    data: DataOption = DATA_DEFAULT,
    socket: SocketOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show or change the agent's configuration. Values are JSON; what is not is taken as text."""
    import json

    from driftseed.cli.output import note, print_json, print_table

    changes = {key: _json_or_text(value) for key, value in parse_pairs(settings or (), "setting").items()}
    client = _client(data, socket)
    answer = client.request("PATCH", "/v1/config", changes) if changes else client.get("/v1/config")
    if json_output:
        print_json(answer)
        return
    defaults = answer.get("defaults", {})
    print_table(
        ("KEY", "VALUE", "DEFAULT"),
        [
            [key, json.dumps(value), "" if value == defaults.get(key) else json.dumps(defaults.get(key))]
            for key, value in sorted(answer.get("config", {}).items())
        ],
    )
    if restart := answer.get("restart"):
        note(f"in force after a restart of the agent: {', '.join(map(str, restart))}")


@app.command()
def announce(
    *, data: DataOption = DATA_DEFAULT, socket: SocketOption = None, json_output: JsonOption = False
) -> None:
    """Pass the newest notice on to every neighbour again."""
    from driftseed.cli.output import print_json, say

    answer = _client(data, socket).request("POST", "/v1/announce")
    if json_output:
        print_json(answer)
        return
    say(f"timestamp {answer.get('timestamp_version')} passed on to {answer.get('neighbours')} neighbours")


@update_app.command("show")
def show_update(
    deployment: DeploymentArgument,
    *,
    data: DataOption = DATA_DEFAULT,
    socket: SocketOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show one update with all its states."""
    from driftseed.cli import views
    from driftseed.cli.output import print_json, print_table, say

    client = _client(data, socket)
    answer = client.get(f"/v1/updates/{_find_update(client, deployment)}")
    if json_output:
        print_json(answer)
        return
    print_table(views.UPDATE_COLUMNS, views.update_rows([answer]))
    say("")
    print_table(views.HISTORY_COLUMNS, views.history_rows(answer.get("history", [])))


@update_app.command("remove")
def remove_update(
    deployment: DeploymentArgument,
    *,
    data: DataOption = DATA_DEFAULT,
    socket: SocketOption = None,
    json_output: JsonOption = False,
) -> None:
    """Forget a finished update and its content, if it is not what is installed."""
    from driftseed.cli.output import print_json, say

    client = _client(data, socket)
    found = _find_update(client, deployment)
    answer = client.request("DELETE", f"/v1/updates/{found}")
    if json_output:
        print_json(answer)
        return
    say(f"removed {found}")


def _client(data: Path, socket: Path | None) -> Client:
    from driftseed.cli.client import agent_client

    return agent_client(data, socket)


def _find_update(client: Client, beginning: str) -> str:
    """The id of the one update that begins so: nobody types 32 characters."""
    identifiers = [
        str(update.get("deployment", "")) for update in client.get("/v1/updates").get("updates", [])
    ]
    found = (
        [identifier for identifier in identifiers if identifier.startswith(beginning)] if beginning else []
    )
    if len(found) == 1:
        return found[0]
    if found:
        raise Misuse(f"{len(found)} updates begin with {beginning[:40]!r}", hint="write more of the id")
    raise NotFound(f"there is no update {beginning[:40]!r}", hint="driftseed agent updates lists them")


def _json_or_text(value: str) -> object:
    import json

    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
