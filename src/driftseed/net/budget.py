"""How much content may go through relays: their bandwidth is the hubs', and everybody's."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from driftseed.core import limits
from driftseed.core.rate import TokenBucket

WAIT_MAX_S: Final = 1.0
"""Seconds after which somebody who waits looks again: the budget may have been changed."""


class RelayBudget:
    """Holds content on relayed paths to a rate, each way. Control traffic never asks.

    Args:
        bytes_s: bytes per second, each way; 0 for no limit.
    """

    def __init__(self, bytes_s: int = 0) -> None:
        self._bytes_s = -1
        self._buckets: dict[Literal["in", "out"], TokenBucket] = {}
        self.change(bytes_s)

    def change(self, bytes_s: int) -> None:
        """Set another rate, from now on."""
        if bytes_s != self._bytes_s:
            self._bytes_s = bytes_s
            burst = float(limits.RELAY_BUDGET_BURST_BYTES)
            self._buckets = {"in": TokenBucket(bytes_s, burst), "out": TokenBucket(bytes_s, burst)}

    async def spend(self, direction: Literal["in", "out"], size: int) -> None:
        """Wait until so many bytes may go through a relay, at most the burst at once."""
        clock = asyncio.get_running_loop().time
        while self._bytes_s > 0:
            bucket = self._buckets[direction]
            if bucket.take(size, clock()):
                return
            await asyncio.sleep(min(bucket.wait(size, clock()), WAIT_MAX_S))
