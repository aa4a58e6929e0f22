"""``idle``: what an agent costs that has nothing to do."""

from __future__ import annotations

import asyncio
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from driftseed.bench.fleet import START_TIMEOUT_S, Daemon, bench_fleet, updated
from driftseed.bench.payload import write_random
from driftseed.bench.results import Aim, Result
from driftseed.core import limits

ENGINE_RESTS_S = 90.0
"""Seconds in which the BitTorrent engine must have been ended after its last transfer."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used.

    Args:
        resident: bytes in memory, shared libraries included.
        proportional: bytes, what is shared counted in parts (PSS).
        cpu_s: seconds of CPU since it started.
        threads: of its own.
    """

    resident: int
    proportional: int
    cpu_s: float
    threads: int


def usage(pid: int) -> Usage:
    """What Linux says of a process (proc(5)). Raises OSError when there is no such process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    )
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    pss = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    times = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return Usage(
        resident=int(status["VmRSS"].split()[0]) * limits.KIB,
        proportional=int(pss.split()[1]) * limits.KIB,
        cpu_s=cpu_seconds(pid) if Path(f"/proc/{pid}/schedstat").exists() else _ticks(times),
        threads=int(status["Threads"]),
    )


def cpu_seconds(pid: int) -> float:
    """CPU of all threads of a process in seconds, to the nanosecond."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


def _ticks(stat: list[str]) -> float:
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Idle:
    """For how long who is watched.

    Args:
        agents: processes; each is linked to the hub and to the others.
        seconds: of watching.
        size: bytes of the update before.
    """

    agents: int = 4
    seconds: float = 60.0
    size: int = 4 * limits.MIB

    async def run(self, directory: Path) -> Result:
        """Measure, in a directory for scratch files.

        Raises:
            DriftseedError: a part failed, so there is nothing to measure.
        """
        before, after, peers = await self._watch(directory)
        cores = [(end.cpu_s - start.cpu_s) / self.seconds for start, end in zip(before, after, strict=True)]
        resident = [end.resident / 1e6 for end in after]
        return Result(
            name="idle",
            method=(
                f"A hub and {self.agents} agents, each started as 'driftseed agent run', with LAN discovery (on the "
                "loopback interface) and linked to the hub and the "
                f"others, install an update of {self.size // limits.MIB} MiB; when their BitTorrent engines have been "
                f"ended, they are watched for {self.seconds:g} s. Memory is VmRSS at the end of that time (and PSS), "
                "CPU what all threads of the agent's process used meanwhile, from /proc. The figures are of the "
                "worst agent, with the median beside it."
            ),
            figures={
                "links_per_agent": min(peers),
                "resident_mb": max(resident),
                "resident_median_mb": statistics.median(resident),
                "proportional_median_mb": statistics.median(end.proportional / 1e6 for end in after),
                "threads": max(end.threads for end in after),
                "cpu_percent_of_core": 100 * max(cores),
                "cpu_median_percent_of_core": 100 * statistics.median(cores),
            },
            aims=(
                Aim("resident_mb", "most", 64.0, "resident memory ≤ 64 MB"),
                Aim("cpu_percent_of_core", "most", 0.3, "CPU ≤ 0.3 % of a core"),
            ),
        )

    async def _watch(self, directory: Path) -> tuple[list[Usage], list[Usage], list[int]]:
        payload = directory / "payload"
        await asyncio.to_thread(write_random, payload, self.size)
        async with bench_fleet(directory) as fleet:
            await fleet.start_hub()
            agents = await fleet.start_agents(
                [f"agent{number}" for number in range(self.agents)], lan_discovery=True, lan_interfaces=["lo"]
            )
            await fleet.release("payload", "1", payload)
            deployment = fleet.deploy("payload", "1")
            await fleet.publish()
            await asyncio.gather(*(updated(agent, deployment, START_TIMEOUT_S) for agent in agents))
            await asyncio.gather(*(_engine_rests(agent) for agent in agents))
            peers = [len((await agent.ask("/v1/peers"))["peers"]) for agent in agents]
            before = [usage(agent.process.pid) for agent in agents]
            await asyncio.sleep(self.seconds)
            after = [usage(agent.process.pid) for agent in agents]
            return before, after, peers


async def _engine_rests(agent: Daemon) -> None:
    await agent.until("/v1/status", lambda answer: not answer["engine"]["running"], ENGINE_RESTS_S)
