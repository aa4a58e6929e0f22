"""The laboratory's NATs are what they say, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from driftseed.core.errors import LabFailed
from driftseed.core.natprobe import Behaviour, Filtering, Mapping
from driftseed.lab import sandbox
from driftseed.lab.nat import EXPECTED, NatKind
from driftseed.lab.prober import check
from support_lab import require_lab

pytestmark = pytest.mark.root


async def test_every_nat_behaves_as_it_is_named() -> None:
    require_lab()
    found = await sandbox.run("classify", {"kinds": [kind.value for kind in NatKind]}, timeout_s=60)
    for kind in NatKind:
        assert found[kind]["mapping"] == EXPECTED[kind].mapping
        assert found[kind]["filtering"] == EXPECTED[kind].filtering
    assert found[NatKind.SHORT_LIVED]["open_at_least_s"] == 1.0
    assert found[NatKind.SHORT_LIVED]["open_less_than_s"] == 5.0
    assert found[NatKind.DOUBLE_HAIRPIN]["hairpin"] is True


def test_a_nat_that_is_not_what_it_says_is_refused() -> None:
    lies = Behaviour(Mapping.ENDPOINT_INDEPENDENT, Filtering.ENDPOINT_INDEPENDENT)
    with pytest.raises(LabFailed, match="site is to be symmetric"):
        check({"site": lies}, {"site": NatKind.SYMMETRIC})


async def test_a_laboratory_that_fails_says_what_failed() -> None:
    require_lab()
    with pytest.raises(LabFailed, match="no kind of NAT"):
        await sandbox.run("classify", {"kinds": ["imaginary"]}, timeout_s=30)


async def test_a_laboratory_is_bounded_in_time() -> None:
    require_lab()
    with pytest.raises(LabFailed, match="did not end in 2 s"):
        await sandbox.run("classify", {"kinds": [NatKind.SYMMETRIC.value]}, timeout_s=2)
    assert children_in_other_networks() == []


def test_nothing_stays_when_the_laboratory_is_killed() -> None:
    require_lab()
    code = (
        "import asyncio\nfrom driftseed.lab import sandbox\n"
        "asyncio.run(sandbox.run('classify', {'kinds': ['symmetric', 'double']}, timeout_s=60))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        until(lambda: bool(descendants_in_other_networks(process.pid)), 30)
        inside = descendants_in_other_networks(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside), 10)


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for something in /proc, which announces nothing."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def descendants_in_other_networks(root: int) -> list[int]:
    """Processes below ``root`` whose network is not ours."""
    own = Path("/proc/self/ns/net").readlink()
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(entry.name)] = int(fields[1])

    def below(pid: int) -> bool:
        return pid == root or (pid in parents and below(parents[pid]))

    found = []
    for pid in parents:
        try:
            if below(pid) and Path(f"/proc/{pid}/ns/net").readlink() != own:
                found.append(pid)
        except OSError:
            continue
    return found


def children_in_other_networks() -> list[int]:
    return descendants_in_other_networks(os.getpid())
