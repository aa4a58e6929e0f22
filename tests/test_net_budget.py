"""Content on relayed paths keeps to its budget, each way on its own, and follows it when it changes."""

from __future__ import annotations

import asyncio
import time

from driftseed.core import limits
from driftseed.net.budget import RelayBudget

CHUNK = 256 * limits.KIB


async def spend(budget: RelayBudget, total: int) -> float:
    began = time.monotonic()
    for _ in range(total // CHUNK):
        await budget.spend("out", CHUNK)
    return time.monotonic() - began


async def test_without_a_limit_nobody_waits() -> None:
    assert await spend(RelayBudget(), 64 * limits.MIB) < 0.5


async def test_what_exceeds_the_burst_waits_for_the_rate() -> None:
    budget = RelayBudget(4 * limits.MIB)
    seconds = await spend(budget, limits.RELAY_BUDGET_BURST_BYTES + 2 * limits.MIB)
    assert 0.45 < seconds < 3.0


async def test_all_tunnels_share_one_budget() -> None:
    budget = RelayBudget(4 * limits.MIB)
    began = time.monotonic()
    share = (limits.RELAY_BUDGET_BURST_BYTES + 2 * limits.MIB) // 3
    await asyncio.gather(*(spend(budget, share) for _ in range(3)))
    assert time.monotonic() - began > 0.4


async def test_one_way_does_not_use_up_the_other() -> None:
    budget = RelayBudget(1)
    async with asyncio.timeout(1):
        await budget.spend("out", limits.RELAY_BUDGET_BURST_BYTES)
        await budget.spend("in", limits.RELAY_BUDGET_BURST_BYTES)


async def test_who_waits_is_let_go_when_the_limit_is_lifted() -> None:
    budget = RelayBudget(1)
    await budget.spend("out", limits.RELAY_BUDGET_BURST_BYTES)
    waiting = asyncio.create_task(budget.spend("out", CHUNK))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.change(0)
    async with asyncio.timeout(5):
        await waiting
