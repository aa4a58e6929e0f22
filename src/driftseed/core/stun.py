"""STUN messages, as far as finding out about a NAT needs them (RFC 8489, RFC 5780).

::

    0               2               4
    +---------------+---------------+--------------+----------------------+
    | message type  | length        | magic cookie | transaction, 96 bits |
    +---------------+---------------+--------------+----------------------+
    | attribute type| length        | value, padded to 32 bits ...        |

``length`` counts what follows the 20 bytes of the header. Only binding requests and successful answers are
read; everything else is no message of ours, and None: whoever listens on a UDP port gets all kinds of things.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

SocketAddr: TypeAlias = tuple[str, int]
"""An IP address in its shortest form, and a port."""

MAGIC_COOKIE: Final = 0x2112A442
TRANSACTION_BYTES: Final = 12
MESSAGE_BYTES_MAX: Final = 548
"""Bytes of a message where the path's MTU is not known (RFC 8489, section 6.1)."""

_REQUEST: Final = 0x0001
_RESPONSE: Final = 0x0101
_MAPPED_ADDRESS: Final = 0x0001
_CHANGE_REQUEST: Final = 0x0003
_XOR_MAPPED_ADDRESS: Final = 0x0020
_RESPONSE_PORT: Final = 0x0027
_CHANGE_IP: Final = 0x04
_CHANGE_PORT: Final = 0x02
_HEADER: Final = struct.Struct(">HHI12s")
_FAMILIES: Final = {1: 4, 2: 16}


@dataclass(frozen=True, slots=True)
class BindingRequest:
    """The question at what address the other side sees us.

    Args:
        transaction: 12 random bytes; the answer has the same.
        change_ip: answer from the server's other address (RFC 5780, section 7.2).
        change_port: answer from its other port.
        response_port: answer to this port of ours instead (section 7.5).
    """

    transaction: bytes
    change_ip: bool = False
    change_port: bool = False
    response_port: int | None = None

    def encode(self) -> bytes:
        """The message."""
        body = b""
        if self.change_ip or self.change_port:
            flags = (_CHANGE_IP if self.change_ip else 0) | (_CHANGE_PORT if self.change_port else 0)
            body += struct.pack(">HHI", _CHANGE_REQUEST, 4, flags)
        if self.response_port is not None:
            body += struct.pack(">HHHH", _RESPONSE_PORT, 2, self.response_port, 0)
        return _HEADER.pack(_REQUEST, len(body), MAGIC_COOKIE, self.transaction) + body


@dataclass(frozen=True, slots=True)
class BindingResponse:
    """The answer: the address from which the request came."""

    transaction: bytes
    mapped: SocketAddr

    def encode(self) -> bytes:
        """The message."""
        ip = ipaddress.ip_address(self.mapped[0])
        value = struct.pack(
            ">BBH", 0, 1 if ip.version == 4 else 2, self.mapped[1] ^ (MAGIC_COOKIE >> 16)
        ) + _masked(ip.packed, self.transaction)
        body = struct.pack(">HH", _XOR_MAPPED_ADDRESS, len(value)) + value
        return _HEADER.pack(_RESPONSE, len(body), MAGIC_COOKIE, self.transaction) + body


def decode(data: bytes) -> BindingRequest | BindingResponse | None:
    """Read a datagram from anybody; None when it is not one of the two, or damaged."""
    if not _HEADER.size <= len(data) <= MESSAGE_BYTES_MAX:
        return None
    kind, length, cookie, transaction = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if cookie != MAGIC_COOKIE or length != len(body) or length % 4:
        return None
    attributes = dict(_attributes(body))
    if kind == _REQUEST:
        change = attributes.get(_CHANGE_REQUEST, b"\0\0\0\0")
        port = attributes.get(_RESPONSE_PORT)
        if len(change) != 4 or (port is not None and len(port) < 2):
            return None
        return BindingRequest(
            transaction,
            change_ip=bool(change[3] & _CHANGE_IP),
            change_port=bool(change[3] & _CHANGE_PORT),
            response_port=None if port is None else int.from_bytes(port[:2]),
        )
    if kind == _RESPONSE:
        mapped = _address(attributes.get(_XOR_MAPPED_ADDRESS), transaction)
        if mapped is None:
            mapped = _address(attributes.get(_MAPPED_ADDRESS), None)
        return None if mapped is None else BindingResponse(transaction, mapped)
    return None


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Types and values; one that is cut short ends the list."""
    at = 0
    while at + 4 <= len(body):
        kind, length = struct.unpack_from(">HH", body, at)
        if at + 4 + length > len(body):
            return
        yield kind, body[at + 4 : at + 4 + length]
        at += 4 + (length + 3) // 4 * 4


def _address(value: bytes | None, transaction: bytes | None) -> SocketAddr | None:
    """An address attribute; ``transaction`` when it is masked (RFC 8489, section 14.2)."""
    if value is None or len(value) < 4 or _FAMILIES.get(value[1]) != len(value) - 4:
        return None
    port, raw = int.from_bytes(value[2:4]), value[4:]
    if transaction is not None:
        port ^= MAGIC_COOKIE >> 16
        raw = _masked(raw, transaction)
    return str(ipaddress.ip_address(raw)), port


def _masked(raw: bytes, transaction: bytes) -> bytes:
    mask = MAGIC_COOKIE.to_bytes(4) + transaction
    return bytes(each ^ mask[place] for place, each in enumerate(raw))
