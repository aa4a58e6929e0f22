"""The newest report of every device, and who the devices are, on a hub's disk.

Everything here is synchronous and belongs to one thread; ``hub/observer.py`` owns that thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from driftseed.core.fleetview import Member, fold_devices
from driftseed.core.ids import DeviceId
from driftseed.core.reports import Report, decode_report
from driftseed.core.verified import VerifiedMember, VerifiedReport
from driftseed.store.database import database_errors, open_database, transaction
from driftseed.trust.report import report_body

_MIGRATIONS: Final = (
    """
    CREATE TABLE reports (
        device TEXT PRIMARY KEY,
        sequence INTEGER NOT NULL,
        envelope BLOB NOT NULL,
        body BLOB NOT NULL,
        doing TEXT NOT NULL,
        moved_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE members (
        device TEXT PRIMARY KEY,
        role TEXT NOT NULL,
        labels TEXT NOT NULL,
        expires REAL NOT NULL,
        heard_at REAL
    ) STRICT;
    """,
    # The log that hubs read of each other: the order in which the newest reports arrived here.
    """
    ALTER TABLE reports ADD COLUMN arrival INTEGER NOT NULL DEFAULT 0;
    UPDATE reports SET arrival = rowid;
    CREATE UNIQUE INDEX reports_by_arrival ON reports (arrival);
    CREATE TABLE log (epoch TEXT NOT NULL) STRICT;
    INSERT INTO log VALUES (lower(hex(randomblob(16))));
    """,
)

_KEEP_NEWEST: Final = """
    INSERT INTO reports VALUES (
        :device, :sequence, :envelope, :body, :doing, :now, (SELECT coalesce(max(arrival), 0) + 1 FROM reports)
    )
    ON CONFLICT (device) DO UPDATE SET
        sequence = excluded.sequence,
        envelope = excluded.envelope,
        body = excluded.body,
        doing = excluded.doing,
        arrival = excluded.arrival,
        moved_at = CASE WHEN doing = excluded.doing THEN moved_at ELSE excluded.moved_at END
    WHERE (excluded.sequence, excluded.envelope) > (sequence, envelope)
"""
"""Of two reports with one sequence number every hub keeps the same, like ``core.reports.ReportBook``."""


@dataclass(frozen=True, slots=True)
class ReadReport:
    """A report whose body was read: the same facts, signed and decoded."""

    signed: VerifiedReport
    body: bytes
    report: Report

    @property
    def doing(self) -> str:
        """What the device is at, so that two reports can be compared for progress; nothing when it rests."""
        (row,) = fold_devices((), {self.signed.device: self.report}, 0.0)
        update = row.doing
        if update is None:
            return ""
        return f"{update.deployment} {update.state} {update.attempts} {update.progress:.6f}"


def read_report(signed: VerifiedReport) -> ReadReport:
    """Decode what a device signed.

    Raises:
        ReportInvalid: malformed, or about another device.
    """
    body = report_body(signed)
    return ReadReport(signed, body, decode_report(body, signed.device))


@dataclass(frozen=True, slots=True)
class KnownFleet:
    """All that a hub knows, as of one moment."""

    members: tuple[Member, ...]
    """Devices only: no hubs, no publishers."""
    reports: Mapping[DeviceId, Report]
    moved_at: Mapping[DeviceId, float]
    """When a report first said what the device is at now, seconds since 1970 on the hub's clock."""


class ReportStore:
    """Reports and members in one SQLite file. Use it in the thread that made it.

    Args:
        path: the database; its directory must exist.

    Raises:
        StoreDamaged, DiskFull: see ``store.database``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = open_database(path, _MIGRATIONS)

    def write(
        self,
        reports: Iterable[ReadReport],
        members: Iterable[VerifiedMember],
        heard: Mapping[DeviceId, float],
        now: float,
    ) -> None:
        """Take in what is news, all in one commit. On the disk when it returns.

        Args:
            reports: in any order, any number of times; only a device's newest stays.
            members: as their certificates describe them; the latest stays.
            heard: when something was last heard of devices that are members, seconds since 1970.
            now: seconds since 1970.

        Raises:
            DiskFull: nothing of it was kept.
        """
        with transaction(self._database, self._path) as database:
            database.executemany(
                _KEEP_NEWEST,
                [
                    {
                        "device": each.signed.device,
                        "sequence": each.signed.sequence,
                        "envelope": each.signed.data,
                        "body": each.body,
                        "doing": each.doing,
                        "now": now,
                    }
                    for each in reports
                ],
            )
            database.executemany(
                "INSERT INTO members VALUES (?, ?, ?, ?, NULL) ON CONFLICT (device) DO UPDATE SET "
                "role = excluded.role, labels = excluded.labels, expires = excluded.expires",
                [
                    (each.device, each.role, msgspec.json.encode(dict(each.labels)).decode(), each.expires)
                    for each in members
                ],
            )
            database.executemany(
                "UPDATE members SET heard_at = max(coalesce(heard_at, 0), ?) WHERE device = ?",
                [(at, device) for device, at in heard.items()],
            )

    def newest(self, device: DeviceId) -> tuple[int, bytes] | None:
        """Sequence and envelope of a device's newest report."""
        with database_errors(self._path):
            row = self._database.execute(
                "SELECT sequence, envelope FROM reports WHERE device = ?", (device,)
            ).fetchone()
        return (row["sequence"], row["envelope"]) if row is not None else None

    def sequences(self) -> dict[DeviceId, int]:
        """Sequence of the newest report of every device."""
        with database_errors(self._path):
            rows = self._database.execute("SELECT device, sequence FROM reports").fetchall()
        return {DeviceId(row["device"]): row["sequence"] for row in rows}

    def log_end(self) -> tuple[str, int]:
        """Name of this log of reports, and the number of its newest entry."""
        with database_errors(self._path):
            row = self._database.execute(
                "SELECT epoch, (SELECT coalesce(max(arrival), 0) FROM reports) AS last FROM log"
            ).fetchone()
        return row["epoch"], row["last"]

    def logged(self, since: int, limit: int) -> list[tuple[int, bytes]]:
        """Number and envelope of the reports logged after ``since``, the oldest first, at most ``limit``."""
        with database_errors(self._path):
            rows = self._database.execute(
                "SELECT arrival, envelope FROM reports WHERE arrival > ? ORDER BY arrival LIMIT ?",
                (since, limit),
            ).fetchall()
        return [(row["arrival"], row["envelope"]) for row in rows]

    def load(self) -> KnownFleet:
        """Everything, decoded. What is on the disk was checked before it was written."""
        members, others = [], set()
        reports, moved_at = {}, {}
        with database_errors(self._path):
            for row in self._database.execute("SELECT device, role, labels, heard_at FROM members"):
                device = DeviceId(row["device"])
                if row["role"] != "agent":
                    others.add(device)
                    continue
                labels = msgspec.json.decode(row["labels"], type=dict[str, str])
                members.append(Member(device=device, labels=labels, heard_at=row["heard_at"]))
            for row in self._database.execute("SELECT device, body, moved_at FROM reports"):
                device = DeviceId(row["device"])
                if device not in others:
                    reports[device] = decode_report(row["body"], device)
                    moved_at[device] = row["moved_at"]
        return KnownFleet(tuple(members), reports, moved_at)

    def close(self) -> None:
        """Close the database."""
        self._database.close()
