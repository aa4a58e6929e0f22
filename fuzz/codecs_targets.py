"""Decoders that are pure functions of bytes."""

from __future__ import annotations

import contextlib
import math
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from choices import Choices, mutated
from driftseed.agent.config import AgentConfig, as_object, parse_config
from driftseed.agent.router import decode_path, request_path
from driftseed.agent.staged import parse_file_name
from driftseed.core import limits, reports, tickets, wire
from driftseed.core.addresses import format_address, parse_address, parse_host_port, parse_relay_url
from driftseed.core.errors import (
    ConfigInvalid,
    Misuse,
    PeerMisbehaved,
    ReportInvalid,
    RequestRefused,
    SelectorError,
    TicketDamaged,
    TicketExpired,
)
from driftseed.core.ids import DeviceId, FleetId
from driftseed.core.model import (
    Artifact,
    Deployment,
    EnrolmentKeys,
    HealthCheck,
    Hubs,
    NodeAddress,
    ReleaseManifest,
    artifact_target,
    decode_document,
    encode_document,
    manifest_target,
    torrent_target,
)
from driftseed.core.selectors import INVENTORY_KEYS, parse_selector, selectable
from driftseed.core.versions import compare_versions, version_key
from target import Target, Try, promise

DEVICE = DeviceId("d0" * 32)
FLEET = FleetId("f1" * 32)
DIGEST = "5e" * 32
NOW = 1_800_000_000.0
ADDRESS = NodeAddress(
    device=DEVICE, addrs=["192.0.2.7:4433", "[2001:db8::1]:4433"], relay="https://relay.example.org"
)
ARTIFACT = Artifact(
    filename="app.bin", length=100_000, sha256=DIGEST, torrent_sha256="7e" * 32, selector="arch=arm64"
)

RAW, SHAPED = b"\x00", b"\x01"
"""First byte of an input: the bytes as they are, or an example of a document with some values changed."""


def shaped(data: bytes, examples: list[Any], encode: Callable[[Any], bytes]) -> tuple[int, bytes]:
    """Number of an example, and the example as changed by the data; nothing when it cannot even be written."""
    choices = Choices(data)
    number = choices.below(len(examples))
    try:
        return number, encode(mutated(msgspec.to_builtins(examples[number], builtin_types=[bytes]), choices))
    except (OverflowError, RecursionError, msgspec.MsgspecError, UnicodeEncodeError):
        return number, b""


# --- the overlay's frames ---------------------------------------------------------------------------------

MESSAGES: list[wire.Message] = [
    wire.Hello(fleet=FLEET, certificate=b"certificate", clock=NOW),
    wire.Refused(reason="not-a-member", message="go away"),
    wire.JoinRequest(fleet=FLEET, invitation=b"invitation", clock=NOW),
    wire.JoinReply(certificate=b"certificate", hub_certificate=b"hub"),
    wire.State(
        timestamp_version=4, snapshot_version=3, ready=4, has=[DIGEST], wants=[DIGEST], addrs=["127.0.0.1:1"]
    ),
    wire.Notice(timestamp=b"{}"),
    wire.Observed(addr="192.0.2.1:1"),
    wire.Directory(entries=[wire.DirectoryEntry(address=ADDRESS, role="hub", age_ms=5)]),
    wire.ReportCarried(envelope=b"envelope"),
    wire.ReportStored(device=DEVICE, sequence=9),
    wire.ReportsLogged(epoch="e", last=3),
    wire.Fetching(sha256=DIGEST, done=7),
    wire.FindContent(sha256=DIGEST),
    wire.GetFile(name="metadata/timestamp.json", at_least=4),
    wire.FileHead(length=-1),
    wire.GetReports(epoch="e", since=2),
    wire.AskDial(port=7700, proof="0f" * 16),
    wire.Dialled(tried=True, reached=True, addr="192.0.2.1:7700"),
    wire.TunnelOpen(sha256=DIGEST),
    wire.TunnelAccept(accepted=True),
]


