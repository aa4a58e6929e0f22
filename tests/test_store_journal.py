"""The journal: what was recorded is there after a kill, what was not is not, and damage is told."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from driftseed.core import limits
from driftseed.core.errors import DiskFull, NotFound, StoreDamaged
from driftseed.core.lifecycle import Event, State, step
from driftseed.core.policy import History, Installed
from driftseed.core.updates import Facts, Reboot, Transition, UpdateRow
from driftseed.store.database import open_database, transaction
from driftseed.store.journal import Journal

ID = "1" * 32
TO_THE_END = [Event.START, *[Event.DONE] * 7]
"""Without a reboot: downloading, verifying, staging, installing, probing, committing, cleaning, succeeded."""
WAY = [State.WAITING]
for _event in TO_THE_END:
    WAY.append(step(WAY[-1], _event).next)


def update(deployment: str = ID, **changes: object) -> UpdateRow:
    row = UpdateRow(
        deployment_id=deployment,
        release="app",
        version="2",
        manifest_sha256="a" * 64,
        module="directory",
        artifact_sha256="b" * 64,
        artifact_length=1000,
        artifact_filename="app.tar",
        started=5.0,
        previous="1",
    )
    return replace(row, **changes)  # type: ignore[arg-type]  # keyword arguments of tests


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "agent.sqlite")
    yield journal
    journal.close()


def test_only_its_owner_reads_it(tmp_path: Path, journal: Journal) -> None:
    journal.set("a", "b")
    for path in tmp_path.glob("agent.sqlite*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_notes_and_counters_outlive_the_process(tmp_path: Path, journal: Journal) -> None:
    assert journal.get("fleet") is None
    journal.set("fleet", "x")
    journal.set("fleet", "y")
    assert [journal.next_sequence("report") for _ in range(3)] == [1, 2, 3]
    assert journal.next_sequence("other") == 1
    journal.close()
    again = Journal(tmp_path / "agent.sqlite")
    assert again.get("fleet") == "y"
    assert again.next_sequence("report") == 4
    again.close()


def test_an_update_goes_its_way_and_is_installed_with_its_commit(journal: Journal) -> None:
    journal.begin(update())
    for number, event in enumerate(TO_THE_END):
        assert ("app" in journal.installed()) == (number >= 7)
        assert journal.unfinished() == journal.updates()
        journal.advance(ID, event, at=float(number))
    row = journal.update(ID)
    assert row is not None
    assert row.state is State.SUCCEEDED
    assert row.finished == 7.0
    assert row.transitions == 5  # counted from staging to cleaning
    assert journal.unfinished() == []
    installed = journal.installed()["app"]
    assert (installed.version, installed.manifest_sha256, installed.deployment) == ("2", "a" * 64, ID)
    assert installed.artifact_sha256 == "b" * 64
    assert isinstance(installed, Installed)
    assert History(installed=journal.installed()).installed["app"].version == "2"
    history = journal.history(ID)
    assert [each.event for each in history] == TO_THE_END
    assert [each.state for each in history][1:] == [each.next for each in history][:-1]


def test_a_version_that_nobody_knows_any_more_is_not_installed(journal: Journal) -> None:
    journal.begin(update())
    for event in TO_THE_END:
        journal.advance(ID, event, at=1.0)
    journal.begin(update("2" * 32, version="3"))
    for event in (Event.START, *[Event.DONE] * 3, Event.FAILED, Event.UNSUPPORTED, Event.DONE):
        assert "app" in journal.installed()
        journal.advance("2" * 32, event, at=2.0)
    journal.advance("2" * 32, Event.DONE, at=3.0)
    row = journal.update("2" * 32)
    assert row is not None
    assert row.state is State.INCONSISTENT
    assert journal.installed() == {}


def test_the_first_thing_that_went_wrong_is_kept(journal: Journal) -> None:
    journal.begin(update())
    journal.advance(ID, Event.START, at=1.0)
    journal.advance(ID, Event.POSTPONED, at=2.0, reason="disk-full", detail="no space")
    row = journal.update(ID)
    assert row is not None
    assert (row.state, row.reason) == (State.WAITING, "disk-full")
    journal.advance(ID, Event.START, at=3.0)
    row = journal.update(ID)
    assert row is not None
    assert row.reason == ""
    for event in [Event.DONE] * 3:
        journal.advance(ID, event, at=4.0)
    journal.advance(ID, Event.FAILED, at=5.0, reason="module-failed", detail="first")
    journal.advance(ID, Event.FAILED, at=6.0, reason="module-timeout", detail="second")
    row = journal.update(ID)
    assert row is not None
    assert (row.reason, row.detail) == ("module-failed", "first")
    assert [each.detail for each in journal.history(ID)][-2:] == ["first", "second"]


def test_facts_are_recorded_with_their_step(journal: Journal) -> None:
    journal.begin(update())
    for event in TO_THE_END[:4]:
        journal.advance(ID, event, at=1.0)
    journal.advance(ID, Event.REBOOT, at=2.0, facts=Facts(reboot=Reboot.AUTOMATIC, boot_id="b"))
    row = journal.update(ID)
    assert row is not None
    assert (row.reboot, row.boot_id, row.rollback_reboots) == (Reboot.AUTOMATIC, "b", 0)


def test_progress_is_kept(journal: Journal) -> None:
    journal.begin(update())
    journal.note_progress(ID, 250, {"hub/direct": 50, "peers/lan": 200})
    row = journal.update(ID)
    assert row is not None
    assert (row.progress, row.bytes_from) == (0.25, {"hub/direct": 50, "peers/lan": 200})
    assert update(artifact_length=0).progress == 1.0


def test_a_new_attempt_starts_afresh_and_keeps_the_history(journal: Journal) -> None:
    journal.begin(update())
    with pytest.raises(RuntimeError, match="under way"):
        journal.begin(update(attempts=2))
    journal.advance(ID, Event.FAILED, at=1.0, reason="disk-full")
    journal.begin(update(attempts=2))
    row = journal.update(ID)
    assert row is not None
    assert (row.state, row.attempts, row.reason, row.finished) == (State.WAITING, 2, "", None)
    journal.advance(ID, Event.START, at=2.0)
    assert [(each.attempt, each.event) for each in journal.history(ID)] == [
        (1, Event.FAILED),
        (2, Event.START),
    ]


def test_ignored_events_record_nothing_and_impossible_ones_raise(journal: Journal) -> None:
    journal.begin(update())
    for event in TO_THE_END[:4]:
        journal.advance(ID, event, at=1.0)
    before = journal.update(ID)
    assert journal.advance(ID, Event.CANCELLED, at=9.0).next is State.INSTALLING
    assert journal.update(ID) == before
    with pytest.raises(RuntimeError):
        journal.advance(ID, Event.START, at=9.0)
    with pytest.raises(RuntimeError):
        journal.record(
            Transition(
                deployment_id=ID, state=State.WAITING, event=Event.START, next=State.DOWNLOADING, at=9.0
            )
        )
    assert journal.update(ID) == before
    with pytest.raises(NotFound):
        journal.advance("9" * 32, Event.START, at=9.0)


def test_an_update_that_goes_in_circles_is_aborted(journal: Journal) -> None:
    journal.begin(update())
    for _ in range(100):  # being offline is no circle
        journal.advance(ID, Event.START, at=1.0)
        journal.advance(ID, Event.INTERRUPTED, at=1.0)
        journal.advance(ID, Event.POSTPONED, at=1.0)
    for event in (*TO_THE_END[:4], Event.FAILED, Event.DONE):
        journal.advance(ID, event, at=1.0)
    steps = 0
    while journal.unfinished():
        steps += 1
        journal.advance(ID, Event.INTERRUPTED, at=1.0)
    row = journal.update(ID)
    assert row is not None
    assert row.state is State.INCONSISTENT
    assert row.reason == "aborted"
    assert row.transitions == limits.TRANSITIONS_MAX
    assert steps < limits.TRANSITIONS_MAX


@pytest.mark.parametrize("past", [0, 1])
def test_the_history_is_bounded(journal: Journal, past: int) -> None:
    """One step is made here besides those that are there."""
    journal.begin(update())
    connection = journal._connection
    connection.execute("BEGIN")
    for _ in range(limits.HISTORY_STEPS_MAX - 1 + past):
        connection.execute(
            "INSERT INTO transitions (deployment_id, attempt, state, event, next, at, reason, detail) "
            "VALUES (?, 1, 'waiting', 'start', 'downloading', 0, '', '')",
            (ID,),
        )
    connection.execute("COMMIT")
    journal.advance(ID, Event.START, at=1.0)
    assert len(journal.history(ID)) == limits.HISTORY_STEPS_MAX


def test_forgetting_is_refused_while_a_module_is_at_work(journal: Journal) -> None:
    journal.begin(update())
    for event in TO_THE_END[:4]:
        journal.advance(ID, event, at=1.0)
    with pytest.raises(RuntimeError):
        journal.remove(ID)
    for event in TO_THE_END[4:]:
        journal.advance(ID, event, at=1.0)
    journal.remove(ID)
    assert journal.update(ID) is None
    assert journal.history(ID) == []
    assert "app" in journal.installed()
    with pytest.raises(NotFound):
        journal.remove(ID)


_LOOP = """
import sys
from pathlib import Path
from driftseed.core.lifecycle import Event
from driftseed.store.journal import Journal
from test_store_journal import ID, TO_THE_END, update
journal = Journal(Path(sys.argv[1]))
attempt = 0
while True:
    attempt += 1
    journal.begin(update(attempts=attempt))
    for event in TO_THE_END:
        row = journal.advance(ID, event, at=1.0)
        print(attempt, row.next, flush=True)
