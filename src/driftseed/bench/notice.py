"""``notice``: how soon all agents know of a new timestamp."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from driftseed.bench.fleet import POLL_S, START_TIMEOUT_S, BenchFleet, Daemon, bench_fleet
from driftseed.bench.payload import write_random
from driftseed.bench.results import Aim, Result, percentile
from driftseed.core import limits
from driftseed.core.errors import DeviceError

Seen = Mapping[int, list[float]]
"""Moments, seconds since 1970, at which agents came to a timestamp version."""


@dataclass(frozen=True, slots=True)
class Notice:
    """How many hear of it, how often.

    Args:
        agents: in one process.
        rounds: notices, one after the other.
        timeout_s: seconds for all agents to have one.
    """

    agents: int = 50
    rounds: int = 5
    timeout_s: float = 20.0

    async def run(self, directory: Path) -> Result:
        """Measure, in a directory for scratch files.

        Raises:
            DriftseedError: a part failed, so there is nothing to measure.
        """
        heard, trusted = await self._rounds(directory)
        return Result(
            name="notice",
            method=(
                f"{self.agents} agents in one process, each with its own key, endpoint, links and journal; a hub in "
                f"another; everything over iroh on loopback. {self.rounds} times a deployment for nobody is signed and "
                "published through the hub. Time is from the hub's taking the new timestamp.json to each agent's "
                "having verified it (heard), and to its having fetched and verified all that it announces (trusted), "
                "by their logs to the millisecond. Percentiles are over all agents and rounds."
            ),
            figures={
                "agents": self.agents,
                "rounds": self.rounds,
                "heard_median_s": percentile(heard, 50),
                "heard_p99_s": percentile(heard, 99),
                "heard_max_s": max(heard),
                "trusted_median_s": percentile(trusted, 50),
                "trusted_p99_s": percentile(trusted, 99),
            },
            aims=(Aim("heard_p99_s", "most", 1.0, "99 % of agents within 1 s"),),
        )

    async def _rounds(self, directory: Path) -> tuple[list[float], list[float]]:
        payload = directory / "payload"
        await asyncio.to_thread(write_random, payload, limits.KIB)
        async with bench_fleet(directory) as fleet:
            hub = await fleet.start_hub()
            await fleet.release("payload", "1", payload)
            crowd = await fleet.start_crowd([f"agent{number}" for number in range(self.agents)])
            await self._all_at(crowd, "metadata", 1)
            await self._all_linked(hub)
            heard: list[float] = []
            trusted: list[float] = []
            for _ in range(self.rounds):
                version = await self._announce(fleet)
                learnt = await self._all_at(hub, "notice", version, agents=1)
                since = min(learnt)
                heard += [at - since for at in await self._all_at(crowd, "notice", version)]
                trusted += [at - since for at in await self._all_at(crowd, "metadata", version)]
            return heard, trusted

    async def _announce(self, fleet: BenchFleet) -> int:
        """Publish something new that asks nobody to do anything; returns its timestamp version."""
        fleet.deploy("payload", "1", "bench=nobody")
        return await fleet.publish()

    async def _all_linked(self, hub: Daemon) -> None:
        await hub.until("/v1/peers", lambda answer: len(answer["peers"]) >= self.agents, START_TIMEOUT_S)

    async def _all_at(
        self, daemon: Daemon, event: str, version: int, agents: int | None = None
    ) -> list[float]:
        """When each of a process's agents logged an event of a version. Raises DeviceError."""
        wanted = self.agents if agents is None else agents
        deadline = time.monotonic() + max(self.timeout_s, START_TIMEOUT_S if version == 1 else 0.0)
        while True:
            moments = (await asyncio.to_thread(moments_of, daemon.log, event))[version]
            if len(moments) >= wanted:
                return moments
            if time.monotonic() > deadline:
                raise DeviceError(f"{len(moments)} of {wanted} agents came to {event} {version} in time")
            await asyncio.sleep(POLL_S)


def moments_of(log: Path, event: str) -> dict[int, list[float]]:
    """When an event with a ``version`` is in a JSON log, by that version; lines still being written do not count."""
    found: dict[int, list[float]] = defaultdict(list)
    for line in log.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or b'"version"' not in line:
            continue
        entry = json.loads(line)
        if entry["event"] == event:
            found[entry["fields"]["version"]].append(datetime.fromisoformat(entry["ts"]).timestamp())
    return found
