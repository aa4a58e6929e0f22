# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed fleet``: keys, invitations and hubs of a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from driftseed.cli.options import FleetDirectory, JsonOption
from driftseed.cli.values import parse_duration, parse_labels

app = typer.Typer(help="Make a fleet, invite devices into it, name its hubs.", no_args_is_help=True)

INVITATION_LIFETIME: Final = "7d"
EXPIRES_SOON_DAYS: Final = 30
"""Days before a role's expiry from which on ``show`` says so."""


@app.command()
def init(
    directory: FleetDirectory,
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="For people; the directory's name if not given.")
    ] = None,
    root_keys: Annotated[int, typer.Option("--root-keys", metavar="N", help="Root keys to make.")] = 1,
    threshold: Annotated[
        int, typer.Option("--threshold", metavar="T", help="How many of them must sign a new root.")
    ] = 1,
    no_passphrase: Annotated[
        bool,
        typer.Option("--no-passphrase", help="Leave the keys unencrypted: whoever reads a file has the key."),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Make a fleet: its keys, each in a file of its own, and its first signed metadata."""
    import time

    from driftseed.cli.output import note, print_json, say
    from driftseed.cli.passphrase import UNENCRYPTED_MEANS, new_passphrase
    from driftseed.trust.repository import FleetRepository

    called = name if name is not None else directory.resolve().name
    repository = FleetRepository.create(
        directory,
        name=called,
        root_keys=root_keys,
        threshold=threshold,
        passphrase=new_passphrase(none=no_passphrase),
        clock=time.time,
    )
    if no_passphrase:
        note(f"warning: {UNENCRYPTED_MEANS}")
    keys = sorted(path.stem for path in (directory / "keys").iterdir())
    offline = [key for key in keys if key.startswith("root") or key == "targets"]
    if json_output:
        print_json(
            {
                "fleet": repository.fleet_id,
                "name": repository.name,
                "directory": str(directory),
                "keys": keys,
                "offline": offline,
                "root_threshold": threshold,
                "encrypted": not no_passphrase,
            }
        )
        return
    say(f"fleet {repository.name!r}, id {repository.fleet_id}")
    say(f"made in {directory}: keys/, metadata/, targets/, content/")
    say("take offline, and away from this machine:")
    for key in offline:
        say(f"  {directory / 'keys' / key}.pem")
    say("on a build system: releases.pem, snapshot.pem, timestamp.pem; with operators: all the others")
    note(f"next: driftseed fleet hub-kit {directory} hub.kit, then driftseed hub run --kit hub.kit ...")


@app.command()
def invite(
    directory: FleetDirectory,
    *,
    uses: Annotated[int, typer.Option("--uses", metavar="K", help="Devices that may join by it.")] = 1,
    expires: Annotated[
        str, typer.Option("--expires", metavar="DURATION", help="How long it is good: 30m, 12h, 7d.")
    ] = INVITATION_LIFETIME,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="K=V", help="Given to every device that joins. Repeat it."),
    ] = None,
    hub: Annotated[
        list[str] | None,
        typer.Option("--hub", metavar="ADDRESS", help="Join here instead of at the fleet's hubs. Repeat it."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there, for you alone; must not exist."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Make a join ticket: give it to a device as you would give a password."""
    lifetime = parse_duration(expires)
    labels = parse_labels(label or ())
    from driftseed.core.addresses import format_address, parse_address

    written = [parse_address(text) for text in hub or ()]
    import time

    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import note, print_json, say
    from driftseed.publish.fleet import check_free, write_ticket
    from driftseed.publish.fleet import invite as make_ticket
    from driftseed.publish.resolve import resolve_address

    if out is not None:
        check_free(out)
    resolved = [resolve_address(address) for address in written]
    for found in (text for one in resolved for text in one.notes):
        note(found)
    invited = make_ticket(
        open_fleet(directory),
        uses=uses,
        lifetime_s=lifetime,
        labels=labels,
        hubs=[one.address for one in resolved],
        now=time.time(),
    )
    if out is not None:
        write_ticket(out, invited.ticket)
    if json_output:
        print_json(
            {
                # What is written to a file for one reader does not go to standard output, and so into logs, too.
                "ticket": invited.ticket if out is None else None,
                "file": None if out is None else str(out),
                "id": invited.id,
                "uses": invited.uses,
                "expires": _instant(invited.expires),
                "labels": invited.labels,
                "hubs": [format_address(address) for address in invited.hubs],
            }
        )
        return
    given = ",".join(f"{key}={value}" for key, value in invited.labels.items()) or "no labels"
    note(f"for {invited.uses} device(s), until {_instant(invited.expires)}, with {given}:")
    if out is None:
        say(invited.ticket)
        return
    say(f"wrote {out} (0600)")
    note(f"carry it there as it is (scp -p), then: driftseed agent join @{out.name}")


@app.command("add-hub")
def add_hub(
    directory: FleetDirectory,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="As 'driftseed hub run' prints it.")],
    *,
    json_output: JsonOption = False,
) -> None:
    """Sign where a hub is, so that tickets and devices know it; an older address of it is replaced."""
    from driftseed.core.addresses import format_address, parse_address

    written = parse_address(address)
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import note, print_json, say
    from driftseed.publish import fleet as operating
    from driftseed.publish.resolve import resolve_address

    resolved = resolve_address(written)
    for text in resolved.notes:
        note(text)
    added = operating.add_hub(open_fleet(directory), resolved.address)
    shown = format_address(resolved.address)
    if json_output:
        print_json({"hub": shown, "device": resolved.address.device, "added": added})
        return
    say(f"{'added' if added else 'replaced'} {shown}")
    note(f"devices that are members already hear of it after: driftseed publish {directory} --via ...")


