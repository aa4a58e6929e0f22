"""The state of the connection to one device, as one table: pure.

::

    unknown --dial--> dialling --connected--> greeting --proved--> linked --closed--> lost --dial--> dialling ...
                         |                       |                                      |
                         +-------failed----------+--> backing-off --dial--> dialling    +--forgotten--> unknown

A device that dials us goes to ``linked`` from wherever it was: what we know of it is then known better. Over which
kind of path a link goes (own network, direct, relayed) changes while it lasts, and is not a state but a property.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from driftseed.core import limits
from driftseed.core.ids import DeviceId


class State(StrEnum):
    """Where a connection is."""

    UNKNOWN = "unknown"
    DIALLING = "dialling"
    GREETING = "greeting"
    """Connected; both sides prove that they are members."""
    LINKED = "linked"
    LOST = "lost"
    """It was there, and ended."""
    BACKING_OFF = "backing-off"
    """The last dial came to nothing; the next waits."""


class Event(StrEnum):
    """What happens to it."""

    DIAL = "dial"
    CONNECTED = "connected"
    PROVED = "proved"
    """Both sides are members, whoever dialled."""
    FAILED = "failed"
    CLOSED = "closed"


_S, _E = State, Event
TABLE: Final[Mapping[tuple[State, Event], State]] = {
    (_S.UNKNOWN, _E.DIAL): _S.DIALLING,
    (_S.LOST, _E.DIAL): _S.DIALLING,
    (_S.BACKING_OFF, _E.DIAL): _S.DIALLING,
    (_S.DIALLING, _E.CONNECTED): _S.GREETING,
    (_S.DIALLING, _E.FAILED): _S.BACKING_OFF,
    (_S.GREETING, _E.FAILED): _S.BACKING_OFF,
    # Both dialled at once, and one link was given up for the other: the other one is up.
    (_S.LINKED, _E.CONNECTED): _S.LINKED,
    (_S.LINKED, _E.FAILED): _S.LINKED,
    (_S.LINKED, _E.DIAL): _S.LINKED,
    (_S.LINKED, _E.CLOSED): _S.LOST,
    # It came to us while our own dial was under way, and went again before that ended.
    (_S.LOST, _E.CONNECTED): _S.GREETING,
    (_S.LOST, _E.FAILED): _S.BACKING_OFF,
    **{(state, _E.PROVED): _S.LINKED for state in State},
}
"""Every pair that can happen; any other is a fault of ours."""


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection to one device."""

    state: State
    since: float
    """Seconds on the clock of whoever keeps it."""
    reason: str = ""
    """Why the last attempt failed, as a reason token; empty when it did not."""


def step(state: State, event: Event) -> State:
    """The state after an event.

    Raises:
        ValueError: the event cannot happen in that state.
    """
    after = TABLE.get((state, event))
    if after is None:
        raise ValueError(f"{event} in state {state}")
    return after


class ConnectionBook:
    """The states of the connections to devices, at most ``kept``; those that ended longest ago go first."""

    def __init__(self, *, kept: int = limits.DIRECTORY_KEPT_MAX) -> None:
        self._kept = kept
        self._connections: OrderedDict[DeviceId, Connection] = OrderedDict()

    def get(self, device: DeviceId) -> Connection:
        """The connection to a device; unknown when there never was one."""
        return self._connections.get(device, Connection(State.UNKNOWN, 0.0))

    def values(self) -> list[Connection]:
        """All that are known, the longest unchanged first."""
        return list(self._connections.values())

    def note(self, device: DeviceId, event: Event, now: float, reason: str = "") -> Connection:
        """Let an event happen. Raises ValueError for one that cannot."""
        before = self.get(device)
        state = step(before.state, event)
        since = before.since if state is before.state else now
        self._connections[device] = Connection(state, since, reason)
        self._connections.move_to_end(device)
        self._shrink()
        return self._connections[device]

    def _shrink(self) -> None:
        resting = (State.UNKNOWN, State.LOST, State.BACKING_OFF)
        excess = len(self._connections) - self._kept
        for device in [each for each, one in self._connections.items() if one.state in resting][
            : max(excess, 0)
        ]:
            del self._connections[device]
