"""Options and arguments that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from driftseed.logs import LogFormat, LogLevel

DATA_DEFAULT: Final = Path("/var/lib/driftseed")
"""The agent's data directory where neither ``--data`` nor ``DRIFTSEED_DATA`` says otherwise."""

FleetDirectory = Annotated[
    Path, typer.Argument(metavar="DIR", help="The fleet's directory, made by 'driftseed fleet init'.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
DataOption = Annotated[
    Path, typer.Option("--data", envvar="DRIFTSEED_DATA", metavar="DIR", help="The agent's data directory.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check and show everything, change nothing.")]
LogFormatOption = Annotated[LogFormat, typer.Option("--log-format", help="For whom the log is written.")]
LogFileOption = Annotated[
    Path | None,
    typer.Option("--log-file", metavar="PATH", help="Log here, rotated, instead of to standard error."),
]
LogLevelOption = Annotated[LogLevel, typer.Option("--log-level", help="The least important record to write.")]
