"""A whole fleet in one process: real endpoints, real engines, real metadata; only the clock may be another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from driftseed.agent.api import routes
from driftseed.agent.config import AgentConfig, ConfigStore
from driftseed.agent.control import Control
from driftseed.agent.daemon import Agent
from driftseed.agent.join import join
from driftseed.agent.localhttp import LocalServer
from driftseed.agent.submissions import Submissions
from driftseed.cli.client import Client
from driftseed.core import limits
from driftseed.core.ids import parse_safe_name
from driftseed.core.lifecycle import TERMINAL, State
from driftseed.core.model import HealthCheck, NodeAddress
from driftseed.core.tickets import Ticket, encode_ticket
from driftseed.hub.daemon import Hub, HubSettings
from driftseed.node.home import Home
from driftseed.node.transfer import ContentSettings
from driftseed.publish.artifacts import split_artifact
from driftseed.publish.release import ReleaseRequest, plan_release
from driftseed.publish.send import PublishResult, publish_to_nodes
from driftseed.trust.hubkit import export_hub_kit, parse_hub_kit
from driftseed.trust.membership import create_invitation
from driftseed.trust.repository import FleetRepository


async def until(
    condition: Callable[[], bool | Awaitable[bool]], what: str, timeout_s: float = 20.0, every_s: float = 0.02
) -> None:
    """Wait for something to become true; the test fails by name when it does not."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s} s still not: {what}")
        await asyncio.sleep(every_s)


