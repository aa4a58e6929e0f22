"""What is signed, or claims to be: certificates, invitations, reports, notices, kits, TUF metadata."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical

from choices import Choices, mutated
from codecs_targets import DEVICE, FLEET, NOW, shaped
from driftseed.core.errors import (
    Misuse,
    NotAMember,
    ReportInvalid,
    TicketExpired,
    TicketRefused,
    TransportError,
    TrustError,
    WrongFleet,
)
from driftseed.core.ids import DeviceId
from driftseed.trust.admission import (
    ENTRY_CONTEXT,
    INVITATION_CONTEXT,
    RECEIPT_CONTEXT,
    apply_for,
    countersign,
    create_invitation,
)
from driftseed.trust.chain import TIMESTAMP_NAME, metadata_name, verify_chain
from driftseed.trust.device import FleetTrust
from driftseed.trust.hubkit import export_hub_kit, parse_hub_kit
from driftseed.trust.keys import signer_for
from driftseed.trust.membership import (
    MEMBERSHIP_CONTEXT,
    Certificate,
    Membership,
    issue_certificate,
)
from driftseed.trust.report import REPORT_CONTEXT, report_body, sign_report, verify_report
from driftseed.trust.repository import FleetRepository
from support_trust import FakeClock, Neighbour, add_release, make_fleet
from target import Target, Try, promise

ENROLMENT = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYS = [ENROLMENT.public_key().public_bytes_raw().hex()]
CERTIFICATE = Certificate(
    fleet=FLEET, device=DEVICE, role="agent", labels={"site": "x"}, not_before=NOW - 9, expires=NOW + 9
)


def _sealed(context: bytes, payload: bytes, key: Ed25519PrivateKey = ENROLMENT) -> bytes:
    """An envelope whose signature is good, whatever is in it."""
    return msgspec.msgpack.encode(
        {
            "payload": payload,
            "key": key.public_key().public_bytes_raw(),
            "signature": key.sign(context + b"\0" + payload),
        }
    )


def _envelope_of(data: bytes, example: Any, context: bytes) -> bytes:
    """Raw bytes; a mutated payload, well signed; or a payload of raw bytes, well signed."""
    match data[:1]:
        case b"\x01":
            return _sealed(context, shaped(data[1:], [example], msgspec.msgpack.encode)[1])
        case b"\x02":
            return _sealed(context, data[1:])
        case b"\x03":
            envelope = msgspec.msgpack.decode(_sealed(context, msgspec.msgpack.encode(example)))
            with contextlib.suppress(OverflowError, RecursionError, UnicodeEncodeError):
                return msgspec.msgpack.encode(mutated(envelope, Choices(data[1:])))
            return b""
        case _:
            return data[1:]


def _envelope_seeds(example: Any, context: bytes) -> Callable[[], Iterator[bytes]]:
    def seeds() -> Iterator[bytes]:
        payload = msgspec.msgpack.encode(example)
        yield b"\x00" + _sealed(context, payload)
        yield b"\x02" + payload
        yield b"\x02" + b"\x91" * 3000
        for number in range(6):
            yield b"\x01" + bytes([0, number, 2, 3])
            yield b"\x03" + bytes([0, number, 2, 3])

    return seeds


def _certificates(_: Path) -> Try:
    membership = Membership(FLEET, KEYS, lambda: NOW)

    def one(data: bytes) -> None:
        with contextlib.suppress(NotAMember):
            member = membership.check(_envelope_of(data, CERTIFICATE, MEMBERSHIP_CONTEXT), DEVICE)
            promise(member.device == DEVICE and member.expires > NOW, "somebody else's certificate was taken")
            promise(data[:1] != b"\x00" or data[1:] == GOOD_CERTIFICATE, "a forged certificate was taken")

    return one


GOOD_CERTIFICATE = _sealed(MEMBERSHIP_CONTEXT, msgspec.msgpack.encode(CERTIFICATE))


HUB = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
HUB_DEVICE = DeviceId(HUB.public_key().public_bytes_raw().hex())
PARTS = ("invitation", "entry", "receipt", "hub")
CONTEXTS = {
    "invitation": INVITATION_CONTEXT,
    "entry": ENTRY_CONTEXT,
    "receipt": RECEIPT_CONTEXT,
    "hub": MEMBERSHIP_CONTEXT,
}


class _Papers:
    """A member's chain taken apart, so that any part of it can be wrong and well signed all the same."""

    def __init__(self) -> None:
        self.membership = Membership(FLEET, KEYS, lambda: NOW)
        secret = create_invitation(
            ENROLMENT,
            fleet=FLEET,
            invitation_id="1" * 32,
            uses=3,
            expires=NOW + 999,
            labels={"site": "x"},
        )
        ticket = msgspec.msgpack.decode(secret)
        applicant = self.membership.applicant(apply_for(secret, DEVICE), DEVICE)
        hub_certificate = issue_certificate(
            ENROLMENT, fleet=FLEET, device=HUB_DEVICE, role="hub", labels={}, now=NOW - 99, lifetime=9999
        )
        self.chain = countersign(
            HUB, hub_certificate, applicant.invitation, applicant.application, device=DEVICE, now=NOW - 1
        )
        self._keys = {
            "invitation": ENROLMENT,
            "entry": Ed25519PrivateKey.from_private_bytes(ticket["key"]),
            "receipt": HUB,
            "hub": ENROLMENT,
        }
        parts = msgspec.msgpack.decode(self.chain)
        self._payloads = {
            part: msgspec.msgpack.decode(msgspec.msgpack.decode(parts[part])["payload"]) for part in PARTS
        }

    def changed(self, choices: Choices, parts: tuple[str, ...]) -> bytes:
        """The chain, or the application in it, with some values changed and every signature right."""
        payloads = dict(self._payloads)
        part = PARTS[choices.below(len(PARTS))]
        payloads[part] = mutated(payloads[part], choices)
        with contextlib.suppress(OverflowError, RecursionError, UnicodeEncodeError):
            return msgspec.msgpack.encode(
                {
                    each: _sealed(CONTEXTS[each], msgspec.msgpack.encode(payloads[each]), self._keys[each])
                    for each in parts
                }
            )
        return b""


