"""What a person sees meanwhile: a table that lives on a terminal, lines everywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from driftseed.demo.machines import Device, Update

_QUARTERS: Final = 4
_PIPE_COLUMNS: Final = 200
_BAR_COLUMNS: Final = 8
_LINES_LEFT: Final = 6
"""Of a terminal, for what is said above the table."""
_SOURCES: Final = ("hub", "publisher", "peer")
"""Where bytes come from: columns of megabytes."""
_STYLES: Final = {"succeeded": "green", "rolled-back": "yellow", "off": "dim", "failed": "red"}


class Show(Protocol):
    """Tells what happens; used as a context."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """End; the screen is as it was."""

    def say(self, text: str) -> None:
        """One thing happened."""

    def look(self, devices: Sequence[Device], deployment: str) -> None:
        """The devices were asked how they do."""


def choose_show(stream: TextIO) -> Show:
    """The one that fits where it is written."""
    console = open_console(stream)
    return _Screen(console) if console.is_terminal and not console.is_dumb_terminal else _Lines(console)


def open_console(stream: TextIO) -> Console:
    """As wide as the terminal; a pipe has no width, so it gets one into which every table fits."""
    return Console(file=stream, highlight=False, width=None if stream.isatty() else _PIPE_COLUMNS)


def _doing(device: Device, deployment: str) -> str:
    if not device.on:
        return "off"
    update = device.update(deployment)
    return "idle" if update.state == "unheard" else update.state


def _megabytes(update: Update, source: str) -> str:
    size = sum(size for key, size in update.bytes_from.items() if key.partition("/")[0] == source)
    return f"{size / 1e6:.1f}" if size else "-"


class _Clock:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._began:6.1f} s"


class _Lines:
    """A line for each thing that happens and for each step of each device."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = _Clock()
        self._told: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        return

    def say(self, text: str) -> None:
        self._console.print(Text(f"{self._clock}  {text}"))

    def look(self, devices: Sequence[Device], deployment: str) -> None:
        for device in devices:
            doing, update = _doing(device, deployment), device.update(deployment)
            if doing == "downloading":
                doing += f" {100 * int(update.progress * _QUARTERS) // _QUARTERS} %"
            if doing not in {"idle", self._told.get(device.name)}:
                self._told[device.name] = doing
                why = f" ({update.reason})" if update.reason else ""
                self.say(f"{device.name} {device.board:13} {device.arch}  {doing}{why}")


class _Screen:
    """A table of all devices below the lines of what happened."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = _Clock()
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(Text(f"{self._clock}  {text}"))

    def look(self, devices: Sequence[Device], deployment: str) -> None:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for column in ("device", "board", "arch", "has", "doing", ""):
            table.add_column(column, no_wrap=True)
        for column in _SOURCES:
            table.add_column(column, justify="right", no_wrap=True)
        room = max(1, self._console.height - _LINES_LEFT)
        for device in devices[:room]:
            doing, update = _doing(device, deployment), device.update(deployment)
            moving = doing not in {"idle", "off"}
            table.add_row(
                device.name,
                device.board,
                device.arch,
                device.version or "-",
                Text(doing, style=_STYLES.get(doing, "")),
                ProgressBar(total=1.0, completed=update.progress, width=_BAR_COLUMNS) if moving else "",
                *(_megabytes(update, source) for source in _SOURCES),
            )
        if len(devices) > room:
            table.add_row(Text(f"and {len(devices) - room} more", style="dim"))
        self._live.update(table)
