"""Runs the demo: signals, cleaning up, and what is printed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.text import Text

from driftseed.core.errors import DriftseedError
from driftseed.demo import payload
from driftseed.demo.machines import Connect
from driftseed.demo.processes import Processes, tail
from driftseed.demo.result import Result, render
from driftseed.demo.show import Show, choose_show, open_console
from driftseed.demo.stage import Stage, WentWrong
from driftseed.demo.story import ATTACKS, Story
from driftseed.demo.workspace import Workspace

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BY_SIGNAL: Final = 128
"""An exit code above this: ended by the signal of that number, as shells have it."""
_LOGS_SHOWN: Final = 3


def run(*, devices: int, keep: Path | None, json_output: bool, connect: Connect) -> int:
    """Run the demo and print what came of it.

    Args:
        devices: agents to start, 2 to 64.
        keep: where to leave everything; None removes it.
        json_output: one JSON object on standard output, everything else on standard error.
        connect: gives the API behind an agent's Unix socket.

    Returns:
        0 when everything was as it must be, 1 when not, 128 and its number after a signal.

    Raises:
        WouldOverwrite, DeviceError: ``keep`` cannot be used.
    """
    # Of the parts that run in this process (joining, publishing) only what goes wrong is of interest.
    logging.getLogger("driftseed").setLevel(logging.ERROR)
    workspace = Workspace(keep)
    result = Result()
    stream = sys.stderr if json_output else sys.stdout
    try:
        code = asyncio.run(_run(workspace, result, devices, choose_show(stream), connect))
        console = open_console(stream)
        if not json_output:
            render(result, console)
        if not result.ok:
            _show_logs(workspace, result, open_console(sys.stderr))
        if workspace.kept:
            console.print(Text(_how_to_look(workspace)), soft_wrap=True)
    finally:
        workspace.close()
    if json_output:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
        sys.stdout.flush()
    return code


async def _run(workspace: Workspace, result: Result, count: int, show: Show, connect: Connect) -> int:
    began = time.monotonic()
    processes = Processes(workspace.logs)
    code = 1
    with _until_signalled() as signalled, show:
        try:
            await Story(Stage(workspace, processes, show, result, connect, count)).run()
            result.judge(payload.NEXT, [reason for _, reason in ATTACKS])
        except (WentWrong, DriftseedError) as error:
            result.problems.append(str(error))
        except asyncio.CancelledError:
            number = signalled()
            if number is None:
                raise
            result.problems.append(f"ended by {number.name}")
            code = _BY_SIGNAL + number
        finally:
            show.say("ending all processes")
            ended = time.monotonic()
            result.problems.extend(await processes.close())
            result.phases["end"] = round(time.monotonic() - ended, 2)
    # What comes after the judgement: processes that did not end cleanly.
    result.ok = result.ok and not result.problems
    result.seconds = round(time.monotonic() - began, 2)
    return 0 if result.ok else code


@contextlib.contextmanager
def _until_signalled() -> Iterator[Callable[[], signal.Signals | None]]:
    """Cancel the current task once at the first signal; later ones change nothing, as it is ending already."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    seen: list[signal.Signals] = []

    def came(number: signal.Signals) -> None:
        seen.append(number)
        if len(seen) == 1 and task is not None:
            task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, came, number)
    try:
        yield lambda: seen[0] if seen else None
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _show_logs(workspace: Workspace, result: Result, console: Console) -> None:
    """The ends of the logs of those that the problems name, or of the hub's."""
    problems = " ".join(result.problems)
    logs = sorted(workspace.logs.glob("*.log"))
    named = [log for log in logs if log.stem in problems] or [log for log in logs if log.stem == "hub"]
    for log in named[:_LOGS_SHOWN]:
        console.print(Text(f"--- the end of {log.name}\n{tail(log)}"), soft_wrap=True)


def _how_to_look(workspace: Workspace) -> str:
    where = workspace.directory
    lines = [
        f"everything is left in {where}:",
        "  logs/                                   what each process said",
        f"  devices/NN/installed/{payload.RELEASE}/   current and previous version of a device",
        f"  driftseed fleet show {where}/fleet",
        f"  driftseed agent run --data {where}/devices/01 --listen 127.0.0.1:0 --inventory arch=arm64",
        f"  driftseed agent updates --data {where}/devices/01   (while that runs)",
        f"  driftseed hub run --kit {where}/hub.kit --data {where}/hub --listen 127.0.0.1:0",
    ]
    if workspace.linked:
        lines.append("  (this path is too long for a socket: make a link with a short name and use that)")
    return "\n".join(lines)
