"""Every limit has a test that meets it; one that has none is listed here, with the reason, and nothing else is.

A test meets a limit when it, or a value or helper beside it in its module, names it: ``limits.FRAME_BYTES_MAX``.
Limits that are met through a parameter, or whose name a test has no use for, are mapped by hand.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from driftseed.core import limits

TESTS: Final = Path(__file__).parent
NAMES: Final = sorted(name for name in vars(limits) if name.isupper() and name not in {"KIB", "MIB", "GIB"})

BY_HAND: Final = {
    "FILE_RATE_MIN": "test_attacks_tuf.py::test_slow_retrieval",
    "HANDSHAKE_BYTES_MAX": "test_net_link.py::test_a_stranger_cannot_fill_memory_before_it_proves_anything",
    "HANDSHAKE_CHECK_S": "test_net_link.py::test_a_stranger_cannot_fill_memory_before_it_proves_anything",
    "KILL_TIMEOUT_S": ("test_install_process.py::test_a_command_that_hangs_is_killed_with_all_its_children"),
    "RELAY_SPARES_MAX": "test_net_relay.py::test_spare_connections_of_a_key_are_bounded",
    "RELAY_GUEST_BYTES_PER_SECOND": "test_net_relay.py::test_a_guest_reaches_the_hub_and_nobody_else",
    "RELAY_BURST_BYTES": "test_net_relay.py::test_a_client_cannot_send_faster_than_its_rate",
    "RELAY_BUDGET_BURST_BYTES": "test_net_budget.py::test_all_tunnels_share_one_budget",
}
"""Limit to test; a module where the whole of it is about the limit."""

NOT_MET: Final = {
    "DIAL_TIMEOUT_S": "a default; what happens when it is over is tested with shorter ones",
    "WRITE_TIMEOUT_S": "likewise",
    "MODULE_TIMEOUT_S": "likewise",
    "FILE_REQUEST_WAIT_S": "likewise",
    "STREAM_RESET_TIMEOUT_S": "nothing that a peer does makes a reset wait",
    "ENDPOINT_CLOSE_S": "how long closing may take is held to SHUTDOWN_S, which is tested",
    "TUNNEL_STALL_S": "two minutes of silence; nothing shortens it",
    "LINK_WINDOW_BYTES": "the engine's own flow control, which is told the number",
    "COMPARE_INTERVAL_S": "an interval, not a bound",
    "RELAY_PING_S": "an interval, not a bound",
    "RELAY_PROVE_EVERY_S": "an interval, not a bound",
    "RECHECK_S": "an interval, not a bound",
    "RELAY_CONTACTS_MAX": "a thousand clients at one relay: too many for a test",
    "INVITATION_BYTES_MAX": "labels at their own bounds stay below it",
    "LOG_FILE_BYTES_DEFAULT": "a default; rotation is tested with smaller ones",
    "LOG_FILES_KEPT_DEFAULT": "likewise",
}


@cache
def named(path: Path) -> dict[str, set[str]]:
    """What each test of a module names of the limits; under the empty name, what stands beside the tests."""
    found: dict[str, set[str]] = {"": set()}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        test = ""
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            test = node.name
        names = found.setdefault(test, set())
        for part in ast.walk(node):
            if (
                isinstance(part, ast.Attribute)
                and isinstance(part.value, ast.Name)
                and part.value.id == "limits"
            ):
                names.add(part.attr)
            elif isinstance(part, ast.Constant) and part.value in NAMES:
                names.add(str(part.value))  # monkeypatch.setattr(limits, "NAME", ...)
            elif isinstance(part, ast.ImportFrom) and part.module == "driftseed.core.limits":
                names.update(alias.name for alias in part.names)
    return found


def met_by(name: str) -> list[str]:
    """Tests that name a limit."""
    return [
        f"{path.name}::{test}"
        for path in sorted(TESTS.glob("test_*.py"))
        if path != Path(__file__)
        for test, names in named(path).items()
        if name in names
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_is_met_by_a_test(name: str) -> None:
    tests = met_by(name)
    if name in BY_HAND:
        tests.append(BY_HAND[name])
    assert bool(tests) != (name in NOT_MET), (
        f"{name}: write a test at the bound and one past it, and map it here"
        if not tests
        else f"{name} is met by {tests}"
    )


@pytest.mark.parametrize(("name", "test"), BY_HAND.items())
def test_what_is_mapped_by_hand_is_there(name: str, test: str) -> None:
    assert name in NAMES
    module, _, function = test.partition("::")
    assert (TESTS / module).is_file(), module
    assert not function or function in named(TESTS / module), function


def test_nothing_else_is_said_not_to_be_met() -> None:
    assert set(NOT_MET) <= set(NAMES)
    assert not set(NOT_MET) & set(BY_HAND)
