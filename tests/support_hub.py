"""Members of a made-up fleet, with real keys, certificates and signatures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import Deployment
from driftseed.core.reports import InstalledReport, Report, UpdateReport, encode_report
from driftseed.core.verified import VerifiedMember, VerifiedReport
from driftseed.trust.admission import (
    Invitation,
    TicketSecret,
    create_invitation,
    decode_part,
    open_invitation,
)
from driftseed.trust.membership import Membership, Role, issue_certificate
from driftseed.trust.report import sign_report, verify_report

FLEET = FleetId("f1" * 32)
NOW = 1_800_000_000.0
MANIFEST = "5e" * 32


@dataclass
class Clock:
    """A clock that a test moves."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class MadeUpFleet:
    """An enrolment key and the members that it made."""

    clock: Clock = field(default_factory=Clock)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @cached_property
    def membership(self) -> Membership:
        return Membership(FLEET, [self.key.public_key().public_bytes_raw().hex()], self.clock)

    def device(self, labels: Mapping[str, str] | None = None, role: Role = "agent") -> MadeUpDevice:
        return MadeUpDevice(self, dict(labels or {}), role)

    def invitation(self, uses: int, name: str = "1") -> Invitation:
        keys = [self.key.public_key().public_bytes_raw().hex()]
        data = create_invitation(
            self.key,
            fleet=FLEET,
            invitation_id=name.rjust(32, "0"),
            uses=uses,
            expires=NOW + 3600,
            labels={},
        )
        ticket = decode_part(data, TicketSecret)
        return open_invitation(ticket.invitation, frozenset(keys), FLEET)


@dataclass
class MadeUpDevice:
    fleet: MadeUpFleet
    labels: dict[str, str]
    role: Role

    @cached_property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.generate()

    @cached_property
    def id(self) -> DeviceId:
        return DeviceId(self.key.public_key().public_bytes_raw().hex())

    @cached_property
    def certificate(self) -> bytes:
        return issue_certificate(
            self.fleet.key,
            fleet=FLEET,
            device=self.id,
            role=self.role,
            labels=self.labels,
            now=NOW,
        )

    @property
    def member(self) -> VerifiedMember:
        return self.fleet.membership.check(self.certificate, self.id)

    def sign(self, sequence: int, body: bytes) -> VerifiedReport:
        envelope = sign_report(
            self.key.private_bytes_raw(), certificate=self.certificate, sequence=sequence, body=body
        )
        return verify_report(envelope, self.fleet.membership)

    def report(
        self,
        sequence: int = 1,
        updates: Iterable[UpdateReport] = (),
        installed: Mapping[str, str] | None = None,
        inventory: Mapping[str, str] | None = None,
    ) -> VerifiedReport:
        report = Report(
            device=self.id,
            sequence=sequence,
            time=NOW,
            agent_version="0.1.0",
            inventory=dict(inventory or {"arch": "arm64"}),
            installed={
                name: InstalledReport(version=version, manifest_sha256=MANIFEST)
                for name, version in (installed or {}).items()
            },
            updates=list(updates),
        )
        return self.sign(sequence, encode_report(report))


def update(
    state: str, *, number: int = 1, progress: float = 0.0, reason: str = "", **more: object
) -> UpdateReport:
    fields: dict[str, object] = {
        "deployment": f"{number:032x}",
        "release": "app",
        "version": f"{number}.0",
        "state": state,
        "progress": progress,
        "reason": reason,
        "started": NOW + number,
        **more,
    }
    return UpdateReport(**fields)  # type: ignore[arg-type]  # a test's shorthand


def deployment(number: int = 1, selector: str = "") -> Deployment:
    return Deployment(
        id=f"{number:032x}",
        sequence=number,
        release="app",
        version=f"{number}.0",
        manifest_sha256=MANIFEST,
        selector=selector,
        created="2027-01-15T08:00:00Z",
    )
