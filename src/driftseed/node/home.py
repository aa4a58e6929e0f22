"""A member's data directory: whose fleet it is, with which key and certificate."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import NotFound, StoreDamaged, UnsafePermissions, WouldOverwrite, WrongFleet
from driftseed.core.ids import FleetId
from driftseed.core.model import Hex64, NodeAddress
from driftseed.core.tickets import fleet_of
from driftseed.net.identity import Identity
from driftseed.store.files import read_secret, write_secret

MEMBERSHIP_FILE: Final = "membership.json"
IDENTITY_FILE: Final = "identity.key"


class MembershipRecord(Struct, frozen=True, kw_only=True):
    """What a member remembers of its joining: ``membership.json``, 0600 as it names the fleet's insides."""

    fleet: Hex64
    name: str
    root: bytes
    """First root.json: the trust anchor, for ever."""
    certificate: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]
    enrolment_key: Hex64
    """The key that signed the certificate; believed until signed metadata names the enrolment keys."""
    hubs: list[NodeAddress] = []
    labels: dict[str, str] = {}
    joined: float = 0.0


class Home:
    """Paths and identity in a data directory.

    Args:
        directory: made if it is not there, 0700.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    def create(self) -> None:
        """Make the directory.

        Raises:
            UnsafePermissions: it is there, and others can put files of theirs into the places of ours.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.directory.stat()
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or status.st_uid not in {0, os.geteuid()}:
            raise UnsafePermissions(
                f"{self.directory} can be written by others "
                f"(mode {stat.S_IMODE(status.st_mode):04o}, user {status.st_uid})",
                hint=f"chmod 700 {self.directory}, and chown it to user {os.geteuid()}",
            )

    @property
    def socket(self) -> Path:
        """The agent's local API."""
        return self.directory / "agent.sock"

    def identity(self) -> Identity:
        """This device's key, made on first use."""
        return Identity.load_or_create(self.directory / IDENTITY_FILE)

    def adopt_identity(self, secret: bytes) -> Identity:
        """Take over the key that a kit brings, where there is none yet.

        Raises:
            WouldOverwrite: this directory has another key.
        """
        path = self.directory / IDENTITY_FILE
        if not path.exists():
            write_secret(path, secret)
        identity = self.identity()
        if identity.secret != secret:
            raise WouldOverwrite(
                f"{self.directory} has a key of its own ({identity.device}), the kit brings another",
                hint=f"make a kit for this hub: driftseed fleet hub-kit DIR FILE --for {identity.device}",
            )
        return identity

    def record(self) -> MembershipRecord | None:
        """What was remembered of joining; None before. Raises StoreDamaged or UnsafePermissions."""
        path = self.directory / MEMBERSHIP_FILE
        try:
            data = read_secret(path)
        except NotFound:
            return None
        try:
            record = msgspec.json.decode(data, type=MembershipRecord)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StoreDamaged(
                f"{path} cannot be read: {error}", hint="join again with a new ticket in a new directory"
            ) from None
        if fleet_of(record.root) != record.fleet:
            raise StoreDamaged(f"{path} names a fleet that its root is not of")
        return record

    def member(self) -> MembershipRecord:
        """Like ``record``, for those who need one. Raises NotFound before joining."""
        record = self.record()
        if record is None:
            raise NotFound(
                f"{self.directory} belongs to no fleet yet",
                hint="driftseed agent join TICKET --data " + str(self.directory),
            )
        return record

    def keep(self, record: MembershipRecord) -> None:
        """Remember, durably. Raises WrongFleet when the directory is another fleet's."""
        self.check_fleet(FleetId(record.fleet))
        write_secret(self.directory / MEMBERSHIP_FILE, msgspec.json.encode(record))

    def check_fleet(self, fleet: FleetId) -> None:
        """Make sure that the directory is new or this fleet's. Raises WrongFleet."""
        record = self.record()
        if record is not None and record.fleet != fleet:
            raise WrongFleet(
                f"{self.directory} belongs to fleet {record.name!r} ({record.fleet[:16]}), "
                f"this is fleet {fleet[:16]}",
                hint="use another data directory",
            )
