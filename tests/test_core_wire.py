"""Frames: what is on the wire, and what a hostile peer can put there."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits, wire
from driftseed.core.errors import PeerMisbehaved
from driftseed.core.model import NodeAddress

FLEET, DEVICE, SHA = "11" * 32, "ab" * 32, "cd" * 32
FLEET_HEX, DEVICE_HEX, SHA_HEX = "3131" * 32, "6162" * 32, "6364" * 32
ADDR_HEX = "ae 3139322e302e322e313a34373131"

GOLDEN: tuple[tuple[wire.Message, str], ...] = (
    (
        wire.Hello(fleet=FLEET, certificate=b"\x01\x02", clock=1.5),
        (
            f"00000069 01 83 a5666c656574 d940{FLEET_HEX} ab6365727469666963617465 c4020102"
            " a5636c6f636b cb3ff8000000000000"
        ),
    ),
    (
        wire.Refused(reason="not-a-member", message="no"),
        "00000021 02 82 a6726561736f6e ac6e6f742d612d6d656d626572 a76d657373616765 a26e6f",
    ),
    (
        wire.JoinRequest(fleet=FLEET, invitation=b"\x03"),
        f"00000058 03 82 a5666c656574 d940{FLEET_HEX} aa696e7669746174696f6e c40103",
    ),
    (
        wire.JoinReply(certificate=b"\x04", hub_certificate=b"\x05"),
        "00000024 04 82 ab6365727469666963617465 c40104 af6875625f6365727469666963617465 c40105",
    ),
    (
        wire.State(
            timestamp_version=7,
            snapshot_version=3,
            ready=6,
            has=[SHA],
            addrs=["192.0.2.1:4711"],
            relay="https://r",
        ),
        (
            "0000009b 10 86 b174696d657374616d705f76657273696f6e 07 b0736e617073686f745f76657273696f6e 03"
            f" a57265616479 06 a3686173 91 d940{SHA_HEX} a56164647273 91 {ADDR_HEX}"
            " a572656c6179 a968747470733a2f2f72"
        ),
    ),
    (wire.Notice(timestamp=b"{}"), "00000010 11 81 a974696d657374616d70 c4027b7d"),
    (wire.Observed(addr="192.0.2.1:4711"), f"00000016 12 81 a461646472 {ADDR_HEX}"),
    (
        wire.Directory(
            entries=[
                wire.DirectoryEntry(
                    address=NodeAddress(device=DEVICE, addrs=["192.0.2.1:4711"], relay="https://r"),
                    role="hub",
                    age_ms=1500,
                )
            ]
        ),
        (
            f"00000097 13 81 a7656e7472696573 91 83 a761646472657373 83 a6646576696365 d940{DEVICE_HEX}"
            f" a56164647273 91 {ADDR_HEX} a572656c6179 a968747470733a2f2f72 a4726f6c65 a3687562"
            " a66167655f6d73 cd05dc"
        ),
    ),
    (wire.ReportCarried(envelope=b"\x06"), "0000000e 14 81 a8656e76656c6f7065 c40106"),
    (
        wire.ReportStored(device=DEVICE, sequence=300),
        f"00000057 15 82 a6646576696365 d940{DEVICE_HEX} a873657175656e6365 cd012c",
    ),
    (
        wire.ReportsLogged(epoch="e1", last=7),
        "00000011 16 82 a565706f6368 a26531 a46c617374 07",
    ),
    (
        wire.Fetching(sha256=SHA, done=5),
        f"00000051 17 82 a6736861323536 d940{SHA_HEX} a4646f6e65 05",
    ),
    (wire.FindContent(sha256=SHA), f"0000004b 20 81 a6736861323536 d940{SHA_HEX}"),
    (
        wire.GetFile(name="metadata/4.snapshot.json", at_least=7),
        "0000002a 21 82 a46e616d65 b86d657461646174612f342e736e617073686f742e6a736f6e a861745f6c65617374 07",
    ),
    (wire.FileHead(length=-1), "0000000a 22 81 a66c656e677468 ff"),
    (
        wire.GetReports(epoch="e1", since=7),
        "00000012 23 82 a565706f6368 a26531 a573696e6365 07",
    ),
    (wire.RenewRequest(certificate=b"\x01\x02"), "00000012 24 81 ab6365727469666963617465 c4020102"),
    (wire.RenewReply(certificate=b"\x03"), "00000011 25 81 ab6365727469666963617465 c40103"),
    (wire.AskHeld(sha256s=[SHA]), f"0000004d 26 81 a773686132353673 91 d940{SHA_HEX}"),
    (wire.Held(sha256s=[SHA]), f"0000004d 27 81 a773686132353673 91 d940{SHA_HEX}"),
    (
        wire.AskDial(port=7700, proof="0f" * 16),
        "00000032 28 82 a4706f7274 cd1e14 a570726f6f66 d920" + "3066" * 16,
    ),
    (
        wire.Dialled(tried=True, reached=True, addr="192.0.2.1:4711"),
        f"00000026 29 83 a57472696564 c3 a772656163686564 c3 a461646472 {ADDR_HEX}",
    ),
    (wire.TunnelOpen(sha256=SHA), f"0000004b 30 81 a6736861323536 d940{SHA_HEX}"),
    (wire.TunnelAccept(accepted=True), "0000000c 31 81 a86163636570746564 c3"),
)
MESSAGES = tuple(message for message, _ in GOLDEN)


def name_of(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, msgspec.Struct) else None


def parse(frame: bytes, max_length: int = limits.FRAME_BYTES_MAX) -> wire.Message | wire.UnknownFrame:
    length, number = wire.parse_header(frame[: wire.HEADER.size], max_length)
    body = frame[wire.HEADER.size :]
    assert len(body) == length
    return wire.decode(number, body)


def number_of(message: wire.Message) -> int:
    return wire.encode(message)[4]


def as_map(message: wire.Message) -> dict[str, Any]:
    found = msgspec.msgpack.decode(wire.encode(message)[wire.HEADER.size :])
    assert isinstance(found, dict)
    return found


# --- on the wire --------------------------------------------------------------------------------


def test_every_type_has_a_golden_frame() -> None:
    assert [type(message) for message in MESSAGES] == list(wire.TYPES.values())


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=[type(each).__name__ for each in MESSAGES])
def test_golden_bytes(message: wire.Message, golden: str) -> None:
    """These bytes are the protocol: a change here is a change that deployed devices will not understand."""
    frame = bytes.fromhex(golden)
    assert wire.encode(message).hex(" ") == frame.hex(" ")
    assert parse(frame) == message


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_fields_of_newer_nodes_are_ignored(message: wire.Message) -> None:
    newer = {**as_map(message), "mood": [1, {"deep": b"\x00"}], "zz": None}
    assert wire.decode(number_of(message), msgspec.msgpack.encode(newer)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_a_key_that_is_said_twice_counts_once(message: wire.Message) -> None:
    pairs = list(as_map(message).items())
    body = bytes([0x80 | (2 * len(pairs))]) + b"".join(
        msgspec.msgpack.encode(key) + msgspec.msgpack.encode(value) for key, value in pairs * 2
    )
    assert wire.decode(number_of(message), body) == message


def test_types_of_newer_nodes_are_skipped() -> None:
    for number in range(256):
        if number not in wire.TYPES:
            assert wire.decode(number, b"\xc1 anything") == wire.UnknownFrame(number)


@pytest.mark.parametrize("kind", [wire.State, wire.Directory], ids=lambda kind: kind.__name__)
def test_what_is_left_out_has_its_default(kind: type[Any]) -> None:
    (number,) = (number for number, each in wire.TYPES.items() if each is kind)
    assert wire.decode(number, b"\x80") == kind()


# --- headers ------------------------------------------------------------------------------------


def test_a_frame_of_the_greatest_length_is_read_and_one_more_is_not() -> None:
    bound = limits.FRAME_BYTES_MAX
    assert wire.parse_header(wire.HEADER.pack(bound, 0x11), bound) == (bound - 1, 0x11)
    with pytest.raises(PeerMisbehaved) as caught:
        wire.parse_header(wire.HEADER.pack(bound + 1, 0x11), bound)
    assert caught.value.kind == "frame-too-large"
    assert caught.value.message == f"a frame of {bound + 1} bytes where {bound} are allowed"


def test_a_frame_of_nothing_is_refused() -> None:
    assert wire.parse_header(wire.HEADER.pack(1, 0x11), 10) == (0, 0x11)
    with pytest.raises(PeerMisbehaved) as caught:
        wire.parse_header(wire.HEADER.pack(0, 0x11), 10)
    assert caught.value.kind == "frame-empty"


@given(st.binary(min_size=5, max_size=5), st.integers(1, 2**20))
def test_any_header_is_within_bounds_or_refused(header: bytes, max_length: int) -> None:
    kind = ""
    try:
        length, number = wire.parse_header(header, max_length)
        assert 0 <= length < max_length
        assert number == header[4]
    except PeerMisbehaved as error:
        kind = error.kind
    assert kind in {"", "frame-empty", "frame-too-large"}


# --- bodies -------------------------------------------------------------------------------------


def with_length(message: wire.Message, field: str, length: int) -> dict[str, Any]:
    """The message with a field of that many items, bytes or characters."""
    value: Any = as_map(message).get(field)
    made: Any
    if field in {"has", "wants"}:
        made = [SHA] * length
    elif field == "addrs":
        made = ["192.0.2.1:4711"] * length
    elif field == "entries":
        made = [{"address": {"device": DEVICE}}] * length
    elif isinstance(value, bytes):
        made = b"x" * length
    else:
        made = ("https://" + "r" * length)[:length]
    return {**as_map(message), field: made}


BOUNDS: tuple[tuple[type[Any], str, int], ...] = (
    (wire.Hello, "certificate", limits.CERTIFICATE_BYTES_MAX),
    (wire.Refused, "reason", 64),
    (wire.Refused, "message", 512),
    (wire.JoinRequest, "invitation", limits.CERTIFICATE_BYTES_MAX),
    (wire.JoinReply, "certificate", limits.CERTIFICATE_BYTES_MAX),
    (wire.JoinReply, "hub_certificate", limits.CERTIFICATE_BYTES_MAX),
    (wire.State, "has", limits.CONTENT_IDS_MAX),
    (wire.State, "wants", limits.CONTENT_IDS_MAX),
    (wire.State, "addrs", limits.ADDRESSES_PER_DEVICE_MAX),
    (wire.State, "relay", 256),
    (wire.Notice, "timestamp", limits.TIMESTAMP_BYTES_MAX),
    (wire.Observed, "addr", 64),
    (wire.Directory, "entries", limits.DIRECTORY_ENTRIES_MAX),
    (wire.ReportCarried, "envelope", limits.REPORT_BYTES_MAX),
    (wire.GetFile, "name", 512),
)


@pytest.mark.parametrize(("kind", "field", "bound"), BOUNDS, ids=str)
def test_a_field_is_read_at_its_bound_and_refused_one_past_it(
    kind: type[Any], field: str, bound: int
) -> None:
    (message,) = (each for each in MESSAGES if type(each) is kind)
    fits = msgspec.msgpack.encode(with_length(message, field, bound))
    assert len(getattr(wire.decode(number_of(message), fits), field)) == bound
    assert len(fits) < limits.FRAME_BYTES_MAX
    with pytest.raises(PeerMisbehaved) as caught:
        wire.decode(number_of(message), msgspec.msgpack.encode(with_length(message, field, bound + 1)))
    assert caught.value.kind == "frame-malformed"
    assert re.search(rf"`\$\.{field}`", caught.value.message)


def test_a_hello_at_its_bounds_fits_into_what_is_read_of_a_stranger() -> None:
    hello = wire.Hello(fleet=FLEET, certificate=b"c" * limits.CERTIFICATE_BYTES_MAX, clock=1e9)
    assert len(wire.encode(hello)) <= limits.HELLO_BYTES_MAX
    refused = wire.Refused(reason="r" * 64, message="m" * 512)
    assert len(wire.encode(refused)) <= limits.HELLO_BYTES_MAX


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (wire.Hello, {"fleet": "11" * 31}),
        (wire.Hello, {"fleet": "AB" * 32}),
        (wire.Hello, {"fleet": "11" * 32 + "\n"}),
        (wire.Hello, {"version": 0}),
        (wire.Hello, {"version": 256}),
        (wire.Hello, {"certificate": "text"}),
        (wire.Hello, {"clock": "noon"}),
        (wire.State, {"timestamp_version": -1}),
        (wire.State, {"timestamp_version": 1.5}),
        (wire.State, {"has": ["not hexadecimal" + "0" * 49]}),
        (wire.State, {"addrs": ["x" * 65]}),
        (wire.Directory, {"entries": [{"address": {"device": DEVICE, "relay": "ftp://r"}}]}),
        (wire.Directory, {"entries": [{"address": {"device": DEVICE}, "age_ms": -1}]}),
        (wire.Directory, {"entries": [{"role": "hub"}]}),
        (wire.GetFile, {"name": ""}),
        (wire.FileHead, {"length": -2}),
        (wire.FileHead, {"length": limits.TORRENT_BYTES_MAX + 1}),
        (wire.TunnelAccept, {"accepted": 1}),
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused(kind: type[Any], changes: dict[str, Any]) -> None:
    (message,) = (each for each in MESSAGES if type(each) is kind)
    with pytest.raises(PeerMisbehaved) as caught:
        wire.decode(number_of(message), msgspec.msgpack.encode({**as_map(message), **changes}))
    assert caught.value.kind == "frame-malformed"


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_what_is_no_map_or_cut_off_is_refused(message: wire.Message) -> None:
    body = wire.encode(message)[wire.HEADER.size :]
    cuts = {0, 1, len(body) // 2, len(body) - 1}
    for bad in (b"\x90", b"\xc0", b"\x01", *(body[:cut] for cut in cuts), body + b"\x00"):
        with pytest.raises(PeerMisbehaved) as caught:
            wire.decode(number_of(message), bad)
        assert caught.value.kind == "frame-malformed"


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01", b"\x81\x91"], ids=repr)
@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_nesting_as_deep_as_a_frame_allows_is_refused(message: wire.Message, opening: bytes) -> None:
    depth = limits.FRAME_BYTES_MAX // len(opening)
    for body in (opening * depth, b"\x81\xa4mood" + opening * (depth - 2)):
        with pytest.raises(PeerMisbehaved) as caught:
            wire.decode(number_of(message), body[: limits.FRAME_BYTES_MAX])
        assert caught.value.kind == "frame-malformed"


def test_a_claim_of_four_billion_items_takes_no_memory() -> None:
    for claim in (
        b"\x81\xa3has\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa5relay\xdb\xff\xff\xff\xff",
    ):
        with pytest.raises(PeerMisbehaved):
            wire.decode(0x10, claim)


@given(st.integers(0, 255), st.binary(max_size=400))
def test_any_bytes_are_a_message_or_skipped_or_refused(number: int, body: bytes) -> None:
    kind = ""
    try:
        message = wire.decode(number, body)
    except PeerMisbehaved as error:
        kind = error.kind
    else:
        assert isinstance(message, wire.UnknownFrame) == (number not in wire.TYPES)
    assert kind in {"", "frame-malformed"}


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=70)
    | st.binary(max_size=70)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_frame_with_any_field_changed_is_a_message_or_refused(
    message: wire.Message, data: st.DataObject
) -> None:
    fields = as_map(message)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(values)
    kind = ""
    try:
        read = wire.decode(number_of(message), msgspec.msgpack.encode(fields))
    except PeerMisbehaved as error:
        kind = error.kind
    else:
        assert not isinstance(read, wire.UnknownFrame)
        assert parse(wire.encode(read)) is not None
    assert kind in {"", "frame-malformed"}


@given(st.sampled_from(MESSAGES), st.integers(0, 10_000), st.integers(1, 255))
def test_a_frame_with_any_byte_flipped_is_a_message_or_refused(
    message: wire.Message, at: int, flip: int
) -> None:
    frame = bytearray(wire.encode(message))
    place = wire.HEADER.size + at % (len(frame) - wire.HEADER.size)
    frame[place] ^= flip
    kind = ""
    try:
        wire.decode(frame[4], bytes(frame[wire.HEADER.size :]))
    except PeerMisbehaved as error:
        kind = error.kind
    assert kind in {"", "frame-malformed"}
