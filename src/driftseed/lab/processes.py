"""Processes in the laboratory: each in the namespace of its device, its log at hand when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from driftseed.core.errors import LabFailed
from driftseed.lab.netns import Namespace

HOME: Final = Path("/run/lab")
"""Where everything is that the laboratory writes: in memory, and gone with it."""
START_S: Final = 60.0
"""Seconds in which a process must be ready; many start at once, on few cores."""
STOP_S: Final = 15.0
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
_LOG_CHARS: Final = 3000


@dataclass(slots=True, eq=False)
class Child:
    """A running process.

    Args:
        name: of its log.
        process: started by us.
        log: what it wrote on standard error.
    """

    name: str
    process: Process
    log: Path

    async def line(self, timeout_s: float) -> str:
        """The next line of its standard output.

        Raises:
            LabFailed: it ended, or wrote none in time.
        """
        if self.process.stdout is None:
            raise RuntimeError("a process without a pipe has no lines")
        try:
            async with asyncio.timeout(timeout_s):
                data = await self.process.stdout.readline()
        except TimeoutError:
            raise self.failure(f"said nothing for {timeout_s:g} s") from None
        if not data:
            raise self.failure("ended")
        return data.decode(errors="replace").strip()

    async def answer(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send it a line of JSON and read one.

        Raises:
            LabFailed: it ended, does not answer in time, or says that it failed.
        """
        if self.process.stdin is None:
            raise RuntimeError("a process without a pipe cannot be asked")
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            await self.process.stdin.drain()
        except ConnectionError:
            raise self.failure("ended") from None
        answer: dict[str, Any] = json.loads(await self.line(timeout_s))
        if "failed" in answer:
            raise LabFailed(f"{self.name}: {answer['failed']}")
        return answer

    async def stop(self) -> None:
        """End it as a service manager would."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await self.process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """Have it end without a word, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    def failure(self, what: str) -> LabFailed:
        """An error that shows the end of its log."""
        said = self.log.read_text(errors="replace")[-_LOG_CHARS:]
        return LabFailed(f"{self.name} {what}", hint=f"the end of its log:\n{said}")


class Processes:
    """Starts processes of our own package, and ends them all."""

    def __init__(self) -> None:
        HOME.mkdir(exist_ok=True)
        self._children: list[Child] = []

    async def start(self, name: str, namespace: Namespace, arguments: Sequence[str]) -> Child:
        """Run ``python ARGUMENTS`` in a namespace, with pipes to its standard input and output."""
        log = HOME / f"{name}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *namespace.command([sys.executable, *arguments]),
                stdin=PIPE,
                stdout=PIPE,
                stderr=file,
                limit=LINE_BYTES_MAX,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    async def close(self) -> None:
        """End all."""
        await asyncio.gather(*(child.stop() for child in self._children))
