"""What an agent must still know after a power cut: its updates, step by step, and what is installed.

A step is recorded, durably, before what it leads to is done. So after ``kill -9`` or a power cut the journal
names the state in which the device was, and the table in ``core.lifecycle`` says where to go on.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from driftseed.core import limits
from driftseed.core.errors import NotFound
from driftseed.core.lifecycle import BY_STATE, IGNORED, TERMINAL, Event, Phase, Row, State, step
from driftseed.core.updates import NO_FACTS, Facts, InstalledRelease, Reboot, Transition, UpdateRow
from driftseed.store.database import database_errors, open_database, transaction

_MIGRATIONS: Final = (
    """
    CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE counters (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE updates (
        deployment_id TEXT PRIMARY KEY,
        release TEXT NOT NULL, version TEXT NOT NULL, manifest_sha256 TEXT NOT NULL, module TEXT NOT NULL,
        artifact_sha256 TEXT NOT NULL, artifact_length INTEGER NOT NULL, artifact_filename TEXT NOT NULL,
        state TEXT NOT NULL, attempts INTEGER NOT NULL, transitions INTEGER NOT NULL,
        reboot TEXT NOT NULL, boot_id TEXT NOT NULL, rollback_reboots INTEGER NOT NULL,
        bytes_done INTEGER NOT NULL, bytes_from TEXT NOT NULL,
        reason TEXT NOT NULL, detail TEXT NOT NULL,
        started REAL NOT NULL, changed REAL NOT NULL, finished REAL, previous TEXT
    );
    CREATE TABLE transitions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        deployment_id TEXT NOT NULL REFERENCES updates ON DELETE CASCADE,
        attempt INTEGER NOT NULL, state TEXT NOT NULL, event TEXT NOT NULL, next TEXT NOT NULL,
        at REAL NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL
    );
    CREATE INDEX transitions_of ON transitions (deployment_id, id);
    CREATE TABLE installed (
        release TEXT PRIMARY KEY, version TEXT NOT NULL, manifest_sha256 TEXT NOT NULL,
        artifact_sha256 TEXT NOT NULL, deployment TEXT NOT NULL, at REAL NOT NULL
    ) WITHOUT ROWID;
    """,
)

_COLUMNS: Final = tuple(UpdateRow.__dataclass_fields__)
_PUT_UPDATE: Final = (
    f"INSERT INTO updates ({', '.join(_COLUMNS)}) "  # noqa: S608 - names of a dataclass's own fields
    f"VALUES ({', '.join(f':{name}' for name in _COLUMNS)}) "
    f"ON CONFLICT (deployment_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)


class Journal:
    """The agent's journal. One process, one thread.

    Every method that writes raises DiskFull, having changed nothing, when there is no space, and every
    method StoreDamaged when the file is damaged.

    Args:
        path: the database file.

    Raises:
        StoreDamaged: it is damaged, or a newer Driftseed wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = open_database(path, _MIGRATIONS)

    def close(self) -> None:
        """Close the database; the journal is of no use afterwards."""
        self._connection.close()

    # --- notes and counters -------------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        """A note, or None."""
        row = self._one("SELECT value FROM notes WHERE key = ?", key)
        return None if row is None else str(row["value"])

    def set(self, key: str, value: str) -> None:
        """Keep a note."""
        with transaction(self._connection, self._path) as connection:
            connection.execute(
                "INSERT INTO notes VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

    def next_sequence(self, key: str) -> int:
        """A number that was never given out under this key before: 1, 2, 3 and so on."""
        with transaction(self._connection, self._path) as connection:
            connection.execute(
                "INSERT INTO counters VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1", (key,)
            )
            (number,) = connection.execute("SELECT value FROM counters WHERE key = ?", (key,)).fetchone()
        return int(number)

    # --- updates ------------------------------------------------------------------------------------

    def begin(self, update: UpdateRow) -> UpdateRow:
        """Remember a new attempt at a deployment, in state ``waiting``.

        Args:
            update: what is to be installed; its ``attempts`` is the caller's to say. What the row says about
                an attempt's course (state, transitions, reason, finished) starts afresh.

        Raises:
            RuntimeError: an attempt at the same deployment is under way.
        """
        before = self.update(update.deployment_id)
        if before is not None and before.state not in TERMINAL:
            raise RuntimeError(f"deployment {update.deployment_id} is under way ({before.state})")
        fresh = replace(
            update,
            state=State.WAITING,
            transitions=0,
            reboot=Reboot.NO,
            boot_id="",
            rollback_reboots=0,
            reason="",
            detail="",
            finished=None,
        )
        with transaction(self._connection, self._path) as connection:
            connection.execute(_PUT_UPDATE, _values(fresh))
        return fresh

    def advance(
        self,
        deployment_id: str,
        event: Event,
        *,
        at: float,
        reason: str = "",
        detail: str = "",
        facts: Facts = NO_FACTS,
    ) -> Row:
        """Look the event up in the table and record the step; what it leads to may then be done.

        Once ``limits.TRANSITIONS_MAX`` steps were made since ``staging``, any event is an abort.

        Args:
            deployment_id: which update.
            event: what happened to it.
            at: now, seconds since 1970.
            reason: a token, where something went wrong. The first one of an attempt is kept as the update's.
            detail: the same in words.
            facts: what must be remembered with it.

        Returns:
            The row of the table. An ignored event records nothing; its row stays in the state.

        Raises:
            NotFound: no such update.
            RuntimeError: the event cannot happen in the update's state.
        """
        update = self._known(deployment_id)
        row = step(update.state, event)
        if (update.state, event) in IGNORED:
            return row
        if update.transitions >= limits.TRANSITIONS_MAX and BY_STATE[update.state].phase is not Phase.OVER:
            row = step(update.state, Event.ABORTED)
            reason = reason or Event.ABORTED
            detail = detail or f"{limits.TRANSITIONS_MAX} steps did not lead to an end"
        self.record(
            Transition(
                deployment_id=deployment_id,
                state=update.state,
                event=row.event,
                next=row.next,
                at=at,
                attempt=update.attempts,
                reason=reason,
                detail=detail,
            ),
            facts,
        )
        return row

    def record(self, transition: Transition, facts: Facts = NO_FACTS) -> None:
        """Write a step down. It is on the disk when this returns.

        In the same transaction, what is installed changes: with the step from ``committing`` on, as from
        there on nothing leads back to the old version; and with ``inconsistent``, when nobody knows any more.

        Raises:
            NotFound: no such update.
            RuntimeError: the update is not in the state that the step begins in.
        """
        update = self._known(transition.deployment_id)
        if update.state is not transition.state:
            raise RuntimeError(
                f"a step from {transition.state}, and the update {update.deployment_id} is {update.state}"
            )
        after = _after(update, transition, facts)
        with transaction(self._connection, self._path) as connection:
            connection.execute(_PUT_UPDATE, _values(after))
            connection.execute(
                "INSERT INTO transitions (deployment_id, attempt, state, event, next, at, reason, detail) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    transition.deployment_id,
                    update.attempts,
                    transition.state,
                    transition.event,
                    transition.next,
                    transition.at,
                    transition.reason,
                    transition.detail,
                ),
            )
            connection.execute(
                "DELETE FROM transitions WHERE deployment_id = ? AND id <= "
                "(SELECT MAX(id) FROM transitions) - ?",
                (transition.deployment_id, limits.HISTORY_STEPS_MAX),
            )
            if transition.state is State.COMMITTING and transition.next is State.CLEANING:
                connection.execute(
                    "INSERT OR REPLACE INTO installed VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        update.release,
                        update.version,
                        update.manifest_sha256,
                        update.artifact_sha256,
                        update.deployment_id,
                        transition.at,
                    ),
                )
            elif transition.next is State.INCONSISTENT:
                connection.execute("DELETE FROM installed WHERE release = ?", (update.release,))

    def note_progress(self, deployment_id: str, bytes_done: int, bytes_from: Mapping[str, int]) -> None:
        """Remember how far a download is. The caller sees to it that this is not too often: it is an fsync.

        Raises:
            NotFound: no such update.
        """
        update = replace(self._known(deployment_id), bytes_done=bytes_done, bytes_from=bytes_from)
        with transaction(self._connection, self._path) as connection:
            connection.execute(_PUT_UPDATE, _values(update))

    def update(self, deployment_id: str) -> UpdateRow | None:
        """One update, or None."""
        row = self._one("SELECT * FROM updates WHERE deployment_id = ?", deployment_id)
        return None if row is None else _update(row)

    def updates(self) -> list[UpdateRow]:
        """All updates, the one that changed last first."""
        with database_errors(self._path):
            rows = self._connection.execute("SELECT * FROM updates ORDER BY changed DESC, deployment_id")
            return [_update(row) for row in rows]

    def unfinished(self) -> list[UpdateRow]:
        """Updates that are under way, the one that was started first first."""
        under_way = [update for update in self.updates() if update.state not in TERMINAL]
        return sorted(under_way, key=lambda update: (update.started, update.deployment_id))

    def history(self, deployment_id: str) -> list[Transition]:
        """The steps of an update, of all its attempts, in order.

        Of an update that waits and starts over for weeks, only the newest are kept: among the last
        ``limits.HISTORY_STEPS_MAX`` of all updates.
        """
        with database_errors(self._path):
            rows = self._connection.execute(
                "SELECT deployment_id, attempt, state, event, next, at, reason, detail "
                "FROM transitions WHERE deployment_id = ? ORDER BY id",
                (deployment_id,),
            )
            return [
                Transition(
                    **{
                        **dict(row),
                        "state": State(row["state"]),
                        "event": Event(row["event"]),
                        "next": State(row["next"]),
                    }
                )
                for row in rows
            ]

    def remove(self, deployment_id: str) -> None:
        """Forget an update and its history. What is installed is not touched.

        Raises:
            NotFound: no such update.
            RuntimeError: a module is at work on it.
        """
        update = self._known(deployment_id)
        if BY_STATE[update.state].phase in {Phase.INSTALLING, Phase.UNDOING}:
            raise RuntimeError(f"deployment {deployment_id} is being installed or undone ({update.state})")
        with transaction(self._connection, self._path) as connection:
            connection.execute("DELETE FROM updates WHERE deployment_id = ?", (deployment_id,))

    # --- what is installed --------------------------------------------------------------------------

    def installed(self) -> Mapping[str, InstalledRelease]:
        """What is installed, by release name."""
        with database_errors(self._path):
            rows = self._connection.execute("SELECT * FROM installed ORDER BY release")
            return {row["release"]: InstalledRelease(**dict(row)) for row in rows}

    def _known(self, deployment_id: str) -> UpdateRow:
        update = self.update(deployment_id)
        if update is None:
            raise NotFound(f"no update of deployment {deployment_id}")
        return update

    def _one(self, query: str, *values: str) -> sqlite3.Row | None:
        with database_errors(self._path):
            row: sqlite3.Row | None = self._connection.execute(query, values).fetchone()
        return row


