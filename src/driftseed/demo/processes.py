"""The processes that the demo starts, each ended by its own id, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from driftseed.core import limits

_GRACE_S: Final = 2 * limits.SHUTDOWN_S
"""Seconds for a clean end, after which it is killed: twice the promise, as all end at once here."""
TAIL_LINES: Final = 15


@dataclass(slots=True, eq=False)
class Child:
    """One process."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    wanted: bool = field(default=True)
    """It has not been told to end."""

    @property
    def died(self) -> bool:
        """It ended and nobody wanted that."""
        return self.wanted and self.process.returncode is not None

    async def line(self, timeout_s: float) -> str:
        """The next line that it writes on its standard output; empty at the end. Raises TimeoutError."""
        if self.process.stdout is None:
            return ""
        async with asyncio.timeout(timeout_s):
            return (await self.process.stdout.readline()).decode(errors="replace").strip()


class Processes:
    """Starts and ends them.

    Args:
        logs: directory for what they write on standard error, one file for each name.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []

    async def start(self, name: str, *arguments: str, read: bool = False) -> Child:
        """Start ``python -m ...`` in a session of its own, so that a Ctrl-C reaches it through us only.

        Args:
            name: of its log.
            arguments: for the interpreter.
            read: its standard output is for ``Child.line``; otherwise it goes to the log.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if read else file,
                stderr=file,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    async def stop(self, child: Child) -> int:
        """Ask a process to end; returns its exit status, negative when it had to be killed."""
        child.wanted = False
        with contextlib.suppress(ProcessLookupError):
            child.process.terminate()
        try:
            async with asyncio.timeout(_GRACE_S):
                return await child.process.wait()
        except TimeoutError:
            return await self.kill(child)

    async def kill(self, child: Child) -> int:
        """SIGKILL, and wait."""
        child.wanted = False
        with contextlib.suppress(ProcessLookupError):
            child.process.kill()
        return await child.process.wait()

    def died(self) -> list[Child]:
        """Processes that ended by themselves."""
        return [child for child in self._children if child.died]

    async def close(self) -> list[str]:
        """End all; returns what did not end cleanly, in words."""
        running = [child for child in self._children if child.process.returncode is None]
        statuses = await asyncio.gather(*(self.stop(child) for child in running))
        return [
            f"{child.name} ended with status {status} when asked to stop"
            for child, status in zip(running, statuses, strict=True)
            if status != 0
        ]


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
