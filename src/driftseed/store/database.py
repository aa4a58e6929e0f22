"""SQLite databases that are opened, checked and brought up to date in one way."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from driftseed.core.errors import DiskFull, StoreDamaged

_BUSY_TIMEOUT_S: Final = 5.0
_PRIMARY: Final = 0xFF
"""The low byte of an extended result code is the primary one."""
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNUSABLE: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors that people can do something about into ours.

    Raises:
        DiskFull: SQLITE_FULL. The transaction is not in the database.
        StoreDamaged: SQLITE_CORRUPT or SQLITE_NOTADB; or the disk does not let it be read or written.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Errors of the module itself, not of the engine, have no code.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY
        if code == sqlite3.SQLITE_FULL:
            raise DiskFull(
                f"no space left for {path}",
                hint="free some space on this file system; it is tried again",
            ) from error
        if code in _DAMAGE:
            raise _damaged(path, str(error)) from error
        if code in _UNUSABLE:
            raise StoreDamaged(
                f"{path} cannot be used: {error}", hint="check the disk, its mount and the file's owner"
            ) from error
        raise


def open_database(path: Path, migrations: Sequence[str], *, check: bool = True) -> sqlite3.Connection:
    """Open a database, make it if it is not there, and bring it up to date.

    Every commit is on the disk when it returns (write-ahead log, synchronous=FULL). The connection is in
    autocommit mode: use ``transaction``. Only its owner may read the file.

    Args:
        path: the file; its directory must exist.
        migrations: SQL scripts; the first N are those that a database of version N has seen. Append only.
        check: read the whole file for damage first. Costs time with its size.

    Raises:
        StoreDamaged: it is damaged, or a newer Driftseed wrote it.
        DiskFull: no space for it.
    """
    # SQLite would make it readable by others, as the umask has it; its helper files follow the file's mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_TIMEOUT_S)
    try:
        with database_errors(path):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            if check:
                _check(connection, path)
            _migrate(connection, path, migrations)
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """All of it or nothing; on the disk when the block is left.

    Raises:
        DiskFull: no space; nothing of it is in the database.
        StoreDamaged: the file is damaged.
    """
    with database_errors(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # After some errors, SQLITE_FULL among them, SQLite has rolled back already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _check(connection: sqlite3.Connection, path: Path) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _damaged(path, str(verdict))


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise StoreDamaged(
            f"{path} has version {version}, and this Driftseed knows versions up to {len(migrations)}",
            hint="a newer Driftseed wrote it: install that one again",
        )
    for number, script in enumerate(migrations[version:], start=version + 1):
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _damaged(path: Path, what: str) -> StoreDamaged:
    return StoreDamaged(
        f"{path} is damaged: {what.splitlines()[0]}",
        hint=f"check the disk; then move {path} and its -wal and -shm files away and start again: "
        "what it knew is learnt anew, installed software is not touched",
    )
