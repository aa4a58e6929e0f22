# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed device``: who is expelled, who is a member in any case, whose labels are others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from driftseed.cli.options import FleetDirectory, JsonOption
from driftseed.cli.values import parse_duration, parse_labels

if TYPE_CHECKING:
    from driftseed.core.ids import DeviceId

app = typer.Typer(help="Expel, approve and relabel single devices.", no_args_is_help=True)

DevicesArgument = Annotated[
    list[str],
    typer.Argument(metavar="DEVICE...", help="Device ids, as 'driftseed devices' shows them in full."),
]


@app.command("list")
def list_(directory: FleetDirectory, *, json_output: JsonOption = False) -> None:
    """Show what is signed of single devices. Members of whom nothing is said: 'driftseed devices'."""
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import print_json, print_table
    from driftseed.publish.devices import describe

    rows = describe(open_fleet(directory))
    if json_output:
        print_json({"devices": rows})
        return
    print_table(
        ("KIND", "ID", "STATE", "SINCE", "LABELS", "REASON"),
        [
            [
                row["kind"],
                row["id"],
                row["state"],
                row["at"] or "-",
                ",".join(f"{key}={value}" for key, value in row["labels"].items()) or "-",
                row["reason"],
            ]
            for row in rows
        ],
    )


@app.command()
def revoke(
    directory: FleetDirectory,
    devices: DevicesArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Told to whoever is refused.")] = "",
    void: Annotated[
        str | None,
        typer.Option(
            "--void",
            metavar="AGO",
            help="Of a hub: what it let in since then does not count either: 2h, 3d, or 'all'.",
        ),
    ] = None,
    ticket: Annotated[
        bool, typer.Option("--ticket", help="These are ids of tickets, not of devices.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Expel devices, or withdraw tickets and expel whoever joined by them."""
    import time

    ago = None if void in {None, "all"} else parse_duration(str(void))
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.publish import devices as operating

    now = time.time()
    since = now if void is None else 0.0 if ago is None else now - ago
    fleet = open_fleet(directory)
    if ticket:
        operating.withdraw_tickets(fleet, devices, now=now, reason=reason)
    else:
        operating.revoke(fleet, _ids(devices), now=now, since=since, reason=reason)
    _done("revoked", devices, directory, json_output=json_output)


@app.command()
def approve(
    directory: FleetDirectory,
    devices: DevicesArgument,
    *,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="Labels of these devices. Repeat it.")
    ] = None,
    expires: Annotated[
        str, typer.Option("--expires", metavar="DURATION", help="For how long: 90d, 365d.")
    ] = "365d",
    json_output: JsonOption = False,
) -> None:
    """Sign that devices are members, whatever they show: undoes a revocation, outlives a lost enrolment key."""
    import time

    lifetime, labels = parse_duration(expires), parse_labels(label or ())
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.publish import devices as operating

    operating.approve(open_fleet(directory), _ids(devices), labels=labels, expires=time.time() + lifetime)
    _done("approved", devices, directory, json_output=json_output)


@app.command()
def relabel(
    directory: FleetDirectory,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Its id.")],
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="[K=V]...", help="All of its labels from now on.")
    ] = None,
    *,
    reset: Annotated[bool, typer.Option("--reset", help="Back to the labels that it joined with.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Give a device other labels than those it joined with; selectors go by them at once."""
    given = parse_labels(labels or ())
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.core.errors import Misuse
    from driftseed.publish import devices as operating

    if reset and given:
        raise Misuse("labels, and --reset", hint="one of the two")
    operating.relabel(open_fleet(directory), _ids([device])[0], None if reset else given)
    _done("relabelled", [device], directory, json_output=json_output)


def _ids(texts: list[str]) -> list[DeviceId]:
    from driftseed.core.ids import parse_device_id

    return [parse_device_id(text) for text in texts]


def _done(what: str, devices: list[str], directory: object, *, json_output: bool) -> None:
    from driftseed.cli.output import note, print_json, say

    if json_output:
        print_json({what: devices})
        return
    for device in devices:
        say(f"{what} {device}")
    note(f"in force where it arrives, within a minute: driftseed publish {directory} --via ...")
