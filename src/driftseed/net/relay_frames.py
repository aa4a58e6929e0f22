"""Frames of iroh's relay protocol, the server's side of it.

One binary WebSocket message is one frame: a type, as a QUIC variable-length integer (RFC 9000, section 16; one
byte for every type there is), and a body::

    type               direction  body
    00 challenge       to client  16 random bytes
    01 authentication  to server  32 key, 0x40, 64 signature
    02 confirmation    to client  -
    03 denial          to client  varint length, reason in UTF-8
    04 datagram        to server  32 destination key, 1 ECN, payload
    05 batch           to server  32 destination key, 1 ECN, 2 segment size, payload
    06, 07             to client  as 04, 05, with the source's key
    08 endpoint gone   to client  32 key
    09 ping, 0a pong   both       8 bytes, echoed
    0c restarting      to client  2 x 4: reconnect after, try for (milliseconds)
    0d status          to client  00 healthy, 01 same key connected elsewhere, 02 rate-limited (v2 only)

The signature is Ed25519 over BLAKE3's ``derive_key`` of the challenge.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from driftseed.core import limits
from driftseed.core.errors import PeerMisbehaved
from driftseed.core.ids import DeviceId, is_weak_key

PROTOCOLS: Final = ("iroh-relay-v2", "iroh-relay-v1")
"""WebSocket subprotocols, newest first."""
CHALLENGE_BYTES: Final = 16
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
PING_BYTES: Final = 8
CHALLENGE_CONTEXT: Final = "iroh-relay handshake v1 challenge signature"

_ECN_BYTES: Final = 1
_SEGMENT_BYTES: Final = 2
_RESTARTING: Final = struct.Struct(">BII")


class FrameType(IntEnum):
    """First byte of a frame."""

    CHALLENGE = 0x00
    AUTH = 0x01
    CONFIRM = 0x02
    DENY = 0x03
    DATAGRAM_TO = 0x04
    BATCH_TO = 0x05
    DATAGRAM_FROM = 0x06
    BATCH_FROM = 0x07
    GONE = 0x08
    PING = 0x09
    PONG = 0x0A
    RESTARTING = 0x0C
    STATUS = 0x0D


class Status(IntEnum):
    """How the relay sees a client's connection."""

    HEALTHY = 0
    ELSEWHERE = 1
    RATE_LIMITED = 2


