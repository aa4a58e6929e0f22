# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed release``: artifacts under a name and version, each with the devices it is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftseed.cli.options import DryRunOption, FleetDirectory, JsonOption
from driftseed.cli.values import parse_duration, parse_pairs
from driftseed.core import limits

if TYPE_CHECKING:
    from driftseed.core.ids import Digest
    from driftseed.core.model import ReleaseManifest

app = typer.Typer(help="Make releases, and look at them.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the release.")]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="Its version.")]

SECONDS_MAX = 86400
"""Seconds that a module or a health check may take: a day (as in the signed manifest)."""


@app.command()
def create(
    directory: FleetDirectory,
    name: NameArgument,
    version: VersionArgument,
    *,
    artifact: Annotated[
        list[str],
        typer.Option(
            "--artifact", metavar="FILE[:SELECTOR]", help="A file or URL, and its devices. Repeat it."
        ),
    ],
    module: Annotated[str, typer.Option("--module", metavar="NAME", help="Update module that installs it.")],
    health_check: Annotated[
        str | None, typer.Option("--health-check", metavar="CMD", help="Exit status 0 says that all is well.")
    ] = None,
    health_timeout: Annotated[
        str, typer.Option("--health-timeout", metavar="DURATION", help="Time that the health check has.")
    ] = f"{limits.HEALTH_TIMEOUT_S:.0f}s",
    module_timeout: Annotated[
        str,
        typer.Option("--module-timeout", metavar="DURATION", help="Time that the module has for a state."),
    ] = f"{limits.MODULE_TIMEOUT_S:.0f}s",
    meta: Annotated[
        list[str] | None, typer.Option("--meta", metavar="K=V", help="Handed to the module. Repeat it.")
    ] = None,
    meta_file: Annotated[
        Path | None, typer.Option("--meta-file", metavar="JSON", help="A JSON object, handed to the module.")
    ] = None,
    piece_length: Annotated[
        int | None,
        typer.Option("--piece-length", metavar="BYTES", help="Of BitTorrent's pieces: a power of two."),
    ] = None,
    allow_unknown_key: Annotated[
        bool,
        typer.Option("--allow-unknown-key", help="Accept selector keys that no ticket of this fleet gave."),
    ] = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
) -> None:
    """Check the files, make torrents of them, and sign them as a release."""
    import tempfile
    from datetime import UTC, datetime

    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import note, print_json, progress_bar, say
    from driftseed.core.ids import parse_safe_name
    from driftseed.publish import release as making
    from driftseed.publish.artifacts import split_artifact, total_length

    request = making.ReleaseRequest(
        name=parse_safe_name(name, "release name"),
        version=parse_safe_name(version, "version"),
        module=parse_safe_name(module, "module name"),
        artifacts=[split_artifact(text) for text in artifact],
        health=making.parse_health_check(health_check, parse_duration(health_timeout, most=SECONDS_MAX)),
        module_timeout_s=parse_duration(module_timeout, most=SECONDS_MAX),
        meta=making.read_meta(parse_pairs(meta or (), "meta"), meta_file),
        piece_length=piece_length,
    )
    repository = open_fleet(directory)
    making.check_new(repository.releases(), request.name, request.version)
    if not dry_run:
        # A wrong passphrase should be heard of before gigabytes are read.
        repository.private_key("releases")
    with tempfile.TemporaryDirectory(prefix="driftseed-") as scratch:
        with progress_bar(total_length(request.artifacts)) as bar:
            plan = making.plan_release(
                request,
                keys=None if allow_unknown_key else making.known_keys(repository.labels),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                scratch=Path(scratch),
                progress=bar.advance,
            )
        if not json_output:
            _print_variants(plan.manifest)
        if not dry_run:
            repository.add_release(
                plan.manifest, {sha256: (file.path, file.torrent) for sha256, file in plan.files.items()}
            )
    digest = making.manifest_digest(plan.manifest)
    if json_output:
        print_json({"dry_run": dry_run, **_release_object(plan.manifest, digest)})
    elif dry_run:
        say("a dry run: nothing was signed")
    else:
        say(f"release {name} {version} is signed: manifest {digest}")
        note(
            f"devices get it after: driftseed deploy {directory} {name} --to SELECTOR, then driftseed publish"
        )


@app.command("list")
def list_releases(directory: FleetDirectory, *, json_output: JsonOption = False) -> None:
    """List the releases, by name, the newest version first."""
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import human_bytes, print_json, print_table
    from driftseed.publish.release import newest_first

    found = newest_first(open_fleet(directory).releases())
    if json_output:
        print_json({"releases": [_release_object(one.manifest, one.digest) for one in found]})
        return
    print_table(
        ("RELEASE", "VERSION", "MODULE", "VARIANTS", "SIZE", "CREATED"),
        [
            [
                one.manifest.name,
                one.manifest.version,
                one.manifest.module,
                str(len(one.manifest.artifacts)),
                human_bytes(sum(artifact.length for artifact in one.manifest.artifacts)),
                one.manifest.created,
            ]
            for one in found
        ],
        right=("VARIANTS", "SIZE"),
    )


@app.command()
def show(
    directory: FleetDirectory,
    name: NameArgument,
    version: VersionArgument,
    *,
    json_output: JsonOption = False,
) -> None:
    """Show one release: its artifacts, and what a device does with it."""
    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import print_json, say
    from driftseed.publish.deploy import choose_release, parse_reference

    found = choose_release(open_fleet(directory).releases(), parse_reference(name, version))
    manifest = found.manifest
    if json_output:
        print_json(_release_object(manifest, found.digest))
        return
    say(f"{manifest.name} {manifest.version}, made {manifest.created}, manifest {found.digest}")
    say(f"installed by the module {manifest.module} within {manifest.module_timeout_s:g} s a state")
    if manifest.health is not None:
        say(
            f"well when {' '.join(manifest.health.command)!r} succeeds within {manifest.health.timeout_s:g} s"
        )
    _print_variants(manifest)


def _release_object(manifest: ReleaseManifest, digest: Digest) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(manifest), "manifest_sha256": digest}


def _print_variants(manifest: ReleaseManifest) -> None:
    from driftseed.cli.output import human_bytes, print_table, short

    print_table(
        ("FILE", "SIZE", "SHA-256", "FOR"),
        [
            [one.filename, human_bytes(one.length), short(one.sha256), one.selector or "all devices"]
            for one in manifest.artifacts
        ],
        right=("SIZE",),
    )
