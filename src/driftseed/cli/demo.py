# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed demo``: the whole way of an update, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driftseed.cli.options import JsonOption


def demo(
    *,
    devices: Annotated[int, typer.Option("--devices", min=2, max=64, help="Agents to start.")] = 8,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Leave everything here, to look at afterwards."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Start a hub and some agents here, update them, and try to fool them."""
    from driftseed.cli.client import Client
    from driftseed.demo.main import run

    def connect(socket: Path) -> Client:
        return Client(socket, "agent")

    raise typer.Exit(run(devices=devices, keep=keep, json_output=json_output, connect=connect))
