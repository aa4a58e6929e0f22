"""What may have so many bytes or entries: taken whole at its bound, refused for its size one past it."""

from __future__ import annotations

import base64
import hashlib
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftseed.core import limits
from driftseed.core.errors import MetadataInvalid, Misuse, NotAMember, ReportInvalid, TicketDamaged
from driftseed.core.ids import DeviceId
from driftseed.core.model import Hubs, ReleaseManifest, decode_document, encode_document
from driftseed.core.reports import ReportBook
from driftseed.core.tickets import PREFIX, Ticket, decode_ticket, encode_ticket, fleet_of
from driftseed.core.verified import VerifiedReport
from driftseed.install.process import Tail
from driftseed.trust.chain import TIMESTAMP_NAME
from driftseed.trust.device import FleetTrust
from driftseed.trust.membership import Membership, issue_certificate
from driftseed.trust.report import sign_report, verify_report
from driftseed.trust.repository import FleetRepository
from support_trust import FakeClock, Neighbour, Thief, add_release, make_artifact, make_fleet

NOW = 1_800_000_000.0
SECRET = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SECRET)
DEVICE = DeviceId(KEY.public_key().public_bytes_raw().hex())
FLEET = fleet_of(b"{}")


def membership() -> Membership:
    return Membership(FLEET, {DEVICE}, lambda: NOW)


def certificate(labels: dict[str, str] | None = None) -> bytes:
    return issue_certificate(
        KEY, fleet=FLEET, device=DEVICE, role="agent", labels=labels or {}, now=NOW, lifetime=1000.0
    )


def test_labels() -> None:
    full = {f"l{number}": "x" for number in range(limits.LABELS_MAX)}
    assert membership().check(certificate(full), DEVICE).labels == full
    with pytest.raises(Misuse, match=f"{limits.LABELS_MAX + 1} labels"):
        certificate({**full, "more": "x"})


def test_certificates() -> None:
    """None has that many bytes by itself: what is as long is looked at, and found to be none."""
    with pytest.raises(NotAMember) as looked_at:
        membership().check(bytes(limits.CERTIFICATE_BYTES_MAX), DEVICE)
    assert "are allowed" not in looked_at.value.message
    with pytest.raises(NotAMember, match=f"{limits.CERTIFICATE_BYTES_MAX} are allowed"):
        membership().check(bytes(limits.CERTIFICATE_BYTES_MAX + 1), DEVICE)


def test_signed_reports() -> None:
    def report(body: int) -> bytes:
        return sign_report(SECRET, certificate=certificate(), sequence=1, body=bytes(body))

    room = limits.REPORT_BYTES_MAX - len(report(1000)) + 1000
    assert len(report(room)) == limits.REPORT_BYTES_MAX
    assert verify_report(report(room), membership()).device == DEVICE
    with pytest.raises(Misuse, match=f"a report of {limits.REPORT_BYTES_MAX + 1} bytes"):
        report(room + 1)
    with pytest.raises(ReportInvalid, match=f"{limits.REPORT_BYTES_MAX} are allowed"):
        verify_report(report(room) + b"\0", membership())


def test_reports_that_are_carried() -> None:
    book = ReportBook(DEVICE)

    def carry(number: int) -> None:
        device = DeviceId(f"{number:064x}")
        book.add(VerifiedReport(device=device, sequence=1, data=b"%d" % number))

    for number in range(limits.REPORTS_CARRIED_MAX):
        carry(number)
    assert len(book) == limits.REPORTS_CARRIED_MAX
    carry(limits.REPORTS_CARRIED_MAX)
    assert len(book) == limits.REPORTS_CARRIED_MAX


def _ticket(packed: int) -> Ticket:
    """A ticket of so many bytes before it is compressed."""
    ticket = Ticket(fleet=FLEET, name="x", root=bytes(70_000), hubs=[], invitation=b"i", expires=NOW + 1)
    root = bytes(70_000 + packed - len(msgspec.msgpack.encode(ticket)))
    return msgspec.structs.replace(ticket, root=root, fleet=fleet_of(root))


def test_tickets_once_unpacked() -> None:
    largest = _ticket(limits.TICKET_UNPACKED_BYTES_MAX)
    assert decode_ticket(encode_ticket(largest), NOW) == largest
    too_large = _ticket(limits.TICKET_UNPACKED_BYTES_MAX + 1)
    with pytest.raises(Misuse, match="a ticket of"):
        encode_ticket(too_large)
    with pytest.raises(TicketDamaged, match="does not unpack to a ticket's size"):
        decode_ticket(_as_text(msgspec.msgpack.encode(too_large)), NOW)


