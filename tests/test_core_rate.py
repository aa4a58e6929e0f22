"""The token bucket keeps its promise for any sequence of requests."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.rate import TokenBucket


def test_it_is_full_at_first_and_refills_at_its_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=4.0)
    assert [bucket.take(1, now=100.0) for _ in range(5)] == [True] * 4 + [False]
    assert not bucket.take(1, now=100.4)
    assert bucket.take(1, now=100.5)
    assert bucket.wait(1, now=100.5) == pytest.approx(0.5)


def test_it_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(rate=1000.0, burst=3.0)
    assert bucket.take(0, now=0.0)
    assert not bucket.take(4, now=1e9)
    assert bucket.take(3, now=1e9)


def test_a_refused_request_costs_nothing() -> None:
    bucket = TokenBucket(rate=0.0, burst=3.0)
    assert not bucket.take(4, now=0.0)
    assert bucket.take(3, now=0.0)


def test_time_that_runs_backwards_gives_nothing() -> None:
    bucket = TokenBucket(rate=1.0, burst=1.0)
    assert bucket.take(1, now=100.0)
    assert not bucket.take(1, now=0.0)
    assert not bucket.take(1, now=100.5)
    assert bucket.take(1, now=101.0)


def test_waiting_for_what_never_comes_is_infinite() -> None:
    assert TokenBucket(rate=5.0, burst=1.0).wait(2, now=0.0) == math.inf
    idle = TokenBucket(rate=0.0, burst=1.0)
    assert idle.wait(1, now=0.0) == 0.0
    assert idle.take(1, now=0.0)
    assert idle.wait(1, now=0.0) == math.inf


@pytest.mark.parametrize(("rate", "burst"), [(-1.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_senseless_buckets_are_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="token bucket"):
        TokenBucket(rate, burst)


@given(
    st.floats(0, 1000),
    st.floats(0, 1000),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 50)), max_size=60),
)
def test_never_more_than_burst_plus_rate_times_time(
    rate: float, burst: float, requests: list[tuple[float, float]]
) -> None:
    bucket = TokenBucket(rate, burst)
    now, taken, began = 0.0, 0.0, None
    for pause, tokens in requests:
        now += pause
        began = now if began is None else began
        if bucket.take(tokens, now):
            taken += tokens
        assert taken <= (burst + rate * (now - began)) * (1 + 1e-9) + 1e-6


@given(st.floats(0.001, 1000), st.floats(1, 100), st.floats(0, 100))
def test_after_the_wait_it_can_be_taken(rate: float, burst: float, used: float) -> None:
    bucket = TokenBucket(rate, burst)
    bucket.take(min(used, burst), now=0.0)
    assert bucket.take(1, now=bucket.wait(1, now=0.0) * (1 + 1e-9) + 1e-9)
