"""Who fetches for a site: one that is alive, chosen alike by all, and never one that starves the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.ids import DeviceId
from driftseed.core.site import (
    GATHER_S,
    HOPELESS_S,
    PASSED_OVER_S,
    SILENCE_S,
    STANDSTILL_S,
    STARVED_S,
    Election,
    Neighbour,
)


def device(number: int) -> DeviceId:
    return DeviceId(f"{number:064x}")


def wanting(*numbers: int) -> list[Neighbour]:
    return [Neighbour(device(number), wants=True) for number in numbers]


@given(st.sets(st.integers(1, 1000), min_size=1, max_size=20))
def test_all_that_see_the_same_choose_the_same_one(numbers: set[int]) -> None:
    fetching = []
    for number in numbers:
        election = Election(device(number), 0.0)
        if not election.follows(wanting(*(numbers - {number})), 0, GATHER_S):
            fetching.append(number)
    assert fetching == [min(numbers)]


def test_alone_a_device_fetches_at_once() -> None:
    assert not Election(device(5), 0.0).follows([], 0, 0.0)


def test_it_waits_shortly_for_a_smaller_id_that_has_not_heard_yet() -> None:
    election = Election(device(5), 0.0)
    idle = [Neighbour(device(1))]
    assert election.follows(idle, 0, 0.1)
    assert not election.follows(idle, 0, GATHER_S)
    assert not Election(device(5), 0.0).follows([Neighbour(device(9))], 0, 0.1)


def test_a_neighbour_that_has_all_of_it_makes_everybody_follow() -> None:
    election = Election(device(1), 0.0)
    assert election.follows([Neighbour(device(9), whole=True)], 0, 10.0)


def test_the_next_takes_over_when_the_one_that_fetches_leaves() -> None:
    election = Election(device(5), 0.0)
    assert election.follows(wanting(1, 7), 0, 1.0)
    assert not election.follows(wanting(7), 0, 1.1)


def test_the_next_takes_over_when_it_falls_silent_within_ten_seconds() -> None:
    election = Election(device(5), 0.0)
    election.follows(wanting(1), 0, 0.0)
    election.heard(device(1), 100, 2.0)
    assert election.follows(wanting(1), 50, 2.0 + SILENCE_S)
    assert not election.follows(wanting(1), 50, 2.0 + SILENCE_S + 0.1)
    assert SILENCE_S + 2.0 < 10.0


def test_it_is_given_time_for_its_first_word() -> None:
    election = Election(device(5), 0.0)
    for now in (0.0, SILENCE_S - 0.1):
        assert election.follows(wanting(1), 0, now)
    assert not election.follows(wanting(1), 0, SILENCE_S + 0.1)


def test_the_next_one_has_its_own_time_for_a_first_word() -> None:
    """It has wanted the content for long, and is to fetch only since a moment ago."""
    election = Election(device(9), 0.0)
    assert election.follows(wanting(1, 5), 0, 0.0)
    election.heard(device(1), 10, 19.0)
    assert election.follows(wanting(1, 5), 10, 20.0)
    assert election.follows(wanting(5), 10, 20.5)
    assert election.leader == device(5)
    assert election.follows(wanting(5), 10, 20.5 + SILENCE_S)
    assert not election.follows(wanting(5), 10, 20.5 + SILENCE_S + 0.1)


def alive(election: Election, seconds: float, done: int, own: int, *, grows: bool = True) -> bool:
    """Let a fetching neighbour say every two seconds what it has; returns the last decision."""
    follows = True
    for step in range(int(seconds / 2) + 1):
        now = 2.0 * step
        election.heard(device(1), done + (step if grows else 0), now)
        follows = election.follows(wanting(1), own, now)
        if not follows:
            return False
    return follows


def test_one_on_a_slow_uplink_is_waited_for_as_long_as_it_gets_on() -> None:
    """Neither has a piece for a while, and both know that the other gets on."""
    election = Election(device(5), 0.0)
    for step in range(200):
        now = 2.0 * step
        election.heard(device(1), step * 1000, now)
        assert election.follows(wanting(1), max(0, step - 4) * 1000, now)


def test_one_that_stands_still_is_passed_over() -> None:
    assert not alive(Election(device(5), 0.0), STANDSTILL_S + 4, 0, 0, grows=False)


def test_one_that_claims_to_get_on_and_gives_nothing_is_passed_over() -> None:
    assert not alive(Election(device(5), 0.0), STARVED_S + 4, 10_000, 0)


def test_one_that_creeps_for_ever_starves_nobody_longer_than_a_minute() -> None:
    """It says a byte more each time and is never ahead: a liar that knows the rules."""
    election, now = Election(device(5), 0.0), 0.0
    for step in range(int(HOPELESS_S / 2) + 3):
        now = 2.0 * step
        election.heard(device(1), step, now)
        if not election.follows(wanting(1), 10_000, now):
            break
    assert now <= HOPELESS_S + 4
    assert not election.follows(wanting(1), 10_000, now + 1)


def test_a_neighbour_that_has_it_and_gives_nothing_is_passed_over_and_forgiven_later() -> None:
    election = Election(device(1), 0.0)
    liar = [Neighbour(device(9), whole=True)]
    assert election.follows(liar, 0, 1.0)
    gave_up = 1.0 + STARVED_S + 0.1
    assert not election.follows(liar, 0, gave_up)
    assert election.follows(liar, 0, gave_up + PASSED_OVER_S + 1)


def test_what_is_remembered_is_bounded_by_who_is_there() -> None:
    election = Election(device(5), 0.0)
    for number in range(1000):
        election.heard(device(number), 1, 0.0)
    election.follows(wanting(1, 2), 0, 0.0)
    assert len(election._words) <= 2
