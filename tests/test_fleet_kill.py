"""``kill -9`` at every moment of an update: afterwards there is the old version or the new one, and no third."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import driftseed.install
from driftseed.agent.config import ConfigStore
from driftseed.core import limits
from driftseed.core.lifecycle import BY_STATE, TERMINAL, Phase, State
from driftseed.core.model import HealthCheck
from driftseed.core.updates import UpdateRow
from driftseed.hub.daemon import Hub
from driftseed.store.journal import Journal
from support_fleet import Fleet, fleet_in, until
from support_fleet_process import AgentProcess, agent_process, alive

GATED = """#!/bin/sh
{python} -I -S {run} single-file "$@" || exit $?
if [ "$(cat {gate} 2>/dev/null)" = "$1" ]; then
    echo $$ > {reached}.new
    mv {reached}.new {reached}
    exec sleep 1000
fi
"""
"""The module ``single-file``, which stops for good once it has done what the gate names."""


@dataclass
class Bench:
    """A hub, and an agent as a process of its own, whose module can be stopped at a gate."""

    fleet: Fleet
    hub: Hub
    agent: AgentProcess
    directory: Path

    @property
    def installed(self) -> bytes | None:
        """The installed file."""
        path = self.agent.data / "installed" / "app.bin"
        return path.read_bytes() if path.exists() else None

    @property
    def reached(self) -> Path:
        """There once something stands at the gate; its process id."""
        return self.directory / "reached"

    def close_gate(self, state: str) -> None:
        """Have the module stop after this state."""
        self.reached.unlink(missing_ok=True)
        (self.directory / "gate").write_text(state)

    def open_gate(self) -> None:
        (self.directory / "gate").unlink(missing_ok=True)

    def release(self, version: str, size: int = 200_000) -> tuple[str, bytes]:
        """Release and deploy random bytes, with a health check that can stop at the gate as well."""
        data = os.urandom(size)
        path = self.directory / f"app-{version}.bin"
        path.write_bytes(data)
        check = f'[ "$(cat {self.directory}/gate 2>/dev/null)" != Probe ] || {{ echo $$ > {self.reached}.new; mv {self.reached}.new {self.reached}; exec sleep 60; }}'
        deployment = self.fleet.release(
            "app",
            version,
            [str(path)],
            module="gated",
            meta={"path": "app.bin"},
            health=HealthCheck(command=["sh", "-c", check], timeout_s=60),
        )
        return deployment, data

    async def view(self, deployment: str) -> dict[str, Any]:
        """What the running agent says of an update."""
        updates = (await asyncio.to_thread(self.agent.api.get, "/v1/updates"))["updates"]
        return next((each for each in updates if each["deployment"] == deployment), {})

    async def ended(self, deployment: str) -> str:
        """Wait for the end of an update; returns how it ended."""
        state = ""

        async def over() -> bool:
            nonlocal state
            state = (await self.view(deployment)).get("state", "")
            return state in TERMINAL

        await until(over, f"{deployment} ended", 40.0, 0.1)
        return state

    def row(self, deployment: str) -> UpdateRow:
        """What the journal of the agent that does not run says: it must agree with itself."""
        journal = Journal(self.agent.data / "agent.sqlite")
        try:
            row = journal.update(deployment)
            assert row is not None
            history = journal.history(deployment)
            assert history[-1].next is row.state
            assert all(one.next is other.state for one, other in itertools.pairwise(history))
            return row
        finally:
            journal.close()


@contextlib.asynccontextmanager
async def bench(directory: Path, **config: object) -> AsyncIterator[Bench]:
    """Everything up, and version 1 installed."""
    modules = directory / "modules"
    modules.mkdir(mode=0o755)
    run = Path(driftseed.install.__path__[0]) / "modules" / "run.py"
    module = modules / "gated"
    module.write_text(
        GATED.format(python=sys.executable, run=run, gate=directory / "gate", reached=directory / "reached")
    )
    module.chmod(0o755)
    async with fleet_in(directory) as fleet:
        hub = await fleet.start_hub()
        home = await fleet.join("agent")
        ConfigStore(home.directory).change({"modules_dirs": [str(modules)], **config})
        async with agent_process(home.directory) as agent:
            made = Bench(fleet, hub, agent, directory)
            deployment, data = made.release("1.0", 1000)
            await fleet.publish()
            await agent.start()
            await agent.ready()
            assert await made.ended(deployment) == State.SUCCEEDED
            assert made.installed == data
            yield made


MOMENTS = [
    ("Download", State.STAGING, State.FAILED),
    ("ArtifactInstall", State.INSTALLING, State.ROLLED_BACK),
    ("Probe", State.PROBING, State.ROLLED_BACK),
    ("ArtifactCommit", State.COMMITTING, State.ROLLED_BACK),
    ("Cleanup", State.CLEANING, State.SUCCEEDED),
]


async def test_killed_while_installing_it_ends_in_the_old_version_or_the_new(short_path: Path) -> None:
    """In each state of the module: what was at work dies too, and the next start ends it as the table says."""
    async with bench(short_path) as made:
        current = made.installed
        for number, (gate, state, end) in enumerate(MOMENTS, start=2):
            made.close_gate(gate)
            deployment, data = made.release(f"{number}.0")
            await made.fleet.publish()
            await until(made.reached.exists, f"the module stands in {gate}", 40.0)
            module = int(made.reached.read_text())
            await made.agent.kill()
            assert made.row(deployment).state is state
            await until(lambda: not alive(module), "the module was killed with its agent")  # noqa: B023 - awaited in the loop
            made.open_gate()
            await made.agent.start()
            await made.agent.ready()
            assert await made.ended(deployment) == end, gate
            current = data if end is State.SUCCEEDED else current
            assert made.installed == current, gate
            view = await made.view(deployment)
            assert view["reason"] == ("" if end is State.SUCCEEDED else "interrupted"), gate
            left = sorted(path.name for path in (made.agent.data / "installed").iterdir())
            assert left == ["app.bin"], gate
            assert made.row(deployment).state is end
        assert await made.agent.terminate() == 0


async def test_killed_while_downloading_it_goes_on_from_where_it_was(short_path: Path) -> None:
    """Nothing that was verified is fetched again, and the engine does not outlive its agent."""
    size = 12 * limits.MIB
    async with bench(short_path, download_limit_bytes_s=4 * limits.MIB) as made:
        old = made.installed
        deployment, data = made.release("2.0", size)
        await made.fleet.publish()

        async def half() -> bool:
            return bool((await made.view(deployment)).get("progress", 0.0) > 0.4)

        await until(half, "half of it is here", 40.0, 0.05)
        status = await asyncio.to_thread(made.agent.api.get, "/v1/status")
        engine = status["engine"]["pid"]
        await made.agent.kill()
        row = made.row(deployment)
        assert row.state is State.DOWNLOADING
        assert BY_STATE[row.state].phase is Phase.FETCHING
        assert made.installed == old
        await until(lambda: not alive(engine), "the engine ended with its agent")
        await made.agent.start()
        await made.agent.ready()
        assert await made.ended(deployment) == State.SUCCEEDED
        assert made.installed == data
        view = await made.view(deployment)
        # 60 % were missing, and what was in the sockets' buffers was lost.
        after = sum(view["bytes_from"].values()) - sum(row.bytes_from.values())
        assert after < 0.75 * size, "what was here already was not fetched again"
        assert view["attempts"] == 1


@pytest.mark.parametrize("moment", ["downloading", "installing"])
async def test_sigterm_ends_it_cleanly_in_five_seconds_whatever_it_is_at(
    short_path: Path, moment: str
) -> None:
    """Exit status 0, nothing left running, and the update is taken up by the next start."""
    async with bench(short_path, download_limit_bytes_s=limits.MIB) as made:
        if moment == "installing":
            made.close_gate("ArtifactInstall")
        deployment, _ = made.release("2.0", 6 * limits.MIB if moment == "downloading" else 1000)
        await made.fleet.publish()

        async def there() -> bool:
            return (await made.view(deployment)).get("state") == moment

        await until(there, f"it is {moment}", 40.0, 0.05)
        if moment == "installing":
            await until(made.reached.exists, "the module is at work")
        status = await asyncio.to_thread(made.agent.api.get, "/v1/status")
        began = time.monotonic()
        assert await made.agent.terminate() == 0
        assert time.monotonic() - began < limits.SHUTDOWN_S + 1.0
        assert b"Traceback" not in made.agent.log
        if status["engine"]["pid"] is not None:
            assert not alive(status["engine"]["pid"])
        if moment == "installing":
            assert not alive(int(made.reached.read_text()))
        assert made.row(deployment).state == moment
        assert not (made.agent.data / "agent.sock").exists()
