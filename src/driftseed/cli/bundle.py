# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed bundle``: releases as one file, for devices that no network reaches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftseed.cli.options import DATA_DEFAULT, DataOption, DryRunOption, JsonOption
from driftseed.core.errors import NotFound

if TYPE_CHECKING:
    from driftseed.cli.output import Bar
    from driftseed.core.model import Artifact
    from driftseed.publish.bundle import BundleResult

app = typer.Typer(help="Carry releases on a stick: metadata and content as one file.", no_args_is_help=True)


@app.command("export")
def export_bundle(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A fleet's directory, or the data directory of a device or hub."),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle to write.")],
    *,
    release: Annotated[
        list[str] | None,
        typer.Option(
            "--release", metavar="NAME[=VERSION]", help="Only these; otherwise all that is deployed."
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write the signed metadata, and the content of what is deployed, into one file."""
    import tempfile

    from driftseed.cli.fleetdir import open_fleet
    from driftseed.cli.output import progress_bar
    from driftseed.core.ids import Digest
    from driftseed.node.home import MEMBERSHIP_FILE, Home
    from driftseed.publish import bundle
    from driftseed.trust.device import FleetTrust
    from driftseed.trust.source import FilesSource

    with tempfile.TemporaryDirectory(prefix="driftseed-bundle-") as scratch:
        if (directory / MEMBERSHIP_FILE).exists():
            record = Home(directory).member()
            trust = FleetTrust(directory / "trust", record.root, time.time)
            name, kept = record.name, {each: trust.serve(each) for each in trust.names()}
            files = {each: data for each, data in kept.items() if data is not None}
            fleet = trust.load()

            def content(artifact: Artifact) -> Path:
                return directory / "content" / Digest(artifact.sha256)
        else:
            repository = open_fleet(directory)
            name, files = repository.name, repository.files()
            device = FleetTrust(Path(scratch), repository.first_root, time.time)
            fleet, content = device.refresh(FilesSource(files.get)), repository.content
        if fleet is None:
            raise NotFound(f"{directory} has no metadata yet", hint="it comes with the first link to anyone")
        with bundle.written(file) as output, progress_bar() as bar:
            result = bundle.export(
                output,
                name=name,
                files=files,
                fleet=fleet,
                content=content,
                releases=release or (),
                progress=bar.show,
            )
    _show(result, json_output=json_output, verb="exported")


@app.command("import")
def import_bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")],
    *,
    data: DataOption = DATA_DEFAULT,
    socket: Annotated[
        Path | None,
        typer.Option("--socket", metavar="PATH", help="The agent's socket, if not DIR/agent.sock."),
    ] = None,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
) -> None:
    """Verify a bundle like any other source, and give it to the agent, which tells its neighbours."""
    from driftseed.cli.output import progress_bar

    with progress_bar() as bar:
        result = _import(file, data, socket, dry_run=dry_run, bar=bar)
    _show(result, json_output=json_output, verb="verified" if dry_run else "imported")


def _import(file: Path, data: Path, socket: Path | None, *, dry_run: bool, bar: Bar) -> BundleResult:
    """Through the running agent, or into the directory of one that does not run."""
    from driftseed.cli.client import AGENT_SOCKET, agent_client
    from driftseed.core.errors import AgentUnreachable
    from driftseed.node.home import Home
    from driftseed.publish.bundle import Taker, take
    from driftseed.publish.bundle_takers import RunningAgent, resting_agent

    with file.open("rb") as bundle:
        size = file.stat().st_size

        def hand_to(taker: Taker) -> BundleResult:
            return take(bundle, taker, size=size, dry_run=dry_run, progress=bar.show, clock=time.time)

        if socket is not None or (data / AGENT_SOCKET).exists():
            try:
                running = RunningAgent(agent_client(data, socket))
            except AgentUnreachable:
                # A socket that a killed agent left behind; but one that was named must answer.
                if socket is not None:
                    raise
            else:
                return hand_to(running)
        with resting_agent(Home(data), time.time) as resting:
            return hand_to(resting)


def _show(result: BundleResult, *, json_output: bool, verb: str) -> None:
    import msgspec

    from driftseed.cli.output import human_bytes, note, print_json, say

    if json_output:
        print_json(msgspec.to_builtins(result))
        return
    say(
        f"{verb}: timestamp {result.timestamp_version}, {result.files} files of metadata, "
        f"{len(result.contents)} contents of {human_bytes(result.content_bytes)}"
    )
    if result.missing:
        note(f"not in the bundle: {len(result.missing)} contents of other releases in force")
