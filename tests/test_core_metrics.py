"""Counters, and how Prometheus reads them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.metrics import OTHER, SERIES_MAX, Metrics


def test_the_text_format_is_prometheus_own() -> None:
    metrics = Metrics()
    drops = metrics.counter("driftseed_drops_total", "Dropped, by\nreason \\ kind.", ["reason"])
    drops.add(reason="frame-too-large")
    drops.add(2, reason='quo"te\\new\nline')
    metrics.gauge("driftseed_neighbours", "Neighbours.").set(2.5)
    metrics.gauge("driftseed_free_bytes", "Free.").add(2**40)
    metrics.counter("driftseed_never_total", "Not yet.")
    metrics.counter("driftseed_labelled_total", "Not yet.", ["a", "b"])
    assert metrics.render() == (
        "# HELP driftseed_drops_total Dropped, by\\nreason \\\\ kind.\n"
        "# TYPE driftseed_drops_total counter\n"
        'driftseed_drops_total{reason="frame-too-large"} 1\n'
        'driftseed_drops_total{reason="quo\\"te\\\\new\\nline"} 2\n'
        "# HELP driftseed_neighbours Neighbours.\n"
        "# TYPE driftseed_neighbours gauge\n"
        "driftseed_neighbours 2.5\n"
        "# HELP driftseed_free_bytes Free.\n"
        "# TYPE driftseed_free_bytes gauge\n"
        "driftseed_free_bytes 1099511627776\n"
        "# HELP driftseed_never_total Not yet.\n"
        "# TYPE driftseed_never_total counter\n"
        "driftseed_never_total 0\n"
        "# HELP driftseed_labelled_total Not yet.\n"
        "# TYPE driftseed_labelled_total counter\n"
    )


@pytest.mark.parametrize(("value", "text"), [(math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")])
def test_what_is_no_number_has_its_own_words(value: float, text: str) -> None:
    gauge = Metrics().gauge("a", "b")
    gauge.set(value)
    assert gauge.render().endswith(f"\na {text}\n")


def test_label_sets_are_bounded_and_what_is_too_much_is_still_counted() -> None:
    counter = Metrics().counter("a_total", "b", ["peer", "kind"])
    for number in range(SERIES_MAX + 50):
        counter.add(peer=str(number), kind="x")
    assert counter.value(peer=str(SERIES_MAX - 1), kind="x") == 1
    assert counter.value(peer=OTHER, kind=OTHER) == 50
    counter.add(peer="0", kind="x")
    assert counter.value(peer="0", kind="x") == 2
    assert sum(counter.by("peer").values()) == SERIES_MAX + 51
    assert counter.by("kind") == {"x": SERIES_MAX + 1, OTHER: 50}


def test_faults_of_ours_are_told_at_once() -> None:
    metrics = Metrics()
    counter = metrics.counter("a_total", "b", ["x"])
    gauge = metrics.gauge("g", "b")
    for wrong in (
        counter.add,
        lambda: counter.add(y="1"),
        lambda: counter.add(-1, x="1"),
        lambda: counter.add(math.nan, x="1"),
        lambda: counter.set(1, x="1"),
        lambda: gauge.set(1, x="1"),
        lambda: metrics.counter("a_total", "again"),
        lambda: metrics.counter("no_suffix", "b"),
        lambda: metrics.gauge("a-b", "b"),
        lambda: metrics.gauge("c", "b", ["__reserved"]),
    ):
        with pytest.raises(ValueError, match=r"a_total|name|gauge|there already|labels|_total|g has"):
            wrong()
    gauge.add(-3)
    assert gauge.value() == -3


@given(st.text(max_size=200))
def test_no_label_value_breaks_a_line(text: str) -> None:
    counter = Metrics().counter("a_total", "b", ["x"])
    counter.add(x=text)
    lines = counter.render().split("\n")
    assert len(lines) == 4
    assert lines[2].startswith('a_total{x="')
    assert lines[2].endswith('"} 1')
