"""The ``driftseed`` command: its groups of commands, and what becomes of their errors.

Modules of a command are imported when it runs: ``--help`` must not wait for the engines, and an agent must
not carry what only operators use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from driftseed import __version__
from driftseed.cli import (
    agent,
    bench,
    bundle,
    demo,
    deploy,
    device,
    doctor,
    fleet,
    hub,
    key,
    lab,
    publish,
    release,
    root,
    status,
    tuf,
)
from driftseed.cli.output import print_error
from driftseed.core.errors import DeviceError, DriftseedError, Misuse

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""

# Typer's usage errors share a base class that it does not export, and that moved between its versions.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="driftseed",
    help="Secure peer-to-peer updates for fleets of edge devices that nobody can dial.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Usage(Misuse):
    """The command line itself is wrong; 2 is what every command gives for that."""

    exit_code = 2
    reason = "usage"


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - Typer's signature of a callback
    if wanted:
        typer.echo(f"driftseed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Secure peer-to-peer updates for fleets of edge devices that nobody can dial."""


app.add_typer(fleet.app, name="fleet")
app.add_typer(key.app, name="key")
app.add_typer(root.app, name="root")
app.add_typer(device.app, name="device")
app.add_typer(tuf.app, name="tuf")
app.add_typer(release.app, name="release")
app.command("deploy")(deploy.deploy)
app.command("publish")(publish.publish)
app.add_typer(bundle.app, name="bundle")
app.add_typer(hub.app, name="hub")
app.add_typer(lab.app, name="lab")
app.add_typer(agent.app, name="agent")
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("devices")(status.devices)
app.command("deployments")(status.deployments)
app.command("demo")(demo.demo)
app.command("bench")(bench.bench)


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: what comes after ``driftseed``.

    Returns:
        The exit code: 0, or the ``exit_code`` of the error, which was printed.
    """
    before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in before_dashes
    try:
        return _call(list(arguments), as_json=as_json)
    except DriftseedError as error:
        print_error(error, as_json=as_json)
        return error.exit_code
    except typer.Abort:
        print_error(Misuse("the input ended before it was complete", hint="try again"), as_json=as_json)
        return Misuse.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough (`driftseed devices | head`). Python would complain once
        # more when it flushes at exit: https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # What the system refuses (permissions, a file where a directory should be) is no fault of the program.
        where = f"{error.filename}: " if error.filename is not None else ""
        refused = DeviceError(
            f"{where}{error.strerror or error}", hint="check the path and this user's rights to it"
        )
        print_error(refused, as_json=as_json)
        return refused.exit_code


def _call(arguments: list[str], *, as_json: bool) -> int:
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="driftseed", standalone_mode=False)
        sys.stdout.flush()
    except _UsageError as error:
        if as_json:
            raise Usage(error.format_message(), hint="driftseed --help") from None
        error.show()
        return Usage.exit_code
    # Typer hands back the code of an Exit, and None from a command that came to its end.
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the ``driftseed`` script."""
    sys.exit(run(sys.argv[1:]))
