# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed deploy``: says which devices shall have which release."""

from __future__ import annotations

from typing import Annotated

import typer

from driftseed.cli.options import DryRunOption, FleetDirectory, JsonOption


def deploy(
    directory: FleetDirectory,
    release: Annotated[
        str,
        typer.Argument(metavar="RELEASE", help="NAME for its newest version, NAME@VERSION or NAME/VERSION."),
    ],
    *,
    to: Annotated[str, typer.Option("--to", metavar="SELECTOR", help="The devices; 'all' for every device.")],
    version: Annotated[
        str | None, typer.Option("--version", help="Which version, if not the newest.")
    ] = None,
    allow_downgrade: Annotated[
        bool, typer.Option("--allow-downgrade", help="Also on devices that have a newer version.")
    ] = False,
    allow_unknown_key: Annotated[
        bool,
        typer.Option("--allow-unknown-key", help="Accept selector keys that no ticket of this fleet gave."),
    ] = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
) -> None:
    """Sign a deployment: these devices shall have this release. Takes effect once it is published."""
    from uuid import uuid4

    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import note, print_json, say
    from driftseed.publish.deploy import choose_release, parse_audience, parse_reference
    from driftseed.publish.release import known_keys

    wanted = parse_reference(release, version)
    repository = open_fleet(directory)
    keys = None if allow_unknown_key else known_keys(repository.labels)
    selector = parse_audience(to, keys)
    chosen = choose_release(repository.releases(), wanted)
    manifest = chosen.manifest
    if not dry_run:
        # A wrong passphrase should be heard of before anything is promised.
        repository.private_key("deployments")
    superseded = [
        one for one in repository.deployments() if (one.release, one.selector) == (manifest.name, selector)
    ]
    what = {
        "dry_run": dry_run,
        "release": manifest.name,
        "version": manifest.version,
        "manifest_sha256": chosen.digest,
        "selector": selector,
        "allow_downgrade": allow_downgrade,
        "supersedes": [one.id for one in superseded],
    }
    if not json_output:
        say(
            f"{manifest.name} {manifest.version} for {f'devices with {selector}' if selector else 'every device'}"
        )
        for one in superseded:
            say(f"instead of {one.release} {one.version} (deployment {one.id})")
    if dry_run:
        if json_output:
            print_json(what)
        else:
            say("a dry run: nothing was signed")
        return
    deployment = repository.add_deployment(
        deployment_id=uuid4().hex,
        release=manifest.name,
        version=manifest.version,
        selector=selector,
        allow_downgrade=allow_downgrade,
    )
    if json_output:
        print_json({**what, "deployment": deployment.id, "sequence": deployment.sequence})
        return
    say(f"deployment {deployment.id} is signed, number {deployment.sequence}")
    note(f"devices hear of it after: driftseed publish {directory} --via TICKET-or-agent-socket")
