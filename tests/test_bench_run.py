"""Each benchmark once, small: real processes, real engines, every figure there. How fast is not looked at."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from driftseed.bench.idle import Idle, usage
from driftseed.bench.main import BENCHMARKS, Benchmark
from driftseed.bench.notice import Notice
from driftseed.bench.swarm import Swarm
from driftseed.bench.tunnel import Tunnel
from driftseed.core import limits

SMALL: Mapping[str, Benchmark] = {
    "tunnel": Tunnel(size=3 * limits.MIB, plain_runs=1),
    "swarm": Swarm(size=limits.MIB, agents=2, uplink=limits.MIB),
    "notice": Notice(agents=3, rounds=2),
}


@pytest.mark.parametrize("name", SMALL)
async def test_it_measures(tmp_path: Path, name: str) -> None:
    result = await SMALL[name].run(tmp_path)
    assert result.name == name
    assert result.method
    numbers = [value for value in result.figures.values() if isinstance(value, int | float)]
    assert all(value > 0 and math.isfinite(value) for value in numbers)
    assert {aim.figure for aim in result.aims} <= set(result.figures)


def test_every_benchmark_has_its_full_size() -> None:
    """What is promised: 512 MB, 64 MiB to 16 agents at 4 MiB/s, 50 agents, a minute."""
    assert set(BENCHMARKS) == {*SMALL, "idle"}
    assert Tunnel().size == 512_000_000
    assert (Swarm().size, Swarm().agents, Swarm().uplink) == (64 * limits.MIB, 16, 4 * limits.MIB)
    assert Notice().agents == 50
    assert Idle().seconds == 60.0


def test_what_a_process_uses_is_read_from_the_kernel() -> None:
    now = usage(os.getpid())
    assert limits.MIB < now.proportional <= now.resident
    assert now.cpu_s > 0
    assert now.threads >= 1
