"""The relay protocol's bytes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.errors import PeerMisbehaved
from driftseed.core.limits import KIB, RELAY_FRAME_BYTES_MAX
from driftseed.net import relay_frames
from driftseed.net.identity import Identity
from driftseed.net.relay_frames import Forward, FrameType, Ping, Pong, Status, Unknown

KEY = bytes(range(32))
SOURCE = bytes(range(32, 64))
IDENTITY = Identity(b"\x07" * 32)
CHALLENGE = bytes(16)


@pytest.mark.parametrize(
    ("frame", "hexadecimal"),
    [
        (relay_frames.challenge_frame(bytes(range(16))), "00000102030405060708090a0b0c0d0e0f"),
        (relay_frames.confirm_frame(), "02"),
        (relay_frames.deny_frame("no"), "03026e6f"),
        (relay_frames.deny_frame("x" * 64), "034040" + "78" * 64),
        (relay_frames.gone_frame(b"\xaa" * 32), "08" + "aa" * 32),
        (relay_frames.ping_frame(b"01234567"), "093031323334353637"),
        (relay_frames.pong_frame(b"01234567"), "0a3031323334353637"),
        (relay_frames.restarting_frame(1000, 60_000), "0c000003e80000ea60"),
        (relay_frames.status_frame(Status.ELSEWHERE), "0d01"),
        (relay_frames.status_frame(Status.RATE_LIMITED), "0d02"),
    ],
)
def test_frames_to_clients_are_these_bytes(frame: bytes, hexadecimal: str) -> None:
    assert frame.hex() == hexadecimal


def test_a_challenge_is_signed_as_the_reference_client_signs_it() -> None:
    message = relay_frames.signed_message(CHALLENGE)
    assert len(message) == 32
    assert relay_frames.check_auth(
        relay_frames.auth_frame(bytes.fromhex(IDENTITY.device), IDENTITY.sign(message)), CHALLENGE
    ) == (IDENTITY.device)


def test_a_datagram_changes_its_key_and_type_and_nothing_else() -> None:
    frame = b"\x04" + KEY + b"\x02" + b"payload"
    parsed = relay_frames.parse_client_frame(frame)
    assert parsed == Forward(KEY, FrameType.DATAGRAM_FROM)
    out = relay_frames.forwarded_frame(frame, FrameType.DATAGRAM_FROM, SOURCE)
    assert out == b"\x06" + SOURCE + b"\x02" + b"payload"


def test_a_batch_keeps_its_segment_size() -> None:
    frame = b"\x05" + KEY + b"\x00" + b"\x04\xb0" + bytes(3000)
    parsed = relay_frames.parse_client_frame(frame)
    assert parsed == Forward(KEY, FrameType.BATCH_FROM)
    out = relay_frames.forwarded_frame(frame, FrameType.BATCH_FROM, SOURCE)
    assert out == b"\x07" + SOURCE + b"\x00" + b"\x04\xb0" + bytes(3000)


def test_pings_and_frames_of_newer_versions() -> None:
    assert relay_frames.parse_client_frame(b"\x0901234567") == Ping(b"01234567")
    assert relay_frames.parse_client_frame(b"\x0a01234567more") == Pong(b"01234567")
    assert relay_frames.parse_client_frame(b"\x30whatever") == Unknown(0x30)
    assert relay_frames.parse_client_frame(b"\x40\x99") == Unknown(0x99)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (b"", "frame-truncated"),
        (b"\x40", "frame-truncated"),
        (b"\x04", "frame-truncated"),
        (b"\x04" + KEY, "frame-truncated"),
        (b"\x04" + KEY + b"\0", "frame-truncated"),
        (b"\x05" + KEY + b"\0\0\x10", "frame-truncated"),
        (b"\x40\x04" + KEY + b"\0x", "frame-malformed"),
        (b"\x09short", "frame-truncated"),
        (b"\x01" + bytes(97), "handshake-out-of-order"),
        (b"\x04" + KEY + b"\0" + bytes(64 * KIB + 1), "frame-too-large"),
        (b"\x30" + bytes(RELAY_FRAME_BYTES_MAX), "frame-too-large"),
    ],
)
def test_what_a_client_may_not_send_has_a_name(frame: bytes, kind: str) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        relay_frames.parse_client_frame(frame)
    assert caught.value.kind == kind


def test_a_payload_of_just_the_allowed_size_passes() -> None:
    assert isinstance(relay_frames.parse_client_frame(b"\x04" + KEY + b"\0" + bytes(64 * KIB)), Forward)
    assert isinstance(relay_frames.parse_client_frame(b"\x05" + KEY + b"\0\0\1" + bytes(64 * KIB)), Forward)


@given(st.binary(max_size=200))
def test_no_bytes_of_a_client_do_more_than_misbehave(frame: bytes) -> None:
    with contextlib.suppress(PeerMisbehaved):
        relay_frames.parse_client_frame(frame)


@given(st.binary(max_size=200))
def test_no_bytes_prove_a_key_that_is_not_held(frame: bytes) -> None:
    with pytest.raises(PeerMisbehaved):
        relay_frames.check_auth(frame, CHALLENGE)


@given(st.integers(0, 96), st.integers(1, 255))
def test_a_proof_changed_anywhere_proves_nothing(position: int, change: int) -> None:
    key = bytes.fromhex(IDENTITY.device)
    frame = bytearray(relay_frames.auth_frame(key, IDENTITY.sign(relay_frames.signed_message(CHALLENGE))))
    frame[position] ^= change
    with pytest.raises(PeerMisbehaved):
        relay_frames.check_auth(bytes(frame), CHALLENGE)


def test_a_proof_for_another_challenge_proves_nothing() -> None:
    key = bytes.fromhex(IDENTITY.device)
    frame = relay_frames.auth_frame(key, IDENTITY.sign(relay_frames.signed_message(bytes(15) + b"\1")))
    with pytest.raises(PeerMisbehaved) as caught:
        relay_frames.check_auth(frame, CHALLENGE)
    assert caught.value.kind == "auth-signature"


@pytest.mark.parametrize(
    ("value", "hexadecimal"),
    # RFC 9000, appendix A.1, and the bounds of each length
    [
        (37, "25"),
        (15_293, "7bbd"),
        (494_878_333, "9d7f3e7d"),
        (151_288_809_941_952_652, "c2197c5eff14e88c"),
        (63, "3f"),
        (64, "4040"),
        (2**62 - 1, "f" * 16),
    ],
)
def test_variable_length_integers_are_those_of_quic(value: int, hexadecimal: str) -> None:
    assert relay_frames.write_varint(value).hex() == hexadecimal
    assert relay_frames.read_varint(bytes.fromhex(hexadecimal)) == (value, len(hexadecimal) // 2)


@given(st.integers(0, 2**62 - 1))
def test_variable_length_integers_come_back(value: int) -> None:
    data = relay_frames.write_varint(value)
    assert relay_frames.read_varint(data) == (value, len(data))


@pytest.mark.parametrize("value", [-1, 2**62])
def test_numbers_that_do_not_fit_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="variable-length"):
        relay_frames.write_varint(value)
