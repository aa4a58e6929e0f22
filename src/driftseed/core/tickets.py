"""Join tickets: all that a new device needs to know of a fleet, as one copy-and-paste string.

Layout::

    "driftseed1" + base64url( checksum[4] + zlib( MessagePack map ) )     (RFC 4648 section 5, no padding)

The checksum is the first 4 bytes of the SHA-256 of what follows it. It finds slips of the hand, nothing more:
the invitation inside is signed, and the fleet's id is the hash of the root that the ticket carries. Spaces and
line ends anywhere in the string are ignored, as mail and terminals put them there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import Misuse, TicketDamaged, TicketExpired
from driftseed.core.ids import FleetId
from driftseed.core.model import Hex64, NodeAddress

PREFIX: Final = "driftseed1"
_CHECKSUM_BYTES: Final = 4
_HINT_COPY: Final = "copy it again, whole: it begins with driftseed1"


class Ticket(Struct, frozen=True, kw_only=True):
    """What a join ticket says."""

    fleet: Hex64
    """SHA-256 of ``root``."""
    name: Annotated[str, Meta(max_length=128)]
    root: bytes
    """The fleet's first root.json: the new device's trust anchor."""
    hubs: Annotated[list[NodeAddress], Meta(max_length=limits.TICKET_HUBS_MAX)]
    invitation: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]
    """The admission secret: an invitation signed by the enrolment key, and the private key that it names."""
    expires: float
    """Seconds since 1970: the invitation's expiry, so that a person hears of it before dialling anybody."""


_decoder: Final = msgspec.msgpack.Decoder(Ticket)
_encoder: Final = msgspec.msgpack.Encoder()


def fleet_of(root: bytes) -> FleetId:
    """The id of the fleet that has this first root."""
    return FleetId(hashlib.sha256(root).hexdigest())


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]


def encode_ticket(ticket: Ticket) -> str:
    """A ticket as text.

    Raises:
        Misuse: it would be longer than TICKET_BYTES_MAX characters, or ``fleet`` is not of ``root``.
    """
    if ticket.fleet != fleet_of(ticket.root):
        raise Misuse(f"fleet {ticket.fleet[:16]} does not have this root")
    packed = _encoder.encode(ticket)
    body = zlib.compress(packed, 9)
    text = PREFIX + base64.urlsafe_b64encode(_checksum(body) + body).rstrip(b"=").decode("ascii")
    if len(text) > limits.TICKET_BYTES_MAX or len(packed) > limits.TICKET_UNPACKED_BYTES_MAX:
        raise Misuse(
            f"a ticket of {len(text)} characters where {limits.TICKET_BYTES_MAX} are allowed",
            hint="name fewer hubs, or use fewer root keys",
        )
    return text


def decode_ticket(text: str, now: float) -> Ticket:
    """Read a ticket.

    Args:
        text: from a person; spaces and line ends in it are ignored.
        now: seconds since 1970.

    Raises:
        TicketDamaged: a character is missing, changed or too many.
        TicketExpired: it was good once.
    """
    ticket = _unpack(_body(text))
    if ticket.fleet != fleet_of(ticket.root):
        raise TicketDamaged(
            "the ticket's fleet id is not that of the root it carries", hint="ask for a new one"
        )
    if not ticket.expires > now:  # also when it is not a number
        raise TicketExpired(
            f"the ticket expired {_ago(now - ticket.expires)} ago",
            hint="ask for a new one (driftseed fleet invite), or check this device's clock",
        )
    return ticket


def _body(text: str) -> bytes:
    compact = "".join(text.split())
    if not compact.startswith(PREFIX):
        raise TicketDamaged(f"not a ticket: it begins with {compact[:10]!r}", hint=_HINT_COPY)
    if len(compact) > limits.TICKET_BYTES_MAX:
        raise TicketDamaged(
            f"a ticket of {len(compact)} characters where {limits.TICKET_BYTES_MAX} are allowed",
            hint=_HINT_COPY,
        )
    encoded = compact.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TicketDamaged(
            "the ticket has characters that no ticket has, or lacks some", hint=_HINT_COPY
        ) from None
    checksum, body = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
    # The last character may carry bits that base64 does not use: one ticket has one spelling only.
    canonical = base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
    if canonical != encoded or checksum != _checksum(body):
        raise TicketDamaged(
            "the ticket's checksum is wrong: characters are missing or changed", hint=_HINT_COPY
        )
    return body


def _unpack(body: bytes) -> Ticket:
    inflater = zlib.decompressobj()
    try:
        # Bounded: a few KiB of zlib can be made to unfold to gigabytes.
        packed = inflater.decompress(body, limits.TICKET_UNPACKED_BYTES_MAX)
    except zlib.error as error:
        raise TicketDamaged(f"the ticket does not unpack: {error}", hint=_HINT_COPY) from None
    if not inflater.eof or inflater.unused_data:
        raise TicketDamaged("the ticket does not unpack to a ticket's size", hint=_HINT_COPY)
    try:
        return _decoder.decode(packed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TicketDamaged(f"the ticket does not say what a ticket says: {error}", hint=_HINT_COPY) from None


def _ago(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