def _wire(_: Path) -> Try:
    def one(data: bytes) -> None:
        if data[:1] == SHAPED:
            number, body = shaped(data[1:], list(MESSAGES), msgspec.msgpack.encode)
            _frame(wire.encode(MESSAGES[number])[4:5] + body)
        else:
            _frame(data[1:])

    def _frame(frame: bytes) -> None:
        if len(frame) < wire.HEADER.size:
            frame = frame.ljust(wire.HEADER.size, b"\0")
        with contextlib.suppress(PeerMisbehaved):
            length, number = wire.parse_header(frame[: wire.HEADER.size], limits.FRAME_BYTES_MAX)
            promise(0 <= length < limits.FRAME_BYTES_MAX, "a frame longer than allowed")
            promise(0 <= number <= 255, "a type of more than a byte")
        with contextlib.suppress(PeerMisbehaved):
            message = wire.decode(frame[0], frame[1 : limits.FRAME_BYTES_MAX])
            if not isinstance(message, wire.UnknownFrame):
                again = wire.encode(message)
                decoded = wire.decode(again[4], again[5:])
                # A clock may be NaN, which equals nothing.
                promise(repr(decoded) == repr(message), "a frame does not come back as it went")

    return one


def _wire_seeds() -> Iterator[bytes]:
    for number, message in enumerate(MESSAGES):
        yield RAW + wire.encode(message)[4:]
        yield SHAPED + bytes([number, 0, 1, 2, 3])
    yield RAW + wire.encode(MESSAGES[0])
    yield RAW + b"\x10\x81\xa3has" + b"\x91" * 3000


# --- addresses, selectors, versions, names -------------------------------------------------------------------