@dataclass
class Fleet:
    """A fleet directory, a hub, agents."""

    directory: Path
    repository: FleetRepository
    clock: Callable[[], float] = time.time
    hubs: list[Hub] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)

    def hub_address(self, hub: Hub) -> NodeAddress:
        """How to dial a hub."""
        return NodeAddress(device=hub.identity.device, addrs=[f"127.0.0.1:{hub.node.endpoint.port}"])

    async def start_hub(self, name: str = "hub", *, content: ContentSettings | None = None) -> Hub:
        """Start a hub, and sign where it is."""
        home = Home(self.directory / name)
        home.create()
        kit = parse_hub_kit(export_hub_kit(self.repository))
        settings = HubSettings(
            bind="127.0.0.1:0", public=(), relay=None, content=content or ContentSettings()
        )
        hub = await Hub.open(kit, home, settings, self.clock)
        hub.start()
        self.hubs.append(hub)
        return hub

    def ticket(
        self, *, uses: int = 100, labels: Mapping[str, str] | None = None, lifetime_s: float = 3600
    ) -> str:
        """A ticket of this fleet."""
        expires = self.clock() + lifetime_s
        invitation = create_invitation(
            self.repository.enrolment_key(),
            fleet=self.repository.fleet_id,
            invitation_id=uuid.uuid4().hex,
            uses=uses,
            expires=expires,
            labels=labels or {},
        )
        return encode_ticket(
            Ticket(
                fleet=self.repository.fleet_id,
                name=self.repository.name,
                root=self.repository.first_root,
                hubs=[self.hub_address(hub) for hub in self.hubs],
                invitation=invitation,
                expires=expires,
            )
        )

    async def join(self, name: str, **ticket: object) -> Home:
        """Make a data directory a member's."""
        await join(self.ticket(**ticket), self.directory / name, clock=self.clock)  # type: ignore[arg-type]  # passed on
        return Home(self.directory / name)

    async def start_agent(
        self,
        name: str,
        *,
        config: AgentConfig | None = None,
        inventory: Mapping[str, str] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> Agent:
        """Start a joined agent."""
        home = Home(self.directory / name)
        loaded = config or ConfigStore(home.directory).load()
        bound = msgspec.structs.replace(loaded, listen="127.0.0.1:0")
        agent = await Agent.open(home, bound, inventory=inventory or {}, wall=wall)
        agent.start()
        self.agents.append(agent)
        return agent

    async def new_agent(self, name: str, **options: object) -> Agent:
        """Join and start."""
        await self.join(name)
        return await self.start_agent(name, **options)  # type: ignore[arg-type]  # passed on

    async def new_agents(self, *names: str) -> list[Agent]:
        """Join and start several, all linked to a hub before this returns."""
        agents = [await self.new_agent(name) for name in names]
        await until(lambda: all(agent.node.overlay.hubs() for agent in agents), "all linked to a hub")
        return agents

    def release(
        self,
        name: str,
        version: str,
        artifacts: list[str],
        *,
        module: str = "single-file",
        health: HealthCheck | None = None,
        meta: Mapping[str, object] | None = None,
        selector: str = "",
        module_timeout_s: float = limits.MODULE_TIMEOUT_S,
    ) -> str:
        """Sign a release and its deployment; returns the deployment's id."""
        request = ReleaseRequest(
            name=parse_safe_name(name, "release name"),
            version=parse_safe_name(version, "version"),
            module=parse_safe_name(module, "module"),
            artifacts=[split_artifact(each) for each in artifacts],
            health=health,
            module_timeout_s=module_timeout_s,
            meta=dict(meta or {}),
        )
        plan = plan_release(
            request, keys=None, created="2026-01-01T00:00:00Z", scratch=self.directory, progress=_quiet
        )
        self.repository.add_release(
            plan.manifest, {sha: (each.path, each.torrent) for sha, each in plan.files.items()}
        )
        deployment = self.repository.add_deployment(
            deployment_id=uuid.uuid4().hex, release=name, version=version, selector=selector
        )
        return deployment.id

    def release_random(self, name: str, version: str, size: int) -> str:
        """Sign a release of random bytes, kept as ``NAME-VERSION.bin``, and its deployment to all."""
        path = self.directory / f"{name}-{version}.bin"
        path.write_bytes(os.urandom(size))
        return self.release(name, version, [str(path)], meta={"path": f"{name}.bin"})

    async def publish(self, *, timeout_s: float = 30.0) -> PublishResult:
        """Hand everything to the hub."""
        return await publish_to_nodes(
            self.repository,
            [self.hub_address(hub) for hub in self.hubs],
            timeout_s=timeout_s,
            progress=lambda _done, _total, _what: None,
        )

    async def stop(self, member: Agent | Hub) -> None:
        """Stop one."""
        if isinstance(member, Agent):
            self.agents.remove(member)
        else:
            self.hubs.remove(member)
        await member.close()

    async def close(self) -> None:
        """Stop all."""
        members: list[Agent | Hub] = [*self.agents, *self.hubs]
        self.agents.clear()
        self.hubs.clear()
        await asyncio.gather(*(member.close() for member in members))


@contextlib.asynccontextmanager
async def local_api(agent: Agent) -> AsyncIterator[Client]:
    """The local API of an agent, on its socket, as ``agent run`` offers it."""
    control = Control(agent, ConfigStore(agent.home.directory))
    submissions = Submissions(agent.home.directory, control, new_id=lambda: uuid.uuid4().hex)
    server = LocalServer(agent.home.socket, routes(control, submissions), dropped=agent.node.ledger.drop)
    await submissions.start()
    await server.start()
    try:
        yield Client(agent.home.socket, "agent")
    finally:
        await server.close()
        await submissions.close()


def _quiet(_what: str, _done: int) -> None:
    return None


def state_of(agent: Agent, deployment_id: str) -> State | None:
    """Where an update is on an agent."""
    row = agent.journal.update(deployment_id)
    return None if row is None else row.state


async def settled(agents: list[Agent], deployment_id: str, timeout_s: float = 30.0) -> list[State | None]:
    """Wait until an update has ended everywhere; returns how."""
    await until(
        lambda: all(state_of(agent, deployment_id) in TERMINAL for agent in agents),
        f"{deployment_id} ended: {[state_of(agent, deployment_id) for agent in agents]}",
        timeout_s,
    )
    return [state_of(agent, deployment_id) for agent in agents]


@contextlib.asynccontextmanager
async def fleet_in(directory: Path) -> AsyncIterator[Fleet]:
    """A new fleet with nothing running, closed at the end."""
    repository = FleetRepository.create(
        directory / "fleet", name="test", root_keys=1, threshold=1, passphrase=None, clock=time.time
    )
    fleet = Fleet(directory, repository)
    try:
        yield fleet
    finally:
        await fleet.close()