@app.command("remove-hub")
def remove_hub(
    directory: FleetDirectory,
    hub: Annotated[
        str, typer.Argument(metavar="ADDRESS|DEVICEID", help="The hub's address, or only its id.")
    ],
    *,
    json_output: JsonOption = False,
) -> None:
    """Sign that a hub is gone."""
    from driftseed.core.addresses import parse_address
    from driftseed.core.ids import parse_device_id

    device = parse_address(hub).device if "@" in hub or ";" in hub else parse_device_id(hub)
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import note, print_json, say
    from driftseed.publish import fleet as operating

    operating.remove_hub(open_fleet(directory), device)
    if json_output:
        print_json({"device": device, "removed": True})
        return
    say(f"removed {device}")
    note(
        "it is still a hub and holds the timestamp key of its kit: wipe it, or expel it: driftseed device revoke"
    )


@app.command()
def show(directory: FleetDirectory, *, json_output: JsonOption = False) -> None:
    """Show a fleet: its hubs, deployments, and when its metadata expires. Needs no key."""
    import time

    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import print_json, print_table, say
    from driftseed.core.addresses import format_address
    from driftseed.publish.fleet import days_left, describe

    repository = open_fleet(directory)
    found = describe(repository)
    if json_output:
        print_json(found)
        return
    say(f"fleet       {found['name']}  {found['fleet']}")
    for hub in repository.hubs():
        say(f"hub         {format_address(hub)}")
    say(f"labels      {', '.join(found['labels']) or '-'}")
    say(f"releases    {found['releases']}\n")
    now = time.time()
    rows = []
    for role, one in found["metadata"].items():
        left = days_left(one["expires"], now)
        warning = (
            "expired" if left < 0 else "soon" if left < EXPIRES_SOON_DAYS and role != "timestamp" else ""
        )
        rows.append([role, str(one["version"]), one["expires"], f"{left:.0f}", warning])
    print_table(("ROLE", "VERSION", "EXPIRES", "DAYS", ""), rows, right=("VERSION", "DAYS"))
    if found["deployments"]:
        say("")
        print_table(
            ("SEQ", "RELEASE", "VERSION", "TO", "CREATED", "DEPLOYMENT"),
            [
                [
                    str(one["sequence"]),
                    one["release"],
                    one["version"],
                    one["selector"] or "all",
                    one["created"],
                    one["deployment"],
                ]
                for one in reversed(found["deployments"])
            ],
            right=("SEQ",),
        )