def _addresses(_: Path) -> Try:
    def one(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        with contextlib.suppress(Misuse):
            written = parse_address(text)
            if all(host.is_address for host in written.hosts):
                address = NodeAddress(
                    device=written.device, addrs=[str(host) for host in written.hosts], relay=written.relay
                )
                promise(parse_address(format_address(address)) == written, "an address does not come back")
        with contextlib.suppress(Misuse):
            host = parse_host_port(text)
            promise(parse_host_port(str(host)) == host, "a host and port do not come back")
        with contextlib.suppress(Misuse):
            promise(parse_relay_url(text) == text, "a relay's URL is changed")
        with contextlib.suppress(Misuse):
            name = parse_file_name(text)
            promise(".." not in name.split("/") and not name.startswith("/"), "a name leads outside")
        with contextlib.suppress(RequestRefused, UnicodeEncodeError):
            text.encode("ascii")  # as the server demands of a request's target
            segments = decode_path(request_path(text))
            promise(not any("\0" in each for each in segments), "a path with a zero byte")

    return one


def _address_seeds() -> Iterable[bytes]:
    yield format_address(ADDRESS).encode()
    yield from (
        DEVICE.encode() + b"@hub.example.org:4433,[::1]:1;relay=none",
        DEVICE.encode() + b"@192.0.2.1:0",
        b"127.0.0.1:65535",
        b"[fe80::1%eth0]:5",
        b"https://user@host:99999/x",
        b"http://[::1",
        b"metadata/4.snapshot.json",
        b"targets/releases/app/../../x",
        b"/v1/submit/x/files/metadata%2F1.root.json?x#y",
        b"http://h/v1/status",
        "\u0661\u0662:\u0663".encode(),
        b"1.2.3.4:\xc2\xb2",
    )


VALUES = {"arch": "arm64", "site": "glasgow", "memory_mb": "2048", "os_version": "12"}


def _selectors(_: Path) -> Try:
    def one(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        promise(isinstance(selectable(text), str), "no text")
        for known in (None, INVENTORY_KEYS):
            with contextlib.suppress(SelectorError):
                selector = parse_selector(text, known_keys=known)
                promise(len(text) <= limits.SELECTOR_CHARS_MAX, "a selector longer than allowed")
                again = parse_selector(str(selector), known_keys=known)
                promise(
                    again.matches(VALUES) == selector.matches(VALUES)
                    and again.keys == selector.keys
                    and again.specificity == selector.specificity,
                    "a selector means something else when it is written again",
                )

    return one


def _selector_seeds() -> Iterable[bytes]:
    return (
        b"arch=arm64,site in (glasgow, oslo)",
        b"site notin (a),!canary,memory_mb>1024",
        b"os_version<13,arch!=x86_64",
        b"", b"  ", b"=", b"a in (", b"a in ()", b"!a,!b", b"a>x", b"a==b", b"\xff",
        "arch=\u00e4".encode(), b"a" * 1025, b"x in (" + b"a," * 300 + b"b)",
    )  # fmt: skip


def _versions(_: Path) -> Try:
    def one(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        left, _, right = text.partition("\n")
        order = compare_versions(left, right)
        promise(order == -compare_versions(right, left), "an order that is not antisymmetric")
        promise(compare_versions(left, left) == 0, "a version that is not as new as itself")
        promise((version_key(left) == version_key(right)) == (order == 0), "keys and comparison disagree")

    return one


def _version_seeds() -> Iterable[bytes]:
    return (
        b"1.0\n2.0", b"v1.2.3-rc.1+build\n1.2.3", b"2026.01~beta\n2026.1", b"\n", b"1.0-1\n1.0-2",
        "\u0661.\u00b2\n\u2160".encode(), b"0" * 5000 + b"1\n1", b"9" * 5000 + b"\n1", b"\xff\n\xfe",
    )  # fmt: skip


# --- documents, reports, settings ------------------------------------------------------------------------------

MANIFEST = ReleaseManifest(
    name="app",
    version="1.0",
    module="single-file",
    artifacts=[ARTIFACT],
    created="2027-01-15T08:00:00Z",
    meta={"path": "app.bin", "depth": [1, {"x": None}]},
    health=HealthCheck(command=["/bin/true"], timeout_s=5.0),
)
DOCUMENTS: list[Any] = [
    MANIFEST,
    Deployment(
        id="11" * 16, sequence=1, release="app", version="1.0", manifest_sha256=DIGEST, selector="arch=arm64"
    ),
    EnrolmentKeys(keys=[DEVICE]),
    Hubs(hubs=[ADDRESS]),
]


def _documents(_: Path) -> Try:
    kinds = [type(each) for each in DOCUMENTS]

    def one(data: bytes) -> None:
        if data[:1] == SHAPED:
            number, encoded = shaped(data[1:], DOCUMENTS, msgspec.json.encode)
            check(encoded, kinds[number])
        else:
            check(data[1:], kinds[Choices(data[1:2]).below(len(kinds))])
            check(data[2:], kinds[Choices(data[1:2]).below(len(kinds))])

    def check(data: bytes, kind: type[Any]) -> None:
        with contextlib.suppress(ValueError):
            document = decode_document(data, kind)
            promise(
                decode_document(encode_document(document), kind) == document, "a document does not come back"
            )
            if isinstance(document, ReleaseManifest):
                for artifact in document.artifacts:
                    for path in (
                        manifest_target(document.name, document.version),
                        artifact_target(document.name, document.version, artifact),
                        torrent_target(document.name, document.version, artifact),
                    ):
                        promise(
                            path.startswith("releases/") and not {"", ".", ".."} & set(path.split("/")),
                            "a target's path leads elsewhere",
                        )

    return one


def _document_seeds() -> Iterator[bytes]:
    for number, document in enumerate(DOCUMENTS):
        yield RAW + bytes([number]) + encode_document(document)
        yield SHAPED + bytes([number, 1, 2, 3])
    yield RAW + b"\x00" + b"[" * 3000
    yield RAW + b'\x00{"name": "\xff"}'


REPORT = reports.Report(
    device=DEVICE,
    sequence=3,
    time=NOW,
    agent_version="0.1.0",
    inventory={"arch": "arm64"},
    installed={"app": reports.InstalledReport(version="1.0", manifest_sha256=DIGEST)},
    updates=[
        reports.UpdateReport(
            deployment="1" * 32, release="app", version="2.0", state="downloading", progress=0.5
        )
    ],
)


def _report_bodies(_: Path) -> Try:
    def one(data: bytes) -> None:
        body = shaped(data[1:], [REPORT], msgspec.msgpack.encode)[1] if data[:1] == SHAPED else data[1:]
        with contextlib.suppress(ReportInvalid):
            report = reports.decode_report(body, DEVICE)
            promise(report.device == DEVICE, "a report on somebody else")
            fitted = reports.fit(report)
            promise(
                len(reports.encode_report(fitted)) <= reports.BODY_BYTES_MAX, "a report that does not fit"
            )

    return one


def _report_seeds() -> Iterator[bytes]:
    yield RAW + reports.encode_report(REPORT)
    yield from (SHAPED + bytes([0, number, 2, 3, 4, 5]) for number in range(12))


def _settings(_: Path) -> Try:
    def one(data: bytes) -> None:
        try:
            values = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if not isinstance(values, dict):
            return
        with contextlib.suppress(ConfigInvalid):
            config = parse_config(values)
            promise(isinstance(config, AgentConfig), "no settings")
            promise(parse_config(as_object(config)) == config, "settings do not come back")

    return one


def _setting_seeds() -> Iterable[bytes]:
    yield msgspec.json.encode(as_object(AgentConfig()))
    yield b'{"listen": "127.0.0.1:0"}'
    yield b'{"listen": "[::1]:5", "inventory": {"site": "x"}}'
    yield b'{"nonsense": 1}'


# --- tickets ------------------------------------------------------------------------------------------------------

TICKET = tickets.Ticket(
    fleet=tickets.fleet_of(b"{}"),
    name="harbour",
    root=b"{}",
    hubs=[ADDRESS],
    invitation=b"invitation",
    expires=NOW,
)


def _with_checksum(body: bytes) -> str:
    encoded = urlsafe_b64encode(tickets._checksum(body) + body).rstrip(b"=").decode()  # its own form
    return tickets.PREFIX + encoded


def _tickets(_: Path) -> Try:
    def one(data: bytes) -> None:
        if data[:1] == SHAPED:
            packed = shaped(data[1:], [TICKET], msgspec.msgpack.encode)[1]
            text = _with_checksum(zlib.compress(packed))
        elif data[:1] == b"\x02":
            text = _with_checksum(data[1:])
        else:
            text = data[1:].decode("utf-8", "surrogateescape")
        with contextlib.suppress(TicketDamaged, TicketExpired):
            ticket = tickets.decode_ticket(text, NOW - 1000)
            promise(ticket.fleet == tickets.fleet_of(ticket.root), "a ticket with another fleet's root")
            promise(math.isfinite(ticket.expires) or ticket.expires > 0, "a ticket that never began")
            promise(
                tickets.decode_ticket(tickets.encode_ticket(ticket), NOW - 1000) == ticket,
                "does not come back",
            )

    return one


def _ticket_seeds() -> Iterator[bytes]:
    yield RAW + tickets.encode_ticket(TICKET).encode()
    yield b"\x02" + zlib.compress(msgspec.msgpack.encode(TICKET))
    yield b"\x02" + zlib.compress(bytes(300_000), 9)
    yield from (SHAPED + bytes([0, number, 2, 3]) for number in range(6))


TARGETS: dict[str, Target] = {
    "wire": Target(_wire, _wire_seeds),
    "addresses": Target(_addresses, _address_seeds, 512),
    "selectors": Target(_selectors, _selector_seeds, 1100),
    "versions": Target(_versions, _version_seeds, 256),
    "documents": Target(_documents, _document_seeds),
    "report-bodies": Target(_report_bodies, _report_seeds),
    "settings": Target(_settings, _setting_seeds),
    "tickets": Target(_tickets, _ticket_seeds),
}
