"""Scenarios say what they mean, and rollouts come through what they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from driftseed.core.errors import Misuse, NotFound
from driftseed.lab import render
from driftseed.lab.nat import NatKind
from driftseed.lab.rollout import shortfalls
from driftseed.lab.scenario import (
    Cut,
    Expected,
    Move,
    from_json,
    load_scenario,
    parse_scenario,
    to_json,
    uniform,
)

FULL: Final = b"""
name = "everything"
payload_bytes = 2_000_000

[[hub]]
name = "hub"
line = { up = 20, down = 20 }

[[site]]
name = "glasgow"
nat = "symmetric"
devices = 2
line = { up = 2, down = 10, delay_ms = 20, loss_percent = 1 }

[[site]]
name = "leeds"

[[event]]
do = "cut"
at_s = 2.0
site = "leeds"
for_s = 3.0

[[event]]
do = "move"
at_s = 4
device = "glasgow-1"
to = "leeds"

[expect]
within_s = 60
uplink_copies_max = 1.5
"""


def test_a_scenario_reads_as_it_is_written() -> None:
    scenario = parse_scenario(FULL)
    assert [site.nat for site in scenario.site] == [NatKind.SYMMETRIC, NatKind.PORT_RESTRICTED]
    assert scenario.site[0].line.delay_ms == 20
    assert scenario.event == [
        Cut(at_s=2.0, site="leeds", for_s=3.0),
        Move(at_s=4.0, device="glasgow-1", to="leeds"),
    ]
    assert scenario.devices() == ["glasgow-0", "glasgow-1", "leeds-0"]
    assert from_json(to_json(scenario)) == scenario


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'site = "leeds"', b'site = "leds"', "did you mean 'leeds'"),
        (b'device = "glasgow-1"', b'device = "glasgow-7"', "glasgow-7"),
        (b'nat = "symmetric"', b'nat = "asymmetric"', "asymmetric"),
        (b'do = "cut"', b'do = "explode"', "explode"),
        (b"devices = 2", b"devices = 65", "64"),
        (b"devices = 2", b"devises = 2", "devises"),
        (b'name = "leeds"', b'name = "glasgow"', "two places"),
        (b'name = "leeds"', b'name = "../leeds"', "leeds|pattern|matching"),
        (b"loss_percent = 1", b"loss_percent = 100", "100"),
        (b"[[site]]", b"[[site]", "not a scenario"),
        (b"glasgow", b"\xff", "not a scenario"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused_with_the_reason(old: bytes, new: bytes, said: str) -> None:
    with pytest.raises(Misuse) as caught:
        parse_scenario(FULL.replace(old, new))
    assert any(each in f"{caught.value.message} {caught.value.hint}" for each in said.split("|"))


def test_a_scenario_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        load_scenario(tmp_path / "nowhere.toml")


def test_a_uniform_rollout_is_checked_too() -> None:
    scenario = uniform(
        sites=3, devices=2, nat="full-cone", line={"up": 1.0}, payload_bytes=1000, within_s=10.0
    )
    assert len(scenario.devices()) == 6
    for change in ({"nat": "wall"}, {"devices": 60}, {"line": {"up": -1.0}}, {"payload_bytes": 0}):
        arguments: dict[str, Any] = {
            "sites": 3,
            "devices": 2,
            "nat": "full-cone",
            "line": {},
            "payload_bytes": 1000,
            "within_s": 10.0,
        }
        with pytest.raises(Misuse):
            uniform(**{**arguments, **change})


FIGURES: Final[dict[str, Any]] = {
    "succeeded": 1,
    "devices": 2,
    "seconds": 12.0,
    "origin_copies": 1.2,
    "received_copies": 1.01,
    "uplinks": {"leeds": {"received_copies": 1.6, "received_bytes": 1_600_000, "sent_bytes": 20_000}},
    "events": [{"at_s": 2.0, "what": "Move", "found_s": 1.5}],
    "by_device": {
        "leeds-0": {
            "state": "succeeded",
            "seconds": 11.0,
            "reason": "",
            "detail": "",
            "bytes_from": {"hub/direct": 1_200_000},
        },
        "leeds-1": {"state": "failed", "seconds": None, "reason": "full", "detail": "", "bytes_from": {}},
    },
}


def test_what_falls_short_is_named() -> None:
    assert shortfalls(Expected(), {**FIGURES, "succeeded": 2}) == []
    found = shortfalls(Expected(origin_copies_max=1.0, uplink_copies_max=1.15), FIGURES)
    assert found == [
        "1 of 2 devices were updated in time",
        "origin copies: 1.2, at most 1.0",
        "copies over the uplink of leeds: 1.6, at most 1.15",
    ]


def test_figures_are_shown_with_their_units() -> None:
    (_, devices), (_, uplinks) = render.rollout_tables(FIGURES)
    assert devices[0] == ["leeds-0", "succeeded", "11.0", "hub/direct 1.2", ""]
    assert devices[1][-1] == "full"
    assert uplinks == [["leeds", "1.6", "0.0", "1.60"]]
    assert "knew where it is after 1.5 s" in render.rollout_lines(FIGURES)[-1]