def _members(_: Path) -> Try:
    papers = _Papers()

    def one(data: bytes) -> None:
        if data[:1] == b"\x01":
            chain = papers.changed(Choices(data[1:]), PARTS)
            application = papers.changed(Choices(data[1:]), PARTS[:2])
        else:
            chain = application = data[1:]
        with contextlib.suppress(NotAMember):
            member = papers.membership.check(chain, DEVICE)
            promise(member.device == DEVICE and member.expires > NOW, "somebody else's chain was taken")
            promise(data[:1] == b"\x01", "a forged chain was taken")
        with contextlib.suppress(NotAMember):
            papers.membership.check(chain, HUB_DEVICE)
            promise(False, "a chain was taken from another device")
        for shown in (application, chain):
            with contextlib.suppress(NotAMember, TicketRefused, TicketExpired):
                applicant = papers.membership.applicant(shown, DEVICE)
                promise(applicant.device == DEVICE, "somebody else's application was taken")
                promise(applicant.invitation.fleet == FLEET, "another fleet's ticket was taken")

    return one


def _member_seeds() -> Iterator[bytes]:
    yield b"\x00" + b"\x84" + b"\x91" * 3000
    yield b"\x00" + msgspec.msgpack.encode(dict.fromkeys(PARTS, b"x"))
    for part in range(4):
        for number in range(4):
            yield b"\x01" + bytes([part, 0, number, 2, 3])


def _reports(_: Path) -> Try:
    # The enrolment key is a device's key too here, so that reports can be signed as a device signs them.
    device = DeviceId(KEYS[0])
    certificate = issue_certificate(
        ENROLMENT, fleet=FLEET, device=device, role="agent", labels={}, now=NOW - 9, lifetime=99
    )
    membership = Membership(FLEET, KEYS, lambda: NOW)

    def one(data: bytes) -> None:
        example = {"certificate": certificate, "sequence": 5, "body": b"body"}
        with contextlib.suppress(NotAMember, ReportInvalid):
            report = verify_report(_envelope_of(data, example, REPORT_CONTEXT), membership)
            promise(report.device == device, "a report of somebody else was taken")
            report_body(report)

    return one


