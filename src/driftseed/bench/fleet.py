"""A fleet of real processes on loopback: one hub, agents, each as a person would start them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import uuid
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from driftseed.agent.config import CONFIG_FILE
from driftseed.agent.join import join
from driftseed.bench.ask import SocketApi
from driftseed.core.addresses import parse_address
from driftseed.core.errors import AgentUnreachable, DeviceError
from driftseed.core.ids import parse_safe_name
from driftseed.core.model import NodeAddress
from driftseed.core.tickets import Ticket, encode_ticket
from driftseed.publish.artifacts import split_artifact
from driftseed.publish.release import ReleaseRequest, plan_release
from driftseed.publish.resolve import resolve_address
from driftseed.publish.send import publish_to_agent, publish_to_nodes
from driftseed.trust.hubkit import export_hub_kit
from driftseed.trust.membership import create_invitation
from driftseed.trust.repository import FleetRepository

START_TIMEOUT_S: Final = 150.0
STOP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.1
"""Seconds between questions to a daemon about what it tells only when asked."""
PUBLISH_TIMEOUT_S: Final = 120.0
LOOPBACK: Final = "127.0.0.1:0"
QUIET: Final[Mapping[str, object]] = {"lan_discovery": False}
"""Settings of agents: nothing leaves this machine, and dozens of agents do not answer each other by multicast."""
AGENT_SOCKET: Final = "agent.sock"
HUB_SOCKET: Final = "hub.sock"
NOBODY: Final = "bench=nobody"
"""Selector that no device fulfils: hubs fetch such a release, and nobody else."""
_INVITED_S: Final = 3600.0


@dataclass(slots=True)
class Daemon:
    """A running process.

    Args:
        name: its data directory's.
        process: started by us.
        api: its socket.
    """

    name: str
    process: Process
    api: SocketApi
    log: Path

    async def ask(self, path: str) -> dict[str, Any]:
        """``GET`` of its API. Raises AgentUnreachable."""
        return await asyncio.to_thread(self.api.get, path)

    async def until(
        self, path: str, holds: Callable[[dict[str, Any]], bool], timeout_s: float
    ) -> dict[str, Any]:
        """Ask again and again until an answer is as wanted.

        Raises:
            DeviceError: not in time, or the process has ended; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        answer: dict[str, Any] = {}
        while True:
            with contextlib.suppress(AgentUnreachable):  # its socket is not there yet
                answer = await self.ask(path)
                if holds(answer):
                    return answer
            if self.process.returncode is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-2000:]
                raise DeviceError(f"{self.name}: {path} is not as expected after {timeout_s:.0f} s\n{said}")
            await asyncio.sleep(POLL_S)

    async def first_line(self) -> bytes:
        """What it says on standard output when it is ready. Raises DeviceError."""
        line = b""
        if self.process.stdout is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_TIMEOUT_S):
                    line = await self.process.stdout.readline()
        if not line:
            raise DeviceError(f"{self.name} does not start\n{self.log.read_text(errors='replace')[-2000:]}")
        return line

    async def stop(self) -> None:
        """End it as a service manager would."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


@dataclass
class BenchFleet:
    """A fleet directory and its daemons. Make it with ``bench_fleet``.

    Args:
        directory: everything is under it.
        repository: the fleet's.
    """

    directory: Path
    repository: FleetRepository
    daemons: list[Daemon] = field(default_factory=list)
    hub_address: NodeAddress | None = None

    async def start_hub(self, *, upload_limit: int = 0) -> Daemon:
        """Start the hub.

        Args:
            upload_limit: of content, bytes per second; 0 is unlimited.

        Raises:
            DeviceError: it does not start.
        """
        kit = self.directory / "hub.kit"
        kit.touch(mode=0o600)
        kit.write_bytes(export_hub_kit(self.repository))
        data = self.directory / "hub"
        daemon = await self._start(
            "hub", HUB_SOCKET, "-m", "driftseed.bench.hub", os.fspath(kit), os.fspath(data), str(upload_limit)
        )
        line = await daemon.first_line()
        self.hub_address = resolve_address(parse_address(json.loads(line)["address"])).address
        return daemon

    def ticket(self) -> str:
        """A ticket for every device of the benchmark."""
        expires = time.time() + _INVITED_S
        invitation = create_invitation(
            self.repository.enrolment_key(),
            fleet=self.repository.fleet_id,
            invitation_id=uuid.uuid4().hex,
            uses=1000,
            expires=expires,
            labels={},
        )
        return encode_ticket(
            Ticket(
                fleet=self.repository.fleet_id,
                name=self.repository.name,
                root=self.repository.first_root,
                hubs=[self.hub_address] if self.hub_address else [],
                invitation=invitation,
                expires=expires,
            )
        )

    async def join(self, names: Sequence[str]) -> None:
        """Make data directories members', one after the other."""
        ticket = self.ticket()
        for name in names:
            await join(ticket, self.directory / name)

    async def start_agent(self, name: str, **config: object) -> Daemon:
        """Start a joined agent with ``driftseed agent run``.

        Args:
            name: its data directory's.
            config: settings of ``agent.config.AgentConfig``.
        """
        data = self.directory / name
        (data / CONFIG_FILE).write_bytes(msgspec.json.encode({**QUIET, **config, "listen": LOOPBACK}))
        return await self._start(
            name,
            AGENT_SOCKET,
            "-m",
            "driftseed",
            "agent",
            "run",
            "--data",
            os.fspath(data),
            "--log-format",
            "json",
        )

    async def start_agents(self, names: Sequence[str], **config: object) -> list[Daemon]:
        """Join and start agents, and wait until each is linked to the hub and to a neighbour if there is any."""
        await self.join(names)
        agents = [await self.start_agent(name, **config) for name in names]
        wanted = min(len(self.daemons) - 1, 2)
        for agent in agents:
            await agent.until("/v1/peers", lambda answer: len(answer["peers"]) >= wanted, START_TIMEOUT_S)
            await agent.until("/v1/status", lambda answer: answer["timestamp_version"] >= 1, START_TIMEOUT_S)
        return agents

    async def _start(self, name: str, sock: str, *arguments: str) -> Daemon:
        log = self.directory / f"{name}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                *arguments,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=stderr,
            )
        daemon = Daemon(name, process, SocketApi(self.directory / name / sock), log)
        self.daemons.append(daemon)
        return daemon

    async def release(self, name: str, version: str, path: Path) -> None:
        """Sign a release of one file for everyone."""
        request = ReleaseRequest(
            name=parse_safe_name(name, "release name"),
            version=parse_safe_name(version, "version"),
            module=parse_safe_name("single-file", "module"),
            artifacts=[split_artifact(os.fspath(path))],
            meta={"path": f"{name}.bin"},
        )
        plan = await asyncio.to_thread(
            plan_release,
            request,
            keys=None,
            created="2026-01-01T00:00:00Z",
            scratch=self.directory,
            progress=_quiet,
        )
        self.repository.add_release(
            plan.manifest, {sha: (each.path, each.torrent) for sha, each in plan.files.items()}
        )

    def deploy(self, name: str, version: str, selector: str = "") -> str:
        """Sign a deployment; returns its id."""
        return self.repository.add_deployment(
            deployment_id=uuid.uuid4().hex, release=name, version=version, selector=selector
        ).id

    async def publish(self) -> int:
        """Hand everything to the hub, and return when it has it: the version of its timestamp."""
        hubs = [self.hub_address] if self.hub_address else []
        result = await publish_to_nodes(
            self.repository, hubs, timeout_s=PUBLISH_TIMEOUT_S, progress=_quiet_progress
        )
        return result.timestamp_version

    async def publish_to(self, agent: Daemon) -> None:
        """Hand everything to an agent through its socket."""
        await asyncio.to_thread(publish_to_agent, self.repository, agent.api, progress=_quiet_progress)

    async def start_crowd(self, names: Sequence[str]) -> Daemon:
        """Join agents and start them in one process; returns when all of them run."""
        await self.join(names)
        daemon = await self._start(
            "crowd", AGENT_SOCKET, "-m", "driftseed.bench.crowd", os.fspath(self.directory), *names
        )
        await daemon.first_line()
        return daemon

    async def close(self) -> None:
        """Stop every process."""
        await asyncio.gather(*(daemon.stop() for daemon in self.daemons))


