"""What a person or a test starts: each makes a laboratory, runs one experiment in it, and takes it away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from driftseed.core.errors import LabUnavailable
from driftseed.lab import sandbox, tools
from driftseed.lab.nat import NatKind, parse_kinds
from driftseed.lab.portmap import PACKAGE
from driftseed.lab.scenario import Scenario, checked, to_json

ROLLOUT_START_S: Final = 60.0
"""Seconds for building a scenario and starting its hubs."""
ROLLOUT_DEVICE_S: Final = 8.0
"""Seconds for each device to join and start, many at once on few cores."""
CLASSIFY_S: Final = 60.0
MATRIX_BASE_S: Final = 120.0
"""Seconds for building and starting; a small machine takes half of it for ten kinds."""
MATRIX_PAIR_S: Final = 10.0
"""Seconds for each pair: three of waiting for a path, the rest for a busy machine."""


async def classify(kinds: Sequence[str] | None = None) -> dict[str, Any]:
    """Build NATs and say how each behaves, by kind.

    Raises:
        Misuse: there is no such kind.
        LabUnavailable: no laboratory can be made here.
        LabFailed: a NAT does not behave as it is named.
    """
    chosen = parse_kinds(kinds) if kinds is not None else tuple(NatKind)
    found: dict[str, Any] = await sandbox.run(
        "classify", {"kinds": [str(kind) for kind in chosen]}, timeout_s=CLASSIFY_S
    )
    return found


async def nat_matrix(kinds: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure every pair; ``{"behaviours": {...}, "cells": [...]}`` (``matrix.Cell``).

    Raises: as ``classify``.
    """
    chosen = parse_kinds(kinds) if kinds is not None else tuple(NatKind)
    found: dict[str, Any] = await sandbox.run(
        "nat-matrix",
        {"kinds": [str(kind) for kind in chosen]},
        timeout_s=MATRIX_BASE_S + MATRIX_PAIR_S * len(chosen) ** 2,
    )
    return found


async def assisted() -> dict[str, Any]:
    """Measure symmetric NATs that open ports when asked (UPnP, NAT-PMP, PCP), or have IPv6; ``{"cells": [...]}``.

    Raises:
        LabUnavailable: no laboratory can be made here, or there is no miniupnpd.
        LabFailed: a NAT does not behave as it is named.
    """
    if tools.find("miniupnpd") is None:
        raise LabUnavailable(
            "a router with port mapping needs miniupnpd", hint=f"Debian: apt install {PACKAGE}"
        )
    found: dict[str, Any] = await sandbox.run("assisted", {}, timeout_s=MATRIX_BASE_S)
    return found


async def rollout(scenario: Scenario) -> dict[str, Any]:
    """Run a scenario; its figures (``rollout.Rollout``), with ``short_of``: what did not come out as expected.

    Raises:
        Misuse: it names what is not in it.
        LabUnavailable: no laboratory can be made here.
        LabFailed: a process did not start, or ended by itself.
    """
    checked(scenario)
    devices = len(scenario.devices())
    found: dict[str, Any] = await sandbox.run(
        "rollout",
        to_json(scenario),
        timeout_s=ROLLOUT_START_S + ROLLOUT_DEVICE_S * devices + scenario.expect.within_s,
    )
    return found
