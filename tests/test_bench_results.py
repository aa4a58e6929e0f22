"""What the benchmarks say: aims, percentiles, the bound, and what people and programs are shown."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from driftseed.bench import main as bench
from driftseed.bench.notice import moments_of
from driftseed.bench.results import Aim, Result, kumar_ross_s, percentile
from driftseed.core.errors import Misuse

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("sense", "value", "met"),
    [
        ("least", 0.6, True),
        ("least", 0.59, False),
        ("most", 0.6, True),
        ("most", 0.61, False),
        ("most", math.nan, False),
        ("most", "fast", False),
    ],
)
def test_an_aim_is_met_up_to_its_bound_and_never_by_what_is_no_number(
    sense: str,
    value: float | str,
    met: bool,  # noqa: FBT001 - pytest's parameter
) -> None:
    aim = Aim("speed", "least" if sense == "least" else "most", 0.6, "")
    assert aim.met({"speed": value}) is met


def test_a_figure_that_is_missing_meets_no_aim() -> None:
    assert not Aim("speed", "most", 1.0, "").met({})


def test_the_bound_is_that_of_kumar_and_ross() -> None:
    """The seed's uplink limits sixteen peers at its own speed; the whole swarm's limits many slow ones."""
    assert kumar_ross_s(64 * MIB, 16, 4 * MIB, 4 * MIB) == 16.0
    assert kumar_ross_s(64 * MIB, 100, 64 * MIB, MIB) == pytest.approx(6400 / 164)
    assert kumar_ross_s(64 * MIB, 1, 64 * MIB, MIB, peer_down=MIB) == 64.0


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(number) for number in range(1, 251)]
    assert percentile(values, 99) == 248.0
    assert percentile(values, 50) == 125.0
    assert percentile([3.0], 99) == 3.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 99)


def test_a_missed_aim_is_said_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(
        "swarm", "measured", {"over_bound": 2.0, "seconds": 3.25}, (Aim("over_bound", "most", 1.5, "≤ 1.5"),)
    )
    bench.show(result)
    said = capsys.readouterr().out
    assert "aim missed" in said
    assert "measured" in said
    assert result.as_object() == {
        "name": "swarm",
        "method": "measured",
        "figures": {"over_bound": 2.0, "seconds": 3.25},
        "aim": "≤ 1.5",
        "met": False,
    }


def test_an_unknown_benchmark_is_refused_before_any_runs() -> None:
    with pytest.raises(Misuse, match="no benchmark 'sworm'") as caught:
        bench.run(names=("notice", "sworm"), json_output=False)
    assert "swarm" in caught.value.hint


def test_the_machine_is_described() -> None:
    said = json.loads(json.dumps(bench.machine()))
    assert said["cores"] >= 1
    assert set(said["versions"]) == {"driftseed", "iroh", "libtorrent", "tuf"}


def test_a_line_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    entry = {"ts": "1970-01-01T00:00:01.500Z", "event": "notice", "fields": {"version": 7}}
    log.write_text(
        json.dumps(entry)
        + "\n"
        + '{"event": "other", "fields": {"version": 7}, "ts": ""}\n'
        + '{"event": "notice", "version": 8'
    )
    assert moments_of(log, "notice") == {7: [1.5]}
