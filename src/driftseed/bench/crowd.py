"""Many agents in one process: ``python -m driftseed.bench.crowd DIRECTORY NAME…``.

Each has its own key, endpoint, links, metadata and journal, as the agent that ``driftseed agent run`` starts;
only the local API is left out. What they log is written to standard error as JSON, and on standard output a line
says when all of them run.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from driftseed.agent.config import parse_config
from driftseed.agent.daemon import Agent
from driftseed.bench.fleet import LOOPBACK, QUIET
from driftseed.logs import LogFormat, LogOptions, configure
from driftseed.node.home import Home
from driftseed.node.process import until_signalled

THREADS_PER_AGENT: Final = 4


async def _serve(directory: Path, names: list[str]) -> None:
    config = parse_config({**QUIET, "listen": LOOPBACK})
    agents: list[Agent] = []
    # An agent that refreshes its metadata holds a thread and may wait for another that does: on their own they
    # have a pool each, and must not wait for each other's threads here.
    pool = ThreadPoolExecutor(THREADS_PER_AGENT * len(names))
    asyncio.get_running_loop().set_default_executor(pool)
    try:
        for name in names:
            agent = await Agent.open(Home(directory / name), config, inventory={})
            agents.append(agent)
            agent.start()
        sys.stdout.write(f"{len(agents)}\n")
        sys.stdout.flush()
        failure = asyncio.create_task(_any_failure(agents), name="failure")
        try:
            await until_signalled(failure)
        finally:
            failure.cancel()
    finally:
        await asyncio.gather(*(agent.close() for agent in agents))


async def _any_failure(agents: list[Agent]) -> None:
    await asyncio.gather(*(agent.node.failed for agent in agents))


def main(directory: str, *names: str) -> None:
    """Run them until stopped."""
    logging = configure(LogOptions(format=LogFormat.JSON))
    try:
        asyncio.run(_serve(Path(directory), list(names)))
    finally:
        logging.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
