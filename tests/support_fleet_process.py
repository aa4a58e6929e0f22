"""An agent as a process of its own, started as an operator starts it, and killed as power cuts do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from driftseed.cli.client import Client
from driftseed.core.errors import AgentUnreachable
from support_fleet import until


class AgentProcess:
    """``driftseed agent run``.

    Args:
        data: a member's data directory.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self._process: asyncio.subprocess.Process | None = None
        self.log = b""

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        return self.process.pid

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The one that runs, or ran last."""
        if self._process is None:
            raise AssertionError("not started")
        return self._process

    @property
    def api(self) -> Client:
        """Its local API."""
        return Client(self.data / "agent.sock", "agent")

    async def start(self, *options: str, environment: Mapping[str, str] | None = None) -> None:
        """Start it; it need not be ready when this returns."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "driftseed",
            "agent",
            "run",
            "--data",
            str(self.data),
            "--listen",
            "127.0.0.1:0",
            *options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )

    async def ready(self) -> None:
        """Wait until its API answers."""

        async def answers() -> bool:
            try:
                await asyncio.to_thread(self.api.get, "/v1/status")
            except AgentUnreachable:
                return False
            return True

        await until(answers, "the agent's API answers")

    async def kill(self) -> None:
        """SIGKILL, as the power going; what it had started dies or is killed by its own guards."""
        self.process.kill()
        await self.ended()

    async def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self, timeout_s: float = 30.0) -> int:
        """Wait for its end; returns the exit status."""
        async with asyncio.timeout(timeout_s):
            _, self.log = await self.process.communicate()
        return await self.process.wait()


@contextlib.asynccontextmanager
async def agent_process(data: Path) -> AsyncIterator[AgentProcess]:
    """An agent that is not yet started, and is gone at the end."""
    agent = AgentProcess(data)
    try:
        yield agent
    finally:
        if agent._process is not None and agent._process.returncode is None:
            await agent.kill()


async def run_driftseed(*arguments: str, timeout_s: float = 30.0) -> tuple[int, str]:
    """Run a command; returns its exit status, and what it said on standard error without colours."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "driftseed",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "400"},
    )
    async with asyncio.timeout(timeout_s):
        _, said = await process.communicate()
    status = await process.wait()
    return status, re.sub(r"\s+", " ", said.decode())


def alive(pid: int) -> bool:
    """Whether a process runs; one that was killed and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
