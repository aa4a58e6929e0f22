# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed key``: the private keys of a fleet, who signs with them, and replacing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftseed.cli.options import FleetDirectory, JsonOption

if TYPE_CHECKING:
    from driftseed.trust.ceremony import FleetKeys
    from driftseed.trust.keyring import NamedKey
    from driftseed.trust.proposal import Proposal

app = typer.Typer(help="List, make, replace and withdraw the keys of a fleet.", no_args_is_help=True)

RoleArgument = Annotated[
    str,
    typer.Argument(
        metavar="ROLE",
        help="root, targets, snapshot, timestamp, releases, deployments, fleet, a team, or enrolment.",
    ),
]
KEY_HELP = "A key file, a public key in PEM, or hsm:, awskms:, gcpkms:, azurekms:, hv: URI. Repeat it."
WithOption = Annotated[
    list[str] | None,
    typer.Option(
        "--with", metavar="KEY", help="A private key that is elsewhere, to sign this change. Repeat it."
    ),
]
NoPassphrase = Annotated[
    bool,
    typer.Option("--no-passphrase", help="Leave new keys unencrypted: whoever reads a file has the key."),
]


@app.command("list")
def list_(directory: FleetDirectory, *, json_output: JsonOption = False) -> None:
    """Show every key of every role, and whether it is on this machine. Needs no key."""
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import print_json, print_table
    from driftseed.trust.audit import list_keys

    rows = list_keys(open_fleet(directory))
    if json_output:
        print_json(
            {
                "keys": [
                    {
                        "role": row.role,
                        "key": row.keyid,
                        "type": row.kind,
                        "uri": row.uri or None,
                        "here": row.here,
                        "threshold": row.threshold,
                        "expires": row.expires.strftime("%Y-%m-%dT%H:%M:%SZ") if row.expires else None,
                    }
                    for row in rows
                ]
            }
        )
        return
    print_table(
        ("ROLE", "KEY", "TYPE", "WHERE", "HERE", "SIGN", "EXPIRES"),
        [
            [
                row.role,
                row.keyid[:16],
                row.kind,
                row.uri or "-",
                "yes" if row.here else "no",
                f"{row.threshold} of {sum(other.role == row.role for other in rows)}",
                f"{row.expires:%Y-%m-%d}" if row.expires else "-",
            ]
            for row in rows
        ],
    )


@app.command()
def create(
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="A fleet's directory.")] = None,
    role: Annotated[
        str | None, typer.Argument(metavar="[ROLE]", help="The role that it may sign for.")
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Only make a key file, and FILE.pub with its public half."
        ),
    ] = None,
    brought: WithOption = None,
    no_passphrase: NoPassphrase = False,
    json_output: JsonOption = False,
) -> None:
    """Make a key: for a role of a fleet, which it may then sign for, or just a file."""
    from driftseed.core.errors import Misuse

    if (out is None) == (directory is None) or (directory is not None and role is None):
        raise Misuse(
            "say for what", hint="driftseed key create DIR ROLE, or: driftseed key create --out FILE"
        )
    from driftseed.cli.output import note, print_json, say
    from driftseed.cli.passphrase import UNENCRYPTED_MEANS, new_passphrase

    passphrase = new_passphrase(none=no_passphrase)
    if out is not None:
        key_id = _create_file(out, passphrase)
        if no_passphrase:
            note(f"warning: {UNENCRYPTED_MEANS}")
        public = out.with_name(out.name + ".pub")
        if json_output:
            print_json({"file": str(out), "public": str(public), "key": key_id})
            return
        say(f"key {key_id}")
        say(f"private half: {out} (0600), public half: {public}")
        note(
            "give the public half to whoever has the fleet's directory: driftseed key rotate DIR ROLE --key FILE.pub"
        )
        return
    if directory is None or role is None:
        raise Misuse("say for what")
    fleet = _open(directory)
    extra = _named(fleet, brought)
    key = fleet.new_key(role, passphrase)
    proposal = fleet.add(role, key, brought=extra)
    if no_passphrase:
        note(f"warning: {UNENCRYPTED_MEANS}")
    show_outcome(directory, role, [key], proposal, json_output=json_output)


def _create_file(out: Path, passphrase: bytes | None) -> str:
    from driftseed.store.files import atomic_write
    from driftseed.trust.keyring import public_pem
    from driftseed.trust.keys import create_key, load_private, signer_for

    create_key(out, passphrase)
    key = load_private(out, lambda _: passphrase or b"")
    atomic_write(out.with_name(out.name + ".pub"), public_pem(key))
    return signer_for(key).public_key.keyid