def _as_text(packed: bytes) -> str:
    """What ``encode_ticket`` would write, if it were allowed."""
    body = zlib.compress(packed, 9)
    raw = hashlib.sha256(body).digest()[:4] + body
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_tickets() -> None:
    at_bound = PREFIX + "A" * (limits.TICKET_BYTES_MAX - len(PREFIX))
    with pytest.raises(TicketDamaged) as looked_at:
        decode_ticket(at_bound, NOW)
    assert "are allowed" not in looked_at.value.message
    with pytest.raises(TicketDamaged, match=f"{limits.TICKET_BYTES_MAX} are allowed"):
        decode_ticket(at_bound + "A", NOW)


def test_hubs_of_a_fleet() -> None:
    def hubs(count: int) -> bytes:
        return msgspec.json.encode({"hubs": [{"device": DEVICE}] * count})

    assert len(decode_document(hubs(limits.TICKET_HUBS_MAX), Hubs).hubs) == limits.TICKET_HUBS_MAX
    with pytest.raises(ValueError, match="hubs"):
        decode_document(hubs(limits.TICKET_HUBS_MAX + 1), Hubs)


@pytest.fixture
def repository(tmp_path: Path) -> FleetRepository:
    return make_fleet(tmp_path / "fleet", FakeClock())


def test_notices(tmp_path: Path, repository: FleetRepository) -> None:
    """JSON may end in white space: the same notice, as long as one may be, and a byte longer."""
    device = FleetTrust(tmp_path / "device", repository.first_root, FakeClock())
    good = repository.files()[TIMESTAMP_NAME].ljust(limits.TIMESTAMP_BYTES_MAX)
    assert device.check_notice(good).version >= 1
    with pytest.raises(MetadataInvalid, match=f"{limits.TIMESTAMP_BYTES_MAX} are allowed"):
        device.check_notice(good + b" ")


@pytest.mark.parametrize("past", [0, 1])
def test_deployments(tmp_path: Path, repository: FleetRepository, past: int) -> None:
    """A thief of the operators' keys signs very many: those past the bound are not even fetched."""
    thief = Thief(repository)

    def flood(payload: Any) -> None:
        for number in range(limits.DEPLOYMENTS_MAX + past):
            thief.add_document(payload, f"deployments/{number:032x}.json", b"%d" % number)

    neighbour = Neighbour(thief.publish({"deployments": flood}))
    device = FleetTrust(tmp_path / "device", repository.first_root, FakeClock())
    fleet = device.refresh(neighbour)
    asked = [name for name in neighbour.asked if "/deployments/" in name]
    assert len(asked) == limits.DEPLOYMENTS_MAX
    said = f"{limits.DEPLOYMENTS_MAX + 1} are signed, only {limits.DEPLOYMENTS_MAX} are looked at"
    assert any(said in each for each in fleet.disagreements) == bool(past)


def test_documents_that_are_signed(tmp_path: Path, repository: FleetRepository) -> None:
    artifact, torrent = make_artifact(b"small")
    content = tmp_path / "content"
    content.write_bytes(b"small")

    def manifest(version: str, notes: int) -> ReleaseManifest:
        return ReleaseManifest(
            name="app",
            version=version,
            module="script",
            artifacts=[artifact],
            created="",
            meta={"notes": "x" * notes},
        )

    room = limits.DOCUMENT_BYTES_MAX - len(encode_document(manifest("1", 0)))
    files = {artifact.sha256: (content, torrent)}
    repository.add_release(manifest("1", room), files)
    with pytest.raises(Misuse, match=f"would have {limits.DOCUMENT_BYTES_MAX + 1} bytes"):
        repository.add_release(manifest("2", room + 1), files)
    assert [str(each.manifest.version) for each in repository.releases()] == ["1"]
    assert add_release(repository, tmp_path, version="3") is not None


def test_output_of_a_module() -> None:
    tail = Tail(limits.MODULE_OUTPUT_BYTES_MAX)
    whole = "ab" * (limits.MODULE_OUTPUT_BYTES_MAX // 2)
    tail.add(whole.encode())
    assert (tail.text, tail.dropped) == (whole, 0)
    tail.add(b"!")
    assert (tail.text, tail.dropped) == (whole[1:] + "!", 1)
