"""The lifecycle's table: walked in full, so that no state, event or power cut is left to chance."""

from __future__ import annotations

from itertools import product

import pytest

from driftseed.core import limits
from driftseed.core.lifecycle import (
    BY_STATE,
    DEFINITIONS,
    IGNORED,
    TABLE,
    TERMINAL,
    Effect,
    Event,
    Phase,
    State,
    resume,
    step,
)
from support_docs import state_diagram

NOT_OVER = sorted(set(State) - TERMINAL)


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_pair_is_listed_ignored_with_a_reason_or_a_mistake(state: State, event: Event) -> None:
    if (state, event) in TABLE:
        row = step(state, event)
        assert (state, event) not in IGNORED
        assert (row.state, row.event) == (state, event)
        assert row.effect is BY_STATE[row.next].effect
        assert row.resume is BY_STATE[row.next].resume
    elif (state, event) in IGNORED:
        assert IGNORED[state, event]
        assert (step(state, event).next, step(state, event).effect) == (state, Effect.NONE)
    else:
        with pytest.raises(RuntimeError, match=str(event)):
            step(state, event)


def test_every_state_is_defined_once() -> None:
    assert sorted(each.state for each in DEFINITIONS) == sorted(State)


@pytest.mark.parametrize("state", NOT_OVER)
def test_every_state_that_is_not_over_resumes_somewhere_and_says_why(state: State) -> None:
    assert resume(state) in State
    assert BY_STATE[state].why
    assert step(state, Event.INTERRUPTED).next is resume(state)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_what_is_over_stays_over(state: State) -> None:
    assert not any(source is state for source, _ in TABLE)
    with pytest.raises(RuntimeError):
        resume(state)


@pytest.mark.parametrize(
    ("state", "after"),
    [
        # Mender's LoadStateFromDb (state_machine.cpp); Download differs: see the table.
        (State.WAITING, State.WAITING),
        (State.DOWNLOADING, State.DOWNLOADING),
        (State.VERIFYING, State.VERIFYING),
        (State.STAGING, State.CLEANING_FAILED),
        (State.INSTALLING, State.CHECKING_ROLLBACK),
        (State.REBOOTING, State.VERIFYING_REBOOT),
        (State.VERIFYING_REBOOT, State.CHECKING_ROLLBACK),
        (State.PROBING, State.CHECKING_ROLLBACK),
        (State.COMMITTING, State.CHECKING_ROLLBACK),
        (State.CLEANING, State.CLEANING),
        (State.CHECKING_ROLLBACK, State.CHECKING_ROLLBACK),
        (State.ROLLING_BACK, State.ROLLING_BACK),
        (State.ROLLBACK_REBOOTING, State.VERIFYING_ROLLBACK_REBOOT),
        (State.VERIFYING_ROLLBACK_REBOOT, State.VERIFYING_ROLLBACK_REBOOT),
        (State.FAILING, State.FAILING),
        (State.FAILING_INCONSISTENT, State.FAILING_INCONSISTENT),
        (State.CLEANING_ROLLED_BACK, State.CLEANING_ROLLED_BACK),
        (State.CLEANING_INCONSISTENT, State.CLEANING_INCONSISTENT),
        (State.CLEANING_FAILED, State.CLEANING_FAILED),
    ],
)
def test_a_power_cut_resumes_where_menders_client_does(state: State, after: State) -> None:
    assert resume(state) is after


def ends_of(state: State) -> set[State]:
    """Every end that can be reached."""
    seen: set[State] = set()
    pending = [state]
    while pending:
        at = pending.pop()
        if at not in seen:
            seen.add(at)
            pending += [row.next for (source, _), row in TABLE.items() if source is at]
    return seen & TERMINAL


@pytest.mark.parametrize("state", NOT_OVER)
def test_every_state_is_reached_and_leads_to_an_end(state: State) -> None:
    assert ends_of(state)
    assert state is State.WAITING or any(row.next is state for row in TABLE.values())


@pytest.mark.parametrize("state", [each.state for each in DEFINITIONS if each.phase is Phase.INSTALLING])
def test_an_error_on_the_way_to_the_new_version_leads_back(state: State) -> None:
    """Error in X, generated: an error never leads forward, and before the commit never to the new version."""
    after = step(state, Event.FAILED).next
    if state is State.CLEANING:
        assert after is State.SUCCEEDED  # it is committed
    else:
        assert BY_STATE[after].phase is Phase.UNDOING
        assert State.SUCCEEDED not in ends_of(after)


@pytest.mark.parametrize("state", [each.state for each in DEFINITIONS if each.phase is Phase.INSTALLING])
def test_a_power_cut_on_the_way_to_the_new_version_leads_back_unless_it_was_asked_for(state: State) -> None:
    """Killed in X, generated."""
    new_version = State.SUCCEEDED in ends_of(resume(state))
    assert new_version == (state in {State.REBOOTING, State.CLEANING})


@pytest.mark.parametrize("state", [each.state for each in DEFINITIONS if each.phase is Phase.UNDOING])
def test_nothing_leads_from_the_way_back_to_the_new_version(state: State) -> None:
    assert ends_of(state) <= {State.ROLLED_BACK, State.FAILED, State.INCONSISTENT}


def test_nothing_that_may_have_been_touched_ends_as_failed() -> None:
    assert State.FAILED not in ends_of(State.INSTALLING)
    assert State.ROLLED_BACK not in ends_of(State.FAILING_INCONSISTENT)
    assert State.ROLLED_BACK not in ends_of(State.CLEANING_FAILED)


def test_the_longest_way_without_a_power_cut_fits_the_bound() -> None:
    """Everything fails as late as it can, with every reboot into the old version but the last in vain."""
    way = [
        Event.DONE,  # staging
        Event.REBOOT,
        Event.DONE,
        Event.DONE,
        Event.DONE,
        Event.FAILED,  # committing
        Event.DONE,
        Event.REBOOT,
        *(Event.DONE, Event.FAILED) * (limits.ROLLBACK_REBOOTS_MAX - 1),
        Event.DONE,
        Event.DONE,
        Event.DONE,
        Event.DONE,
    ]
    state = State.STAGING
    for event in way:
        state = step(state, event).next
    assert state is State.ROLLED_BACK
    assert len(way) + 1 < limits.TRANSITIONS_MAX


def test_the_diagram_shows_every_state_and_every_way() -> None:
    diagram = state_diagram()
    assert diagram.startswith("stateDiagram-v2\n")
    for (state, event), row in TABLE.items():
        if event is not Event.ABORTED and not (event is Event.INTERRUPTED and row.next is state):
            source, target = (each.replace("-", "_") for each in (state, row.next))
            name = "power cut" if event is Event.INTERRUPTED else str(event)
            assert any(
                line.startswith(f"    {source} --> {target}: ") and name in line.split(": ")[1].split(", ")
                for line in diagram.splitlines()
            )
    for state in State:
        assert state.replace("-", "_") in diagram
