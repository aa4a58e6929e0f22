"""Starts and stops an agent's process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from driftseed.agent import join as joining
from driftseed.agent.api import routes
from driftseed.agent.config import ConfigStore
from driftseed.agent.control import Control
from driftseed.agent.daemon import Agent
from driftseed.agent.join import Joined
from driftseed.agent.localhttp import LocalServer
from driftseed.agent.submissions import Submissions
from driftseed.logs import LogOptions
from driftseed.node.home import Home
from driftseed.node.process import run_alone, until_signalled
from driftseed.store.files import DirectoryLock


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """``driftseed agent run``.

    Args:
        data: the data directory.
        listen: UDP address; None takes the configured one.
        inventory: what the device says of itself, over everything else.
        serve_only: proxy mode, over the configuration.
        log: how to log.
    """

    data: Path
    listen: str | None = None
    inventory: Mapping[str, str] = field(default_factory=dict)
    serve_only: bool = False
    log: LogOptions = field(default_factory=LogOptions)


def join(ticket: str, data: Path) -> Joined:
    """Trade a ticket for membership; see ``agent.join.join``."""
    home = Home(data)
    home.create()
    lock = DirectoryLock(home.directory)
    lock.acquire()
    try:
        return asyncio.run(joining.join(ticket, data))
    finally:
        lock.release()


def run(options: AgentOptions) -> None:
    """Run an agent until SIGTERM or SIGINT.

    Raises:
        NotFound: the data directory belongs to no fleet.
        AlreadyRunning: another process uses it.
        DriftseedError: it cannot start, for its reason.
    """
    home = Home(options.data)
    home.member()
    run_alone(home, options.log, lambda: _serve(home, options))


async def _serve(home: Home, options: AgentOptions) -> None:
    configs = ConfigStore(home.directory)
    config = configs.load()
    changes: dict[str, object] = {}
    if options.listen is not None:
        changes["listen"] = options.listen
    if options.serve_only:
        changes["serve_only"] = True
    config = msgspec.structs.replace(config, **changes)
    agent = await Agent.open(home, config, inventory=options.inventory)
    control = Control(agent, configs)
    submissions = Submissions(home.directory, control, new_id=lambda: uuid.uuid4().hex)
    server = LocalServer(home.socket, routes(control, submissions), dropped=agent.node.ledger.drop)
    try:
        await submissions.start()
        await server.start()
        agent.start()
        await until_signalled(agent.node.failed)
    finally:
        await server.close()
        await submissions.close()
        await agent.close()