def _quiet(_what: str, _done: int) -> None:
    return None


def _quiet_progress(done: int, total: int, what: str) -> None:  # noqa: ARG001 - the callback's protocol
    return None


@contextlib.asynccontextmanager
async def bench_fleet(directory: Path) -> AsyncIterator[BenchFleet]:
    """A new fleet with nothing running; everything is stopped at the end."""
    repository = await asyncio.to_thread(
        FleetRepository.create,
        directory / "fleet",
        name="bench",
        root_keys=1,
        threshold=1,
        passphrase=None,
        clock=time.time,
    )
    fleet = BenchFleet(directory, repository)
    try:
        yield fleet
    finally:
        await fleet.close()


async def updated(agent: Daemon, deployment: str, timeout_s: float) -> dict[str, Any]:
    """Wait until an agent has ended an update; returns the update with its history.

    Raises:
        DeviceError: it did not end in time, or not with success.
    """
    ended = {"succeeded", "failed", "rolled-back", "inconsistent", "cancelled"}

    def is_over(answer: dict[str, Any]) -> bool:
        return any(
            each["deployment"] == deployment and each["state"] in ended for each in answer.get("updates", [])
        )

    await agent.until("/v1/updates", is_over, timeout_s)
    update = await agent.ask(f"/v1/updates/{deployment}")
    if update["state"] != "succeeded":
        raise DeviceError(f"{agent.name}: the update is {update['state']}: {update.get('detail', '')}")
    return update


def entered(update: dict[str, Any], state: str) -> float:
    """When an update came into a state first, by the agent's clock, seconds since 1970.

    Raises:
        DeviceError: it never did.
    """
    for step in update["history"]:
        if step["state"] == state:
            return float(step["at"])
    raise DeviceError(f"the update {update['deployment'][:8]} never was {state}")
