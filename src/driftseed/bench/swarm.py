"""``swarm``: one file from a hub to many agents, every uplink limited."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftseed.bench import baseline
from driftseed.bench.fleet import NOBODY, bench_fleet, entered, updated
from driftseed.bench.payload import write_random
from driftseed.bench.results import Aim, Result, kumar_ross_s
from driftseed.core import limits


@dataclass(frozen=True, slots=True)
class Swarm:
    """How large it is.

    Args:
        size: bytes of the file.
        agents: that fetch it.
        uplink: bytes per second of each agent and of the hub.
        timeout_s: seconds for the rollout.
    """

    size: int = 64 * limits.MIB
    agents: int = 16
    uplink: int = 4 * limits.MIB
    timeout_s: float = 120.0

    async def run(self, directory: Path) -> Result:
        """Measure, in a directory for scratch files.

        Raises:
            DriftseedError: a part failed, so there is nothing to measure.
        """
        payload = directory / "payload"
        await asyncio.to_thread(write_random, payload, self.size)
        bound = kumar_ross_s(self.size, self.agents, self.uplink, self.uplink)
        updates = await self._rollout(directory, payload)
        began = min(entered(update, "downloading") for update in updates)
        ours = max(entered(update, "verifying") for update in updates) - began
        from_hub = sum(
            size
            for update in updates
            for source, size in update["bytes_from"].items()
            if source.startswith("hub/")
        )
        total = sum(sum(update["bytes_from"].values()) for update in updates)
        plain = directory / "plain"
        plain.mkdir()
        plain_s, plain_copies = await baseline.swarm(payload, plain, self.agents, self.uplink)
        return Result(
            name="swarm",
            method=(
                f"{self.size // limits.MIB} MiB of random bytes are at a hub; a deployment for all is published, and "
                f"{self.agents} agents fetch them. Hub and agents are a process each, and each has its own "
                "BitTorrent engine process; every connection is a tunnel over iroh on loopback. Every engine's uplink "
                f"is limited to {self.uplink / limits.MIB:g} MiB/s. Time is from the first agent's entering "
                "'downloading' to the last one's entering 'verifying', by their journals. Copies are the bytes that "
                "agents had from the hub (protocol included) over the file's length. The bound is Kumar and Ross's. "
                "Then plain libtorrent with its defaults: as many sessions in one process, full mesh, no tunnels, "
                "the same limit."
            ),
            figures={
                "bound_s": bound,
                "seconds": ours,
                "over_bound": ours / bound,
                "origin_copies": from_hub / self.size,
                "carried_copies_per_agent": total / self.size / self.agents,
                "plain_s": plain_s,
                "plain_over_bound": plain_s / bound,
                "plain_origin_copies": plain_copies,
            },
            aims=(
                Aim("over_bound", "most", 1.5, "time ≤ 1.5 times the bound"),
                Aim("origin_copies", "most", 1.2, "≤ 1.2 copies from the origin"),
            ),
        )

    async def _rollout(self, directory: Path, payload: Path) -> list[dict[str, Any]]:
        async with bench_fleet(directory) as fleet:
            await fleet.start_hub(upload_limit=self.uplink)
            agents = await fleet.start_agents(
                [f"agent{number}" for number in range(self.agents)], upload_limit_bytes_s=self.uplink
            )
            await fleet.release("payload", "1", payload)
            fleet.deploy("payload", "1", NOBODY)
            await fleet.publish()
            deployment = fleet.deploy("payload", "1")
            await fleet.publish()
            return await asyncio.gather(*(updated(agent, deployment, self.timeout_s) for agent in agents))
