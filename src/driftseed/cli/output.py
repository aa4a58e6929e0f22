# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""What commands print: JSON for programs on standard output, words and tables for people.

Names, reasons and inventories come from devices, so nothing of them reaches a terminal before its control
characters are made visible: a device must not be able to rewrite an operator's screen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from driftseed.core.apierrors import error_object
from driftseed.core.errors import DriftseedError


def print_json(value: Mapping[str, Any]) -> None:
    """Print one object on standard output; ASCII only, so no byte of it can steer a terminal."""
    typer.echo(json.dumps(value, indent=2, default=str))


def say(text: str) -> None:
    """Print the result of a command on standard output, for people."""
    typer.echo(visible(text))


def note(text: str) -> None:
    """Print what goes beside the result on standard error, so that the result can be piped."""
    typer.echo(visible(text), err=True)


def visible(text: str) -> str:
    r"""Escape control characters other than newlines: ESC becomes ``\x1b``, in letters."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def print_error(error: DriftseedError, *, as_json: bool) -> None:
    """Say what went wrong and what to do about it: one object on stdout, or two lines on stderr."""
    if as_json:
        print_json(error_object(error))
        return
    note(f"error: {error.message}")
    if error.hint:
        note(f"hint: {error.hint}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table. Cells fold instead of being cut off, as a cut-off reason helps nobody.

    Args:
        columns: headings.
        rows: cells, as many in each row as there are columns.
        right: headings of columns of figures.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in right else "left")
    for row in rows:
        # Text, not str: a device's "[red]" is what it says, not markup.
        table.add_row(*(Text(visible(cell)) for cell in row))
    # A pipe has no width; 80 columns would fold what the reader of a pipe wants on one line.
    console = Console() if sys.stdout.isatty() else Console(width=240)
    console.print(table)


class Bar:
    """A bar over bytes. This one is for where there is no terminal, and shows nothing."""

    def advance(self, what: str, count: int) -> None:
        """So many bytes more are done."""

    def show(self, done: int, total: int, what: str) -> None:
        """So many bytes of so many are done."""


@contextmanager
def progress_bar(total: int = 0) -> Iterator[Bar]:
    """A bar on standard error, shown only where that is a terminal.

    Args:
        total: bytes expected in all; 0 when not known.
    """
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=total or None)

        class Shown(Bar):
            def advance(self, what: str, count: int) -> None:
                progress.update(task, description=escape(visible(what)), advance=count)

            def show(self, done: int, total: int, what: str) -> None:
                progress.update(task, description=escape(visible(what)), completed=done, total=total)

        yield Shown()


def human_bytes(count: float) -> str:
    """``12.3 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def human_seconds(seconds: float | None) -> str:
    """``8s``, ``5m``, ``3h``, ``12d``; a dash when it is not known."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def short(identifier: str) -> str:
    """The first ten characters of a key or digest: enough to tell a fleet's devices apart."""
    return identifier[:10]
