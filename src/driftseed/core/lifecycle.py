"""The life of one update on one device, as one table.

Every state names in one place what is done in it, where each event leads, and where a device goes on that
lost its power in it. The journal, the installer, the diagram in docs/architecture.md and the tests all read
this table, so they cannot drift apart.

The order of the states is that of Mender's update modules, protocol v3 (its document
``update-modules-v3-file-api.md`` and its client's ``state_machine.cpp``). It differs in these points:

- Content is fetched and verified first (``downloading``, ``verifying``); the module's ``Download`` call comes
  after that (``staging``), so a module never sees a byte that was not verified.
- ``probing`` is new: the release's own health check, before anything is committed.
- Which of the ends is reached is part of the state, not of a second machine beside it: from the point where
  it is known that the old version is back, or is not, the ways are separate.
- A ``Cleanup`` that fails after ``ArtifactCommit`` does not make the update a failed one: the new version runs.
- Reboots into the old version are bounded by ``limits.ROLLBACK_REBOOTS_MAX``, as Mender's document says, and
  lead to ``ArtifactFailure``; its client goes on to the general bound and calls no module any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where an update is. The values are in journals and reports, so they are never renamed."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGING = "staging"
    INSTALLING = "installing"
    REBOOTING = "rebooting"
    VERIFYING_REBOOT = "verifying-reboot"
    PROBING = "probing"
    COMMITTING = "committing"
    CLEANING = "cleaning"
    CHECKING_ROLLBACK = "checking-rollback"
    ROLLING_BACK = "rolling-back"
    ROLLBACK_REBOOTING = "rollback-rebooting"
    VERIFYING_ROLLBACK_REBOOT = "verifying-rollback-reboot"
    FAILING = "failing"
    FAILING_INCONSISTENT = "failing-inconsistent"
    CLEANING_ROLLED_BACK = "cleaning-rolled-back"
    CLEANING_INCONSISTENT = "cleaning-inconsistent"
    CLEANING_FAILED = "cleaning-failed"
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"
    INCONSISTENT = "inconsistent"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What can happen to an update."""

    START = "start"
    """The policy says go."""
    DONE = "done"
    """What is done in this state went well."""
    REBOOT = "reboot"
    """It went well, and the module asks for a reboot."""
    FAILED = "failed"
    """It went wrong."""
    UNSUPPORTED = "unsupported"
    """The module cannot roll back."""
    AGAIN = "again"
    """The device should have rebooted and did not (its boot id is the same)."""
    EXHAUSTED = "exhausted"
    """It went wrong, and that was the last time it was tried."""
    POSTPONED = "postponed"
    """It cannot be done now: no space, no peers, not the time for it."""
    CANCELLED = "cancelled"
    """It is not wanted any more: a newer deployment counts, or a person removed it."""
    INTERRUPTED = "interrupted"
    """The agent started and found the update in this state: the power went, or it was killed."""
    ABORTED = "aborted"
    """``limits.TRANSITIONS_MAX`` is reached: it goes round in circles."""


class Effect(StrEnum):
    """What is done on entering a state, after the state was recorded."""

    NONE = "none"
    DOWNLOAD = "download"
    VERIFY = "verify"
    STAGE = "stage"
    INSTALL = "install"
    REBOOT = "reboot"
    VERIFY_REBOOT = "verify-reboot"
    PROBE = "probe"
    COMMIT = "commit"
    CLEAN_UP = "clean-up"
    CHECK_ROLLBACK = "check-rollback"
    ROLL_BACK = "roll-back"
    ROLLBACK_REBOOT = "rollback-reboot"
    VERIFY_ROLLBACK_REBOOT = "verify-rollback-reboot"
    FAIL = "fail"


class Phase(StrEnum):
    """What a state means for the device's software."""

    FETCHING = "fetching"
    """Nothing is touched; interruptions are normal and are not counted."""
    INSTALLING = "installing"
    """On the way to the new version; what fails here is undone."""
    UNDOING = "undoing"
    """On the way back; what fails here does not stop it."""
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Definition:
    """All that there is to say about one state."""

    state: State
    phase: Phase
    effect: Effect = Effect.NONE
    on: Mapping[Event, State] = field(default_factory=dict)
    resume: State | None = None
    """Where to go on after a power cut in this state; None only where it is over."""
    why: str = ""
    """Why it resumes there."""


@dataclass(frozen=True, slots=True)
class Row:
    """One step: ``next`` is recorded, then ``effect`` is run; a power cut during it leads to ``resume``."""

    state: State
    event: Event
    next: State
    effect: Effect
    resume: State | None


_S = State
_E = Event

_GIVE_UP: Final = {_E.FAILED: _S.FAILED, _E.POSTPONED: _S.WAITING, _E.CANCELLED: _S.CANCELLED}
_TURN_BACK: Final = {_E.FAILED: _S.CHECKING_ROLLBACK, _E.ABORTED: _S.INCONSISTENT}
_LOSE_TRACK: Final = {_E.FAILED: _S.FAILING_INCONSISTENT, _E.ABORTED: _S.INCONSISTENT}