def _report_seeds() -> Iterator[bytes]:
    yield from _envelope_seeds({"certificate": b"x", "sequence": 5, "body": b"y"}, REPORT_CONTEXT)()
    yield b"\x00" + sign_report(bytes(range(32)), certificate=GOOD_CERTIFICATE, sequence=1, body=b"z")


# --- TUF ---------------------------------------------------------------------------------------------------


class _Fleet:
    """A repository, and files that a hostile source makes of it: with no key, or with all but the root's."""

    def __init__(self, scratch: Path) -> None:
        self.clock = FakeClock()
        self.repository: FleetRepository = make_fleet(scratch / "fleet", self.clock)
        add_release(self.repository, scratch)
        self.repository.add_deployment(deployment_id="1" * 32, release="app", version="1.0")
        self.before = self.repository.files()
        self.repository.set_hubs([])
        add_release(self.repository, scratch, version="2.0")
        self.repository.add_deployment(deployment_id="2" * 32, release="app", version="2.0")
        self.files = self.repository.files()
        self.chain = verify_chain(self.repository.first_root, self.files.get)
        self.changing = sorted(name for name in self.files if self.before.get(name) != self.files[name])
        self._signers = {
            role: signer_for(self.repository.private_key(role))
            for role in ("timestamp", "snapshot", "targets", "releases", "deployments", "fleet")
        }

    def hostile(self, data: bytes) -> dict[str, bytes]:
        """The repository as the attacker serves it."""
        choices = Choices(data)
        files = dict(self.files)
        match choices.below(4):
            case 0:
                files[self.changing[choices.below(len(self.changing))]] = choices.rest()
            case 1:
                name = self.changing[choices.below(len(self.changing))]
                at = choices.below(len(files[name]))
                replacement = choices.rest()
                files[name] = files[name][:at] + replacement + files[name][at + len(replacement) :]
            case 2:
                self._change_role(files, choices)
            case _:
                del files[self.changing[choices.below(len(self.changing))]]
                files["metadata/2.root.json"] = choices.rest()
        return files

    def _change_role(self, files: dict[str, bytes], choices: Choices) -> None:
        """A role's payload changed and signed with its own key, and the roles above it that name it."""
        role = ("timestamp", "snapshot", "targets", "releases", "deployments", "fleet")[choices.below(6)]
        payloads = {
            each: json.loads(files[self._name(each)])["signed"] for each in ("timestamp", "snapshot", role)
        }
        payloads[role] = mutated(payloads[role], choices)
        if role not in {"timestamp", "snapshot"}:
            files[self._name(role)] = self._sign(role, payloads[role])
            self._mention(payloads["snapshot"], f"{role}.json", files[self._name(role)])
        if role != "timestamp":
            files[self._name("snapshot")] = self._sign("snapshot", payloads["snapshot"])
            self._mention(payloads["timestamp"], "snapshot.json", files[self._name("snapshot")])
        files[TIMESTAMP_NAME] = self._sign("timestamp", payloads["timestamp"])

    @staticmethod
    def _mention(payload: Any, name: str, data: bytes) -> None:
        with contextlib.suppress(TypeError, KeyError, AttributeError):
            payload["meta"][name].pop("hashes", None)
            payload["meta"][name]["length"] = len(data)

    def _name(self, role: str) -> str:
        versions = {"snapshot": self.chain.snapshot.version, "targets": self.chain.targets.version}
        if role == "timestamp":
            return TIMESTAMP_NAME
        version = versions.get(role) or self.chain.delegated[role].version
        return metadata_name(role, version)

    def _sign(self, role: str, payload: Any) -> bytes:
        signer = self._signers[role]
        try:
            signature = signer.sign(str(encode_canonical(payload)).encode("utf-8"))
            document = {"signatures": [signature.to_dict()], "signed": payload}
            return json.dumps(document).encode("utf-8", "surrogatepass")
        except (ValueError, TypeError, RecursionError, FormatError):
            return b"{}"  # canonical JSON cannot say it, so nobody can sign it