@app.command()
def rotate(
    directory: FleetDirectory,
    role: RoleArgument,
    *,
    key: Annotated[list[str] | None, typer.Option("--key", metavar="KEY", help=KEY_HELP)] = None,
    threshold: Annotated[
        int | None, typer.Option("--threshold", metavar="T", help="How many of them must sign from now on.")
    ] = None,
    brought: WithOption = None,
    no_passphrase: NoPassphrase = False,
    json_output: JsonOption = False,
) -> None:
    """Replace all keys of a role: by those named, or by as many new ones as there are."""
    from driftseed.cli.passphrase import new_passphrase
    from driftseed.trust.audit import list_keys

    fleet = _open(directory)
    extra = _named(fleet, brought)
    if key:
        keys = _named(fleet, key)
    else:
        count = sum(row.role == role for row in list_keys(fleet)) or 1
        passphrase = new_passphrase(none=no_passphrase)
        keys = [fleet.new_key(role, passphrase) for _ in range(max(count, threshold or 1))]
    proposal = fleet.rotate(role, keys, threshold=threshold, brought=extra)
    show_outcome(directory, role, keys, proposal, json_output=json_output)


@app.command()
def revoke(
    directory: FleetDirectory,
    role: RoleArgument,
    keyid: Annotated[
        str, typer.Argument(metavar="KEYID", help="As 'key list' shows it; a beginning will do.")
    ],
    *,
    replacement: Annotated[
        str | None, typer.Option("--replace-with", metavar="KEY", help="A key that takes its place.")
    ] = None,
    brought: WithOption = None,
    json_output: JsonOption = False,
) -> None:
    """Withdraw a key from a role: nothing that it signs counts any more."""
    fleet = _open(directory)
    new = _named(fleet, [replacement] if replacement else None)
    extra = _named(fleet, brought)
    proposal = fleet.revoke(role, keyid.lower(), replacement=new[0] if new else None, brought=extra)
    show_outcome(directory, role, new, proposal, json_output=json_output)


@app.command()
def delegate(
    directory: FleetDirectory,
    team: Annotated[str, typer.Argument(metavar="TEAM", help="The new role's name, such as camera.")],
    *,
    paths: Annotated[
        list[str] | None,
        typer.Option("--paths", metavar="PATTERN", help="Such as 'releases/camera/*/*'. Repeat it."),
    ] = None,
    key: Annotated[list[str] | None, typer.Option("--key", metavar="KEY", help=KEY_HELP)] = None,
    threshold: Annotated[int, typer.Option("--threshold", metavar="T", help="How many must sign.")] = 1,
    remove: Annotated[bool, typer.Option("--remove", help="Take the team's paths back.")] = False,
    brought: WithOption = None,
    no_passphrase: NoPassphrase = False,
    json_output: JsonOption = False,
) -> None:
    """Give releases of some names to a team: its keys alone sign them from now on."""
    from driftseed.cli.passphrase import new_passphrase
    from driftseed.trust.ceremony import check_team

    fleet = _open(directory)
    extra = _named(fleet, brought)
    if remove:
        fleet.undelegate(team, brought=extra)
        show_outcome(directory, team, [], None, json_output=json_output)
        return
    check_team(team, paths or ())
    keys = _named(fleet, key) if key else [fleet.new_key(team, new_passphrase(none=no_passphrase))]
    fleet.delegate(team, paths or (), keys, threshold=threshold, brought=extra)
    show_outcome(directory, team, keys, None, json_output=json_output)


def show_outcome(
    directory: Path,
    role: str,
    keys: Sequence[NamedKey],
    proposal: Proposal | None,
    *,
    json_output: bool,
) -> None:
    """Say that a change is in force, or what it still waits for."""
    from driftseed.cli.output import note, print_json, say

    made = [key.uri for key in keys if key.uri]
    if json_output:
        print_json(
            {
                "role": role,
                "keys": [{"key": key.public.keyid, "uri": key.uri} for key in keys],
                "in_force": proposal is None,
                "missing": missing(proposal),
            }
        )
        return
    for uri in made:
        say(f"key {uri}")
    if proposal is None:
        say(f"{role}: in force in {directory}")
        note(f"devices hear of it after: driftseed publish {directory} --via ...")
        return
    say(f"the new root {proposal.root.version} waits for signatures:")
    for one in proposal.status():
        if one.wanting:
            say(f"  {one.of}: {one.wanting} more of {', '.join(key[:16] for key in one.missing)}")
    note(f"with the keys here: driftseed root sign {directory} --key FILE")
    note(
        f"on another machine: driftseed root export {directory} FILE, then there: driftseed root sign FILE --key KEY"
    )


def missing(proposal: Proposal | None) -> list[dict[str, object]]:
    """What a root still waits for, for programs."""
    if proposal is None:
        return []
    return [
        {"of": one.of, "wanting": one.wanting, "signed": list(one.signed), "missing": list(one.missing)}
        for one in proposal.status()
    ]


def _open(directory: Path) -> FleetKeys:
    from driftseed.cli.fleetdir import open_keys

    return open_keys(directory)


def _named(fleet: FleetKeys, texts: Sequence[str] | None) -> list[NamedKey]:
    from driftseed.trust.keyring import name_key

    return [name_key(text, fleet.passphrase) for text in texts or ()]