DEFINITIONS: Final[tuple[Definition, ...]] = (
    Definition(
        _S.WAITING,
        Phase.FETCHING,
        on={_E.START: _S.DOWNLOADING, _E.FAILED: _S.FAILED, _E.CANCELLED: _S.CANCELLED},
        resume=_S.WAITING,
        why="nothing was begun",
    ),
    Definition(
        _S.DOWNLOADING,
        Phase.FETCHING,
        Effect.DOWNLOAD,
        on={_E.DONE: _S.VERIFYING, **_GIVE_UP},
        resume=_S.DOWNLOADING,
        why="what was fetched is kept, and checked again piece by piece",
    ),
    Definition(
        _S.VERIFYING,
        Phase.FETCHING,
        Effect.VERIFY,
        on={_E.DONE: _S.STAGING, **_GIVE_UP},
        resume=_S.VERIFYING,
        why="reading a file again harms nothing",
    ),
    Definition(
        _S.STAGING,
        Phase.INSTALLING,
        Effect.STAGE,
        on={_E.DONE: _S.INSTALLING, _E.FAILED: _S.CLEANING_FAILED, _E.ABORTED: _S.FAILED},
        resume=_S.CLEANING_FAILED,
        why="a module that was killed in Download is called with Cleanup and nothing else; it is tried anew",
    ),
    Definition(
        _S.INSTALLING,
        Phase.INSTALLING,
        Effect.INSTALL,
        on={_E.DONE: _S.PROBING, _E.REBOOT: _S.REBOOTING, **_TURN_BACK},
        resume=_S.CHECKING_ROLLBACK,
        why="nobody knows how far the module came, and it may be what brought the device down",
    ),
    Definition(
        _S.REBOOTING,
        Phase.INSTALLING,
        Effect.REBOOT,
        on={_E.DONE: _S.VERIFYING_REBOOT, _E.AGAIN: _S.REBOOTING, **_TURN_BACK},
        resume=_S.VERIFYING_REBOOT,
        why="losing power is what was asked for; the module says whether the right system came up",
    ),
    Definition(
        _S.VERIFYING_REBOOT,
        Phase.INSTALLING,
        Effect.VERIFY_REBOOT,
        on={_E.DONE: _S.PROBING, **_TURN_BACK},
        resume=_S.CHECKING_ROLLBACK,
        why="a second, unasked reboot means that the new system does not stay up",
    ),
    Definition(
        _S.PROBING,
        Phase.INSTALLING,
        Effect.PROBE,
        on={_E.DONE: _S.COMMITTING, **_TURN_BACK},
        resume=_S.CHECKING_ROLLBACK,
        why="a device that goes down while it is being checked is not well: asking it again could go on for ever",
    ),
    Definition(
        _S.COMMITTING,
        Phase.INSTALLING,
        Effect.COMMIT,
        on={_E.DONE: _S.CLEANING, **_TURN_BACK},
        resume=_S.CHECKING_ROLLBACK,
        why="a module can roll back until Cleanup, so the old version is the certain one",
    ),
    Definition(
        _S.CLEANING,
        Phase.INSTALLING,
        Effect.CLEAN_UP,
        on={_E.DONE: _S.SUCCEEDED, _E.FAILED: _S.SUCCEEDED, _E.ABORTED: _S.SUCCEEDED},
        resume=_S.CLEANING,
        why="the new version is committed; what is left to remove is removed",
    ),
    Definition(
        _S.CHECKING_ROLLBACK,
        Phase.UNDOING,
        Effect.CHECK_ROLLBACK,
        on={_E.DONE: _S.ROLLING_BACK, _E.UNSUPPORTED: _S.FAILING_INCONSISTENT, **_LOSE_TRACK},
        resume=_S.CHECKING_ROLLBACK,
        why="it is a question; it is asked again",
    ),
    Definition(
        _S.ROLLING_BACK,
        Phase.UNDOING,
        Effect.ROLL_BACK,
        on={_E.DONE: _S.FAILING, _E.REBOOT: _S.ROLLBACK_REBOOTING, **_LOSE_TRACK},
        resume=_S.ROLLING_BACK,
        why="a rollback that was cut short is made again, from the start",
    ),
    Definition(
        _S.ROLLBACK_REBOOTING,
        Phase.UNDOING,
        Effect.ROLLBACK_REBOOT,
        on={
            _E.DONE: _S.VERIFYING_ROLLBACK_REBOOT,
            # The verification that follows is what counts (Mender: errors are ignored here).
            _E.FAILED: _S.VERIFYING_ROLLBACK_REBOOT,
            _E.AGAIN: _S.ROLLBACK_REBOOTING,
            _E.ABORTED: _S.INCONSISTENT,
        },
        resume=_S.VERIFYING_ROLLBACK_REBOOT,
        why="losing power is what was asked for",
    ),
    Definition(
        _S.VERIFYING_ROLLBACK_REBOOT,
        Phase.UNDOING,
        Effect.VERIFY_ROLLBACK_REBOOT,
        on={
            _E.DONE: _S.FAILING,
            _E.FAILED: _S.ROLLBACK_REBOOTING,
            _E.EXHAUSTED: _S.FAILING_INCONSISTENT,
            _E.ABORTED: _S.INCONSISTENT,
        },
        resume=_S.VERIFYING_ROLLBACK_REBOOT,
        why="it is a question; it is asked again",
    ),
    Definition(
        _S.FAILING,
        Phase.UNDOING,
        Effect.FAIL,
        on={
            _E.DONE: _S.CLEANING_ROLLED_BACK,
            _E.FAILED: _S.CLEANING_INCONSISTENT,
            _E.ABORTED: _S.INCONSISTENT,
        },
        resume=_S.FAILING,
        why="what it undoes must be undone to the end",
    ),
    Definition(
        _S.FAILING_INCONSISTENT,
        Phase.UNDOING,
        Effect.FAIL,
        on=dict.fromkeys((_E.DONE, _E.FAILED), _S.CLEANING_INCONSISTENT) | {_E.ABORTED: _S.INCONSISTENT},
        resume=_S.FAILING_INCONSISTENT,
        why="what it undoes must be undone to the end",
    ),
    Definition(
        _S.CLEANING_ROLLED_BACK,
        Phase.UNDOING,
        Effect.CLEAN_UP,
        on={_E.DONE: _S.ROLLED_BACK, _E.FAILED: _S.ROLLED_BACK, _E.ABORTED: _S.ROLLED_BACK},
        resume=_S.CLEANING_ROLLED_BACK,
        why="the old version is back; what is left to remove is removed",
    ),
    Definition(
        _S.CLEANING_INCONSISTENT,
        Phase.UNDOING,
        Effect.CLEAN_UP,
        on={_E.DONE: _S.INCONSISTENT, _E.FAILED: _S.INCONSISTENT, _E.ABORTED: _S.INCONSISTENT},
        resume=_S.CLEANING_INCONSISTENT,
        why="what is left to remove is removed",
    ),
    Definition(
        _S.CLEANING_FAILED,
        Phase.UNDOING,
        Effect.CLEAN_UP,
        on={_E.DONE: _S.FAILED, _E.FAILED: _S.FAILED, _E.ABORTED: _S.FAILED},
        resume=_S.CLEANING_FAILED,
        why="nothing was installed; what is left to remove is removed",
    ),
    Definition(_S.SUCCEEDED, Phase.OVER),
    Definition(_S.ROLLED_BACK, Phase.OVER),
    Definition(_S.FAILED, Phase.OVER),
    Definition(_S.INCONSISTENT, Phase.OVER),
    Definition(_S.CANCELLED, Phase.OVER),
)

