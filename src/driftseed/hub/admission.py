"""How often each invitation was used: counted on disk, exactly, before a certificate goes out."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from driftseed.core.errors import TicketRefused
from driftseed.core.ids import DeviceId
from driftseed.store.database import open_database, transaction
from driftseed.trust.admission import Invitation

_MIGRATIONS: Final = (
    """
    CREATE TABLE uses (
        invitation TEXT NOT NULL,
        device TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (invitation, device)
    ) STRICT, WITHOUT ROWID
    """,
)


class Admissions:
    """The uses of invitations, in one SQLite file that any number of processes may share.

    Hubs do not ask each other: an invitation for K devices lets in at most K at each hub. Use it in the
    thread that made it. A commit takes as long as the disk needs.

    Args:
        path: the database; its directory must exist.

    Raises:
        StoreDamaged, DiskFull: see ``store.database``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = open_database(path, _MIGRATIONS)

    def admit(self, invitation: Invitation, device: DeviceId, now: float) -> bool:
        """Let a device in, if the invitation still has a use for it.

        A device that shows the same invitation again uses it no further: its first answer may have been lost.

        Args:
            invitation: verified, see ``trust.membership.Membership.applicant``.
            device: the key that the transport has proved the newcomer to hold.
            now: seconds since 1970.

        Returns:
            Whether it came for the first time. The use is on the disk.

        Raises:
            TicketRefused: used up.
            DiskFull: it could not be counted, so nobody was let in.
        """
        with transaction(self._database, self._path) as database:
            if database.execute(
                "SELECT 1 FROM uses WHERE invitation = ? AND device = ?", (invitation.id, device)
            ).fetchone():
                return False
            if self.used(invitation.id) >= invitation.uses:
                raise TicketRefused(
                    f"the ticket was for {invitation.uses} device{'s' * (invitation.uses != 1)}, "
                    "and as many have joined by it",
                    hint="ask for a new ticket: driftseed fleet invite --uses N",
                )
            database.execute("INSERT INTO uses VALUES (?, ?, ?)", (invitation.id, device, now))
        return True

    def used(self, invitation_id: str) -> int:
        """Devices that were let in by an invitation."""
        (count,) = self._database.execute(
            "SELECT count(*) FROM uses WHERE invitation = ?", (invitation_id,)
        ).fetchone()
        return int(count)

    def close(self) -> None:
        """Close the database."""
        self._database.close()