@app.command()
def renew(
    directory: FleetDirectory,
    roles: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ROLE]...", help="root, targets, releases, ... or none: snapshot and timestamp."
        ),
    ] = None,
    *,
    json_output: JsonOption = False,
) -> None:
    """Sign metadata anew before it expires; snapshot and timestamp are renewed every time."""
    from driftseed.cli.fleetdir import open_keys
    from driftseed.cli.key import show_outcome

    fleet = open_keys(directory)
    others = [role for role in roles or () if role not in {"root", "snapshot", "timestamp"}]
    proposal = fleet.renew_root() if "root" in (roles or ()) else None
    if others or "root" not in (roles or ()):
        fleet.renew(*others)
    show_outcome(
        directory, ", ".join(roles or ["snapshot, timestamp"]), [], proposal, json_output=json_output
    )


@app.command()
def verify(directory: FleetDirectory, *, json_output: JsonOption = False) -> None:
    """Check everything in a fleet's directory, and say what each role may do. Needs no key."""
    import time

    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import print_json, say
    from driftseed.core.errors import StoreDamaged
    from driftseed.trust.audit import audit

    repository = open_fleet(directory)
    found = audit(repository, time.time)
    if json_output:
        print_json(
            {
                "fleet": repository.fleet_id,
                "ok": not found.problems,
                "roles": [
                    {
                        "role": one.role,
                        "version": one.version or None,
                        "threshold": one.threshold,
                        "keys": one.keys,
                        "expires": one.expires.strftime("%Y-%m-%dT%H:%M:%SZ") if one.expires else None,
                        "paths": one.paths,
                        "targets": one.targets,
                        "means": one.means,
                    }
                    for one in found.roles
                ],
                "roots": found.roots,
                "files": found.files,
                "contents": found.contents,
                "problems": found.problems,
                "warnings": found.warnings,
            }
        )
        # The object is the whole answer for a program; the exit code says whether all is well.
        raise typer.Exit(StoreDamaged.exit_code if found.problems else 0)
    say(f"fleet {repository.name!r} {repository.fleet_id}")
    for one in found.roles:
        until = f", until {one.expires:%Y-%m-%d}" if one.expires else ""
        say(f"{one.role}: {one.threshold} of {one.keys} keys must sign{until}")
        say(f"  {one.means}")
        if one.paths:
            say(f"  may sign {', '.join(one.paths)}; has signed {one.targets}")
    say(f"{found.roots} roots, {found.files} documents and torrents, {found.contents} artifacts hold")
    for warning in found.warnings:
        say(f"warning: {warning}")
    if found.problems:
        raise StoreDamaged("; ".join(found.problems), hint="mend it before publishing: devices refuse it")
    say("all of it holds")


@app.command("hub-kit")
def hub_kit(
    directory: FleetDirectory,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; must not exist.")],
    *,
    device: Annotated[
        str | None,
        typer.Option("--for", metavar="DEVICEID", help="A hub that has its key already: a new kit for it."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write what makes a machine a hub of this fleet: carry it there, then remove it here."""
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import note, print_json, say
    from driftseed.core.ids import parse_device_id
    from driftseed.publish.fleet import write_hub_kit

    write_hub_kit(open_fleet(directory), file, parse_device_id(device) if device else None)
    secrets = ["timestamp"] if device else ["identity", "timestamp"]
    if json_output:
        print_json({"file": str(file), "secrets": secrets, "encrypted": False})
        return
    say(f"wrote {file} (0600)")
    note(
        "it is one hub's, and holds private keys WITHOUT a passphrase, as a hub starts with nobody to type one:"
    )
    if not device:
        note("  identity: whoever has it is this hub; it lets in nobody who has no ticket")
    note(
        "  timestamp: whoever has it can hold devices at the newest state it knows, for as long as that lasts"
    )
    note("neither can make a device install anything")


def _instant(seconds: float) -> str:
    from driftseed.trust.membership import describe_time

    return describe_time(seconds)
