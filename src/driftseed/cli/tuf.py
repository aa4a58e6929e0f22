# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed tuf``: the device's own updater as a plain TUF client over HTTP.

The command line is the one that theupdateframework/tuf-conformance drives (its CLIENT-CLI.md), which also asks for
exit code 1, and no other, when anything fails.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from driftseed.core.errors import DriftseedError
    from driftseed.trust.updater import TufClient

app = typer.Typer(
    help="A plain TUF client over HTTP: what devices run, for any TUF repository.", no_args_is_help=True
)

_FAILED: Final = 1
_DAY_S: Final = 86400.0


@dataclass(frozen=True)
class _Options:
    metadata_dir: Path
    metadata_url: str | None
    target_names: list[str]
    target_base_url: str | None
    target_dir: Path | None
    days_in_future: float


@app.callback()
def options(
    context: typer.Context,
    *,
    metadata_dir: Annotated[Path, typer.Option("--metadata-dir", metavar="D", help="The trusted metadata.")],
    metadata_url: Annotated[
        str | None, typer.Option("--metadata-url", metavar="U", help="Where the repository's metadata is.")
    ] = None,
    target_name: Annotated[
        list[str] | None, typer.Option("--target-name", metavar="T", help="Target to download. Repeat it.")
    ] = None,
    target_base_url: Annotated[
        str | None, typer.Option("--target-base-url", metavar="B", help="Where the repository's targets are.")
    ] = None,
    target_dir: Annotated[
        Path | None, typer.Option("--target-dir", metavar="X", help="Where targets are stored.")
    ] = None,
    days_in_future: Annotated[
        float, typer.Option("--days-in-future", metavar="N", help="Act as if it were N days later.")
    ] = 0.0,
) -> None:
    """A plain TUF client over HTTP: what devices run, for any TUF repository."""
    context.obj = _Options(
        metadata_dir, metadata_url, target_name or [], target_base_url, target_dir, days_in_future
    )


@app.command()
def init(
    context: typer.Context,
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="A root.json that is trusted.")],
) -> None:
    """Begin to trust a root. Asks the repository nothing."""
    from driftseed.core.errors import DriftseedError, NotFound

    given: _Options = context.obj
    try:
        if not root.is_file():
            raise NotFound(f"there is no file {root}")
        given.metadata_dir.mkdir(parents=True, exist_ok=True)
        _client(given, root.read_bytes())
    except DriftseedError as error:
        _fail(error)


@app.command()
def refresh(context: typer.Context) -> None:
    """Bring the trusted metadata up to date."""
    from driftseed.core.errors import DriftseedError

    try:
        _client(context.obj, _first_root(context.obj)).run()
    except DriftseedError as error:
        _fail(error)


@app.command()
def download(context: typer.Context) -> None:
    """Download targets, after a refresh; those that are there with the signed hashes are not asked for."""
    from driftseed.cli.output import say
    from driftseed.core.errors import DriftseedError, Misuse

    given: _Options = context.obj
    try:
        if not given.target_names or given.target_base_url is None or given.target_dir is None:
            raise Misuse(
                "which target, from where, to where?", hint="--target-name --target-base-url --target-dir"
            )
        client = _client(given, _first_root(given))
        client.run()
        for name in given.target_names:
            say(str(client.download(name, given.target_base_url, given.target_dir)))
    except DriftseedError as error:
        _fail(error)


def _first_root(given: _Options) -> bytes:
    """The root that ``init`` was given: the walk starts there every time, as on devices."""
    from driftseed.core.errors import NotFound

    history = given.metadata_dir / "root_history"
    versions = [
        int(path.name.split(".")[0]) for path in history.glob("*.root.json") if path.name[0].isdigit()
    ]
    if not versions:
        raise NotFound(f"no root is trusted in {given.metadata_dir}", hint="driftseed tuf ... init ROOT")
    return (history / f"{min(versions)}.root.json").read_bytes()


def _client(given: _Options, root: bytes) -> TufClient:
    from driftseed.core.errors import Misuse
    from driftseed.net.http_source import HttpSource
    from driftseed.trust.signing import instant
    from driftseed.trust.updater import TufClient

    if given.metadata_url is None and (given.target_names or given.target_dir):
        raise Misuse("where is the repository's metadata?", hint="--metadata-url U")
    now = instant(lambda: time.time() + given.days_in_future * _DAY_S)
    base = (given.metadata_url or "").rstrip("/")
    return TufClient(given.metadata_dir, base, root, HttpSource(), now)


def _fail(error: DriftseedError) -> None:
    from driftseed.cli.output import print_error

    print_error(error, as_json=False)
    raise typer.Exit(_FAILED)