def _after(update: UpdateRow, transition: Transition, facts: Facts) -> UpdateRow:
    """The update once the step is made."""
    counted = BY_STATE[transition.next].phase in {Phase.INSTALLING, Phase.UNDOING}
    # What an update waited for is history when it starts.
    fresh = transition.event is Event.START
    reason, detail = ("", "") if fresh else (update.reason, update.detail)
    if not reason:
        reason, detail = transition.reason, transition.detail
    return replace(
        update,
        state=transition.next,
        transitions=update.transitions + counted,
        reboot=update.reboot if facts.reboot is None else facts.reboot,
        boot_id=update.boot_id if facts.boot_id is None else facts.boot_id,
        rollback_reboots=(
            update.rollback_reboots if facts.rollback_reboots is None else facts.rollback_reboots
        ),
        reason=reason,
        detail=detail,
        changed=transition.at,
        finished=transition.at if transition.next in TERMINAL else None,
    )


def _values(update: UpdateRow) -> dict[str, object]:
    values = {name: getattr(update, name) for name in _COLUMNS}
    values["bytes_from"] = json.dumps(dict(update.bytes_from), sort_keys=True)
    return values


def _update(row: sqlite3.Row) -> UpdateRow:
    return UpdateRow(
        **{
            **dict(row),
            "state": State(row["state"]),
            "reboot": Reboot(row["reboot"]),
            "bytes_from": json.loads(row["bytes_from"]),
        }
    )