BY_STATE: Final[Mapping[State, Definition]] = {each.state: each for each in DEFINITIONS}

TERMINAL: Final[frozenset[State]] = frozenset(each.state for each in DEFINITIONS if each.phase is Phase.OVER)
"""States in which nothing happens any more. ``succeeded``: the new version runs. ``failed``: nothing was
touched. ``rolled-back``: the old version is back. ``inconsistent``: nobody knows; a person is needed."""


def _row(state: State, event: Event, following: State) -> Row:
    reached = BY_STATE[following]
    return Row(state, event, following, reached.effect, reached.resume)


TABLE: Final[Mapping[tuple[State, Event], Row]] = {
    (each.state, event): _row(each.state, event, following)
    for each in DEFINITIONS
    for event, following in (
        *each.on.items(),
        *(((Event.INTERRUPTED, each.resume),) if each.resume is not None else ()),
    )
}
"""Every step that changes something, resuming after a power cut included."""


_MODULE_AT_WORK: Final = "a module at work is not interrupted: what it began is ended or undone"
_IGNORED_IN: Final[Mapping[Phase, str]] = {
    Phase.INSTALLING: _MODULE_AT_WORK,
    Phase.UNDOING: _MODULE_AT_WORK,
    Phase.OVER: "it is over already",
}
IGNORED: Final[Mapping[tuple[State, Event], str]] = {
    (State.WAITING, Event.POSTPONED): "it waits already",
    **{
        (each.state, Event.CANCELLED): _IGNORED_IN[each.phase]
        for each in DEFINITIONS
        if each.phase in _IGNORED_IN
    },
}
"""Events that may come in a state and change nothing, each with the reason."""


def step(state: State, event: Event) -> Row:
    """The step that an event makes.

    Returns:
        The row of the table; for an event that is ignored in this state, one that stays there and does nothing.

    Raises:
        RuntimeError: the event cannot happen in this state: a mistake in the program.
    """
    row = TABLE.get((state, event))
    if row is not None:
        return row
    if (state, event) in IGNORED:
        return Row(state, event, state, Effect.NONE, BY_STATE[state].resume)
    raise RuntimeError(f"an update in state {state} cannot meet the event {event}")


def resume(state: State) -> State:
    """Where an update goes on that was found in this state when the agent started.

    Raises:
        RuntimeError: it is over.
    """
    return step(state, Event.INTERRUPTED).next
