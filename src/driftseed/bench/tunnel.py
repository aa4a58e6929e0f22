"""``tunnel``: one large file between two agents, against plain libtorrent."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from pathlib import Path

from driftseed.bench import baseline
from driftseed.bench.fleet import bench_fleet, entered, updated
from driftseed.bench.payload import write_random
from driftseed.bench.results import Aim, Result
from driftseed.core import limits

SMALL_BYTES = 256 * limits.KIB


@dataclass(frozen=True, slots=True)
class Tunnel:
    """How much is carried.

    Args:
        size: bytes of the file.
        plain_runs: of plain libtorrent, whose median counts: its runs differ more than ours.
        timeout_s: seconds for the transfer.
    """

    size: int = 512 * 1000 * 1000
    plain_runs: int = 3
    timeout_s: float = 120.0

    async def run(self, directory: Path) -> Result:
        """Measure, in a directory for scratch files.

        Raises:
            DriftseedError: a part failed, so there is nothing to measure.
        """
        payload = directory / "payload"
        await asyncio.to_thread(write_random, payload, self.size)
        ours = await self._through_the_tunnel(directory, payload)
        runs = []
        for number in range(self.plain_runs):
            target = directory / f"plain{number}"
            target.mkdir()
            runs.append(await baseline.pair(payload, target))
            (target / payload.name).unlink()
        plain = statistics.median(runs)
        return Result(
            name="tunnel",
            method=(
                f"{self.size / 1e6:g} MB of random bytes from one agent to another, a process each, with an engine "
                "process each, through a tunnel over iroh on loopback. The first agent has the file, in proxy mode; "
                "the hub is stopped before. A small update before has the second's engine up. Time is from "
                "the second's entering 'downloading' to its entering 'verifying', by its journal: finding the holder, "
                "connecting and writing the file included. Then plain libtorrent with its defaults between two "
                f"processes on loopback, from connecting to finished, the median of {self.plain_runs} runs."
            ),
            figures={
                "seconds": ours,
                "mb_s": self.size / ours / 1e6,
                "plain_s": plain,
                "plain_mb_s": self.size / plain / 1e6,
                "of_plain": plain / ours,
            },
            aims=(Aim("of_plain", "least", 0.6, "≥ 0.6 of plain libtorrent's throughput"),),
        )

    async def _through_the_tunnel(self, directory: Path, payload: Path) -> float:
        """Seconds for the payload from agent to agent."""
        small = directory / "small"
        await asyncio.to_thread(write_random, small, SMALL_BYTES)
        async with bench_fleet(directory) as fleet:
            hub = await fleet.start_hub()
            # In proxy mode it has the file and serves it; otherwise it would be installing it at the same time.
            (first,) = await fleet.start_agents(["first"], serve_only=True)
            (second,) = await fleet.start_agents(["second"])
            await fleet.release("warm", "1", small)
            warm = fleet.deploy("warm", "1")
            await fleet.publish()
            await updated(second, warm, self.timeout_s)
            # From here on the file is at one agent and nowhere else.
            await hub.stop()
            await fleet.release("payload", "1", payload)
            deployment = fleet.deploy("payload", "1")
            await fleet.publish_to(first)
            return _seconds(await updated(second, deployment, self.timeout_s))


def _seconds(update: dict[str, object]) -> float:
    return entered(update, "verifying") - entered(update, "downloading")