def _metadata(scratch: Path) -> Try:
    fleet = _Fleet(scratch)
    honest = scratch / "honest"
    FleetTrust(honest, fleet.repository.first_root, fleet.clock).refresh(Neighbour(dict(fleet.before)))
    directory = scratch / "device"

    def one(data: bytes) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(honest, directory)
        device = FleetTrust(directory, fleet.repository.first_root, fleet.clock)
        before = device.load()
        promise(before is not None, "what was trusted does not load")
        files = fleet.hostile(data)
        try:
            after = device.refresh(Neighbour(files))
        except (TrustError, TransportError):
            promise(device.load() == before, "a refusal changed what is trusted")
            promise(
                device.serve(TIMESTAMP_NAME) == fleet.before[TIMESTAMP_NAME],
                "a refusal changed what is served",
            )
            return
        promise(after.timestamp_version >= 3, "an older timestamp was taken")
        again = FleetTrust(directory, fleet.repository.first_root, fleet.clock).load()
        promise(again == after, "what was trusted is not what a restart trusts")
        for deployment in after.deployments:
            promise(
                deployment.release.digest == deployment.deployment.manifest_sha256, "the roles do not agree"
            )

    return one


def _metadata_seeds() -> Iterator[bytes]:
    yield b"\x00\x00{}"
    yield b"\x00\x01" + b"[" * 3000
    yield b"\x00\x02" + b'{"signatures": [], "signed": {"_type": "timestamp"}}'
    yield b"\x01\x03\x00\x00\x20\xff"
    yield b"\x03\x00{}"
    for role in range(6):
        for number in range(3):
            yield bytes([2, role, 0, 7 * number + role, number, 1, 2, 3])


def _notices(scratch: Path) -> Try:
    fleet = _Fleet(scratch)
    device = FleetTrust(scratch / "device", fleet.repository.first_root, fleet.clock)
    payload = json.loads(fleet.files[TIMESTAMP_NAME])["signed"]

    def one(data: bytes) -> None:
        if data[:1] == b"\x01":
            notice = fleet._sign("timestamp", mutated(payload, Choices(data[1:])))  # one attacker
        else:
            notice = data[1:]
        with contextlib.suppress(TrustError):
            taken = device.check_notice(notice)
            promise(taken.version >= 1 and taken.data == notice, "a notice that is none")

    return one


def _notice_seeds() -> Iterator[bytes]:
    yield b'\x00{"signatures": [], "signed": {"_type": "timestamp", "version": 1}}'
    yield b"\x00" + b"[" * 3000
    yield b'\x00{"signatures": [{"keyid": "x", "sig": "\xff"}], "signed": {}}'
    yield from (b"\x01" + bytes([number % 4, number, number, 1, 2, 3]) for number in range(16))


def _kits(scratch: Path) -> Try:
    fleet = _Fleet(scratch)
    good = export_hub_kit(fleet.repository)
    kit = json.loads(good)

    def one(data: bytes) -> None:
        if data[:1] == b"\x01":
            try:
                text = json.dumps(mutated(kit, Choices(data[1:]))).encode("utf-8", "surrogatepass")
            except (RecursionError, TypeError):
                return
        else:
            text = data[1:]
        with contextlib.suppress(Misuse, WrongFleet):
            parsed = parse_hub_kit(text)
            promise(parsed.fleet == fleet.repository.fleet_id, "another fleet's kit")
            parsed.timestamp_key()
            promise(parsed.timestamp not in repr(parsed), "a kit that shows its key")

    return one


def _kit_seeds() -> Iterator[bytes]:
    yield b"\x00{}"
    yield b'\x00{"fleet": "\xff"}'
    yield b"\x00" + b"[" * 3000
    yield from (b"\x01" + bytes([number % 4, number, number, 1, 2, 3]) for number in range(16))


TARGETS: dict[str, Target] = {
    "certificates": Target(_certificates, _envelope_seeds(CERTIFICATE, MEMBERSHIP_CONTEXT)),
    "members": Target(_members, _member_seeds),
    "reports": Target(_reports, _report_seeds),
    "metadata": Target(_metadata, _metadata_seeds),
    "notices": Target(_notices, _notice_seeds),
    "hub-kits": Target(_kits, _kit_seeds),
}
