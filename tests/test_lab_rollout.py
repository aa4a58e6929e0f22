"""Whole rollouts in the laboratory: the scenarios of lab/scenarios, and what each promises."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import pytest

from driftseed.lab.main import rollout
from driftseed.lab.scenario import load_scenario
from support_lab import require_lab

SCENARIOS: Final = Path(__file__).parent.parent / "lab" / "scenarios"
EVERY_TIME: Final = ("no-udp", "roaming")
"""The quick ones; the others take minutes: ``make lab``."""
CHOSEN: Final = (
    sorted(path.stem for path in SCENARIOS.glob("*.toml"))
    if os.environ.get("DRIFTSEED_LAB_WHOLE")
    else list(EVERY_TIME)
)
FOUND_MAX_S: Final = 10.0
"""Seconds after which a device that was carried elsewhere must be in touch again."""


def test_all_scenarios_of_the_laboratory_make_sense() -> None:
    names = [load_scenario(path).name for path in SCENARIOS.glob("*.toml")]
    assert len(names) == len(set(names)) > len(EVERY_TIME)


@pytest.mark.root
@pytest.mark.parametrize("name", CHOSEN)
async def test_a_scenario_comes_out_as_it_promises(name: str) -> None:
    require_lab()
    figures = await rollout(load_scenario(SCENARIOS / f"{name}.toml"))
    assert figures["short_of"] == [], json.dumps(figures)
    for event in figures["events"]:
        if event["what"] == "Move":
            assert event["found_s"] is not None, json.dumps(figures)
            assert event["found_s"] <= FOUND_MAX_S