@dataclass(frozen=True, slots=True)
class Forward:
    """A datagram or batch for another client."""

    destination: bytes
    """The key, 32 bytes."""
    kind: FrameType
    """What it becomes on its way out."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Is to be answered with the same 8 bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping of ours."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Unknown:
    """A type of a newer version: to be skipped."""

    type: int


ClientFrame: TypeAlias = Forward | Ping | Pong | Unknown


def read_varint(data: bytes, at: int = 0) -> tuple[int, int]:
    """Read a QUIC variable-length integer (RFC 9000, section 16). Returns it and where it ends.

    Raises:
        PeerMisbehaved: ``frame-truncated``.
    """
    if at >= len(data):
        raise PeerMisbehaved("a relay frame without a type", kind="frame-truncated")
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        raise PeerMisbehaved("a relay frame that ends inside a number", kind="frame-truncated")
    value = int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
    return value, at + size


def write_varint(value: int) -> bytes:
    """Write a QUIC variable-length integer, as short as can be.

    Raises:
        ValueError: below 0, or 2**62 and above.
    """
    for exponent in range(4):
        bits = 8 * (1 << exponent) - 2
        if 0 <= value < 1 << bits:
            return (value | exponent << bits).to_bytes(1 << exponent, "big")
    raise ValueError(f"{value} is no variable-length integer")


def challenge_frame(challenge: bytes) -> bytes:
    """Ask a client to prove its key."""
    return bytes([FrameType.CHALLENGE]) + challenge


def confirm_frame() -> bytes:
    """The client is in."""
    return bytes([FrameType.CONFIRM])


def deny_frame(reason: str) -> bytes:
    """The client is not let in, because."""
    text = reason.encode()
    return bytes([FrameType.DENY]) + write_varint(len(text)) + text


def gone_frame(key: bytes) -> bytes:
    """A client that sent to this one has gone."""
    return bytes([FrameType.GONE]) + key


def ping_frame(data: bytes) -> bytes:
    """Ask for a sign of life."""
    return bytes([FrameType.PING]) + data


def pong_frame(data: bytes) -> bytes:
    """Give one."""
    return bytes([FrameType.PONG]) + data


def restarting_frame(reconnect_in_ms: int, try_for_ms: int) -> bytes:
    """The relay goes down on purpose."""
    return _RESTARTING.pack(FrameType.RESTARTING, reconnect_in_ms, try_for_ms)


def status_frame(status: Status) -> bytes:
    """How the relay sees the connection (v2)."""
    return bytes([FrameType.STATUS, status])


def forwarded_frame(frame: bytes, kind: FrameType, source: bytes) -> bytes:
    """A frame as its destination gets it: destination replaced by source, the rest copied once."""
    return b"".join((bytes([kind]), source, memoryview(frame)[1 + KEY_BYTES :]))


def parse_client_frame(frame: bytes) -> ClientFrame:
    """Read what an authenticated client sent.

    Raises:
        PeerMisbehaved: ``frame-truncated``, ``frame-too-large``, ``frame-malformed``.
    """
    if len(frame) > limits.RELAY_FRAME_BYTES_MAX:
        raise PeerMisbehaved(f"a relay frame of {len(frame)} bytes", kind="frame-too-large")
    number, body = read_varint(frame)
    if number in (FrameType.DATAGRAM_TO, FrameType.BATCH_TO):
        if body != 1:
            raise PeerMisbehaved("a relay frame's type in more bytes than it needs", kind="frame-malformed")
        batch = number == FrameType.BATCH_TO
        head = body + KEY_BYTES + _ECN_BYTES + (_SEGMENT_BYTES if batch else 0)
        if len(frame) <= head:
            raise PeerMisbehaved("a relayed datagram of no bytes", kind="frame-truncated")
        if len(frame) - head > limits.RELAY_PAYLOAD_BYTES_MAX:
            raise PeerMisbehaved(f"a relayed payload of {len(frame) - head} bytes", kind="frame-too-large")
        kind = FrameType.BATCH_FROM if batch else FrameType.DATAGRAM_FROM
        return Forward(frame[body : body + KEY_BYTES], kind)
    if number in (FrameType.PING, FrameType.PONG):
        data = frame[body : body + PING_BYTES]
        if len(data) < PING_BYTES:
            raise PeerMisbehaved("a relay ping of too few bytes", kind="frame-truncated")
        return Ping(data) if number == FrameType.PING else Pong(data)
    if number in (FrameType.CHALLENGE, FrameType.AUTH, FrameType.CONFIRM, FrameType.DENY):
        raise PeerMisbehaved("a relay handshake that is over", kind="handshake-out-of-order")
    return Unknown(number)


def signed_message(challenge: bytes) -> bytes:
    """What a client signs to prove its key."""
    return blake3(challenge, derive_key_context=CHALLENGE_CONTEXT).digest()


def auth_frame(key: bytes, signature: bytes) -> bytes:
    """What a client answers to the challenge."""
    return bytes([FrameType.AUTH]) + key + bytes([SIGNATURE_BYTES]) + signature


def check_auth(frame: bytes, challenge: bytes) -> DeviceId:
    """Check a client's answer to the challenge, and return whose it is.

    Raises:
        PeerMisbehaved: ``frame-malformed``, ``handshake-out-of-order`` or ``auth-signature``.
    """
    number, at = read_varint(frame)
    if number != FrameType.AUTH:
        raise PeerMisbehaved(
            f"a relay frame {number:#04x} before proof of a key", kind="handshake-out-of-order"
        )
    key, size, signature = (
        frame[at : at + KEY_BYTES],
        frame[at + KEY_BYTES : at + KEY_BYTES + 1],
        frame[at + KEY_BYTES + 1 :],
    )
    if size != bytes([SIGNATURE_BYTES]) or len(signature) < SIGNATURE_BYTES:
        raise PeerMisbehaved("a relay client's proof that has not its form", kind="frame-malformed")
    if is_weak_key(key):
        raise PeerMisbehaved("a relay client with a key that is nobody's", kind="auth-signature")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature[:SIGNATURE_BYTES], signed_message(challenge))
    except (InvalidSignature, ValueError):
        raise PeerMisbehaved("a relay client that cannot prove its key", kind="auth-signature") from None
    return DeviceId(key.hex())
