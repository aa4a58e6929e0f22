"""Two operators change one fleet's directory at the same time: neither undoes what the other signed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from driftseed.core.ids import DeviceId
from driftseed.core.limits import TICKET_HUBS_MAX
from driftseed.publish.devices import relabel, revoke
from driftseed.trust.repository import FleetRepository
from support_trust import FakeClock, make_fleet

EACH: Final = TICKET_HUBS_MAX // 2
OPERATOR: Final = """
import sys, time
from pathlib import Path
from driftseed.core.errors import AlreadyRunning
from driftseed.core.model import NodeAddress
from driftseed.publish.fleet import add_hub, remove_hub
from driftseed.trust.repository import FleetRepository

directory, action, *devices = sys.argv[1:]
repository = FleetRepository.open(Path(directory), lambda _: b"", time.time)
print("has read it", flush=True)
sys.stdin.readline()
refused = 0
for device in devices:
    while True:
        try:
            if action == "add":
                add_hub(repository, NodeAddress(device=device, addrs=["192.0.2.1:7700"]))
            else:
                remove_hub(repository, device)
        except AlreadyRunning:
            refused += 1
            time.sleep(0.002)
        else:
            break
print(refused, flush=True)
"""


def at_once(directory: Path, *errands: tuple[str, Sequence[str]]) -> None:
    """Run operators as processes that all have read the directory before the first of them changes it."""
    operators = [
        subprocess.Popen(
            [sys.executable, "-c", OPERATOR, str(directory), action, *devices],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for action, devices in errands
    ]
    try:
        for operator in operators:
            assert operator.stdout is not None
            assert operator.stdout.readline() == "has read it\n"
        for operator in operators:
            assert operator.stdin is not None
            operator.stdin.write("\n")
            operator.stdin.flush()
        for operator in operators:
            operator.communicate(timeout=60)
            assert operator.returncode == 0
    finally:
        for operator in operators:
            operator.kill()
            operator.communicate()


def hubs(directory: Path) -> set[str]:
    return {hub.device for hub in FleetRepository.open(directory, lambda _: b"", time.time).hubs()}


def names(first: int) -> list[str]:
    return [f"{number:02x}" * 32 for number in range(first, first + EACH)]


def test_hubs_that_two_operators_add_at_once_are_all_signed(tmp_path: Path) -> None:
    directory = tmp_path / "fleet"
    make_fleet(directory, FakeClock(time.time()))
    at_once(directory, ("add", names(1)), ("add", names(100)))
    assert hubs(directory) == {*names(1), *names(100)}


def test_a_hub_that_is_removed_while_another_is_added_does_not_come_back(tmp_path: Path) -> None:
    directory = tmp_path / "fleet"
    make_fleet(directory, FakeClock(time.time()))
    at_once(directory, ("add", names(1)))
    at_once(directory, ("remove", names(1)), ("add", names(100)))
    assert hubs(directory) == set(names(100))


def test_an_expulsion_outlives_a_change_by_somebody_who_has_not_seen_it(tmp_path: Path) -> None:
    """Otherwise giving one device a label could let another one in again."""
    directory = tmp_path / "fleet"
    clock = FakeClock()
    make_fleet(directory, clock)
    one, other = (FleetRepository.open(directory, lambda _: b"", clock) for _ in range(2))
    stolen, honest = DeviceId("ab" * 32), DeviceId("cd" * 32)
    revoke(one, [stolen], now=clock(), since=0.0, reason="stolen")
    relabel(other, honest, {"site": "leeds"})
    said = FleetRepository.open(directory, lambda _: b"", clock).devices()
    assert set(said.revoked) == {stolen}
    assert said.labels == {honest: {"site": "leeds"}}
