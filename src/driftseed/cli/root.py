# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed root``: several people sign the next root, one after the other, on different machines, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftseed.cli.options import FleetDirectory, JsonOption
from driftseed.cli.passphrase import Passphrases

if TYPE_CHECKING:
    from driftseed.trust.keyring import NamedKey
    from driftseed.trust.proposal import Proposal

app = typer.Typer(help="Sign the next root, together.", no_args_is_help=True)

WhereArgument = Annotated[
    Path, typer.Argument(metavar="DIR|FILE", help="A fleet's directory, or a file from 'root export'.")
]
KeyOption = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="KEY", help="A root key: a file, or a URI such as hsm:2. Repeat it."),
]


@app.command()
def sign(where: WhereArgument, *, key: KeyOption = None, json_output: JsonOption = False) -> None:
    """Sign the next root with your key, after reading what it changes."""
    from driftseed.cli.output import say
    from driftseed.core.errors import Misuse

    if not key:
        raise Misuse("with which key?", hint="--key FILE")
    keys = _keys(key)
    if where.is_dir():
        from driftseed.cli.fleetdir import open_keys

        fleet = open_keys(where)
        proposal = fleet.proposal()
        if not json_output:
            _say_changes(proposal)
        left = fleet.sign_proposal(keys)
        _show(left or proposal, in_force=left is None, json_output=json_output)
        return
    from driftseed.store.files import atomic_write
    from driftseed.trust.keyring import signer_of

    proposal = _read(where)
    if not json_output:
        _say_changes(proposal)
    for named in keys:
        proposal.sign(signer_of(named, Passphrases()))
    atomic_write(where, proposal.encode())
    if not json_output:
        say(f"signed {where}: hand it to the next, or back to: driftseed root import DIR {where}")
    _show(proposal, in_force=False, json_output=json_output)


@app.command()
def status(where: WhereArgument, *, json_output: JsonOption = False) -> None:
    """Show what the next root changes, who has signed it, and who is missing. Needs no key."""
    proposal = _find(where)
    if not json_output:
        _say_changes(proposal)
    _show(proposal, in_force=False, json_output=json_output)


@app.command()
def export(
    directory: FleetDirectory,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; must not exist.")],
    *,
    json_output: JsonOption = False,
) -> None:
    """Write the next root to a file, to be signed on other machines. It holds no secret."""
    from driftseed.cli.output import note, print_json, say
    from driftseed.core.errors import WouldOverwrite
    from driftseed.store.files import atomic_write

    if file.exists():
        raise WouldOverwrite(f"there is {file} already", hint="choose another name, or remove it first")
    proposal = _find(directory)
    atomic_write(file, proposal.encode())
    if json_output:
        print_json({"file": str(file), "root": proposal.root.version})
        return
    say(f"wrote {file}")
    note(f"each signer, in any order: driftseed root sign {file.name} --key KEY")


@app.command("import")
def import_(
    directory: FleetDirectory,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What came back, signed.")],
    *,
    json_output: JsonOption = False,
) -> None:
    """Take over signatures; when none is missing any more, the new root is in force."""
    from driftseed.cli.fleetdir import open_keys
    from driftseed.cli.output import say

    fleet = open_keys(directory)
    before = fleet.proposal()
    new, left = fleet.import_proposal(_read(file))
    if not json_output:
        say(f"{new} new signatures")
    _show(left or before, in_force=left is None, json_output=json_output)


@app.command()
def cancel(directory: FleetDirectory, *, json_output: JsonOption = False) -> None:
    """Give the next root up; the one in force stays."""
    from driftseed.cli.fleetdir import open_keys
    from driftseed.cli.output import print_json, say

    open_keys(directory).cancel_proposal()
    if json_output:
        print_json({"cancelled": True})
        return
    say("given up; nothing was changed")


def _find(where: Path) -> Proposal:
    if where.is_dir():
        from driftseed.cli.fleetdir import open_keys

        return open_keys(where).proposal()
    return _read(where)


def _read(file: Path) -> Proposal:
    from driftseed.core.errors import NotFound
    from driftseed.trust.proposal import Proposal

    if not file.is_file():
        raise NotFound(f"there is no file {file}", hint="driftseed root export DIR FILE makes one")
    return Proposal.decode(file.read_bytes())


def _keys(texts: list[str]) -> list[NamedKey]:
    from driftseed.trust.keyring import name_key

    return [name_key(text, Passphrases()) for text in texts]


def _say_changes(proposal: Proposal) -> None:
    from driftseed.cli.output import say

    say(f"root {proposal.root.version} of fleet {proposal.name!r} ({proposal.fleet[:16]}):")
    for words in proposal.changes():
        say(f"  {words}")


def _show(proposal: Proposal, *, in_force: bool, json_output: bool) -> None:
    from driftseed.cli.key import missing
    from driftseed.cli.output import print_json, say

    if json_output:
        print_json(
            {
                "root": proposal.root.version,
                "changes": proposal.changes(),
                "in_force": in_force,
                "complete": in_force or proposal.complete,
                "missing": [] if in_force else missing(proposal),
            }
        )
        return
    if in_force:
        say(f"root {proposal.root.version} is in force")
        return
    for one in proposal.status():
        done = ", ".join(key[:16] for key in one.signed) or "nobody"
        say(f"{one.of}: {len(one.signed)} of {one.threshold} have signed ({done})")
        if one.wanting:
            say(f"  missing: {one.wanting} of {', '.join(key[:16] for key in one.missing)}")
