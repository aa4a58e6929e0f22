# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed bench``: what the parts can do on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from driftseed.cli.options import JsonOption


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Which to run; nothing runs them all.")
    ] = None,
    *,
    json_output: JsonOption = False,
) -> None:
    """Measure throughput, swarms, notices and idle cost on this machine, with the method of each."""
    from driftseed.bench.main import run

    raise typer.Exit(run(names=tuple(names or ()), json_output=json_output))