"""


@pytest.mark.parametrize("steps", [1, 5, 9, 17, 40])
def test_a_kill_at_any_instant_loses_no_step_that_was_recorded(steps: int, tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", _LOOP, path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert process.stdout is not None
    with process.stdout as out:
        said = [out.readline().split() for _ in range(steps)]
        process.kill()
        process.wait()
        said += [line.split() for line in out if line.endswith(b"\n")]
    attempt, state = int(said[-1][0]), State(said[-1][1].decode())
    journal = Journal(path)
    row = journal.update(ID)
    assert row is not None
    # What was said last, or a step that was recorded and not said any more.
    way = [(attempt + more, state) for more in (0, 1) for state in WAY]
    said_last = way.index((attempt, state))
    assert (row.attempts, row.state) in way[said_last : said_last + 3]
    assert journal.history(ID)[-1].next is row.state or row.state is State.WAITING
    journal.close()


def test_a_damaged_database_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreDamaged, match="is damaged") as caught:
        Journal(path)
    assert str(path) in caught.value.hint
    assert path.read_bytes().startswith(b"this is no database")


def test_a_page_that_the_disk_has_changed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    journal = Journal(path)
    for number in range(50):
        journal.begin(update(f"{number:032x}"))
    journal.close()
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 64] = os.urandom(64)
    path.write_bytes(data)
    with pytest.raises(StoreDamaged):
        Journal(path)


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    open_database(path, ["CREATE TABLE a (b)", "CREATE TABLE c (d)"]).close()
    with pytest.raises(StoreDamaged, match="version 2"):
        open_database(path, ["CREATE TABLE a (b)"])
    open_database(path, ["CREATE TABLE a (b)", "CREATE TABLE c (d)"]).close()


def test_a_migration_happens_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    open_database(path, ["CREATE TABLE a (b)"]).close()
    with pytest.raises(sqlite3.OperationalError):
        open_database(path, ["CREATE TABLE a (b)", "CREATE TABLE c (d); CREATE TABLE broken ("])
    connection = open_database(path, ["CREATE TABLE a (b)", "CREATE TABLE c (d)"])
    assert connection.execute("PRAGMA user_version").fetchone()[0] == 2
    connection.close()


def test_a_full_disk_changes_nothing_and_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    connection = open_database(path, ["CREATE TABLE a (b)"])
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFull, match="no space left"), transaction(connection, path):
        connection.execute("INSERT INTO a VALUES (zeroblob(1000000))")
    assert not connection.in_transaction
    connection.execute("PRAGMA max_page_count = 10000")
    with transaction(connection, path):
        connection.execute("INSERT INTO a VALUES (1)")
    assert connection.execute("SELECT count(*) FROM a").fetchone()[0] == 1
    connection.close()


def test_a_database_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    connection = open_database(path, ["CREATE TABLE a (b)"])
    connection.execute("PRAGMA query_only = ON")  # SQLITE_READONLY, as on a disk that turned read-only
    with pytest.raises(StoreDamaged, match="cannot be used"), transaction(connection, path):
        connection.execute("INSERT INTO a VALUES (1)")
    connection.close()


def test_an_error_in_a_transaction_takes_all_of_it_back(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    connection = open_database(path, ["CREATE TABLE a (b)"])

    def fail() -> None:
        with transaction(connection, path):
            connection.execute("INSERT INTO a VALUES (1)")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert connection.execute("SELECT count(*) FROM a").fetchone()[0] == 0
    connection.close()
