"""The states of a connection: the whole product of states and events, and the book's bound."""

from __future__ import annotations

import itertools

import pytest

from driftseed.core.connection import TABLE, ConnectionBook, Event, State, step
from driftseed.core.ids import DeviceId

DEVICE = DeviceId("aa" * 32)
IMPOSSIBLE = {
    (State.UNKNOWN, Event.CONNECTED): "nobody dialled",
    (State.UNKNOWN, Event.FAILED): "nobody dialled",
    (State.UNKNOWN, Event.CLOSED): "there is no link",
    (State.DIALLING, Event.DIAL): "one dial at a time",
    (State.DIALLING, Event.CLOSED): "there is no link",
    (State.GREETING, Event.DIAL): "one dial at a time",
    (State.GREETING, Event.CONNECTED): "it is connected",
    (State.GREETING, Event.CLOSED): "there is no link; a greeting that ends has failed",
    (State.LOST, Event.CLOSED): "there is no link",
    (State.BACKING_OFF, Event.CONNECTED): "nobody dialled",
    (State.BACKING_OFF, Event.FAILED): "nobody dialled",
    (State.BACKING_OFF, Event.CLOSED): "there is no link",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_is_in_the_table_or_impossible_for_a_reason(state: State, event: Event) -> None:
    if (state, event) in IMPOSSIBLE:
        with pytest.raises(ValueError, match=event):
            step(state, event)
    else:
        assert step(state, event) is TABLE[state, event]


def walk(*events: Event) -> State:
    book = ConnectionBook()
    for at, event in enumerate(events):
        book.note(DEVICE, event, float(at))
    return book.get(DEVICE).state


def test_the_ways_that_connections_take() -> None:
    dial, connected, proved, failed, closed = Event
    assert walk(dial, connected, proved) is State.LINKED
    assert walk(dial, failed) is State.BACKING_OFF
    assert walk(dial, connected, failed) is State.BACKING_OFF
    assert walk(proved, closed) is State.LOST
    assert walk(dial, proved, connected, proved, closed, dial, failed, dial) is State.DIALLING


def test_time_and_reason_are_those_of_the_last_change() -> None:
    book = ConnectionBook()
    book.note(DEVICE, Event.DIAL, 1.0)
    failed = book.note(DEVICE, Event.FAILED, 3.0, "peer-unreachable")
    assert (failed.since, failed.reason) == (3.0, "peer-unreachable")
    book.note(DEVICE, Event.PROVED, 5.0)
    assert book.note(DEVICE, Event.FAILED, 7.0).since == 5.0


def test_what_is_remembered_is_bounded_and_links_are_never_forgotten() -> None:
    book = ConnectionBook(kept=10)
    for number in range(100):
        device = DeviceId(f"{number:064x}")
        book.note(device, Event.PROVED, 0.0)
        if number >= 5:
            book.note(device, Event.CLOSED, 0.0)
    assert len(book.values()) == 10
    assert [book.get(DeviceId(f"{number:064x}")).state for number in range(5)] == [State.LINKED] * 5
