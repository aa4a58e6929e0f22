"""Frames of the overlay: how they look on the wire, and what each may hold.

A stream inside an iroh connection carries frames, one after the other::

    0        4    5
    +--------+----+----------------- ... --+
    | length |type| body: MessagePack map  |
    +--------+----+----------------- ... --+

``length`` is 32 bits, big-endian, and counts the type byte and the body. A body is one MessagePack map with
string keys. Unknown keys are ignored and unknown types are counted and skipped, so that newer nodes may
say more; everything else that is not as described here closes the link.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.errors import PeerMisbehaved
from driftseed.core.model import Hex64, NodeAddress, RelayUrl, SocketAddress

ALPN_JOIN: Final = b"driftseed/join/1"
ALPN_OVERLAY: Final = b"driftseed/overlay/1"
ALPN_TUNNEL: Final = b"driftseed/tunnel/1"

PROTOCOL_VERSION: Final = 1

HEADER: Final = struct.Struct(">IB")
"""Length (type byte and body) and type."""

FileName = Annotated[str, Meta(min_length=1, max_length=512)]
Millis = Annotated[int, Meta(ge=0)]


class Hello(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """First frame of either side on a link: who I am, proved by the enrolment key."""

    version: Annotated[int, Meta(ge=1, le=255)] = PROTOCOL_VERSION
    fleet: Hex64
    certificate: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]
    clock: float = 0.0
    """Seconds since 1970 on the sender's clock."""


class Refused(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Instead of a hello: why not. Sent so that an honest device can report it."""

    reason: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=512)] = ""


class JoinRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """First frame on a join link: a ticket's invitation and the device's entry, or a chain to be extended."""

    version: Annotated[int, Meta(ge=1, le=255)] = PROTOCOL_VERSION
    fleet: Hex64
    invitation: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]
    clock: float = 0.0


class JoinReply(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The hub's answer: a certificate; metadata is then fetched over an ordinary link."""

    certificate: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]
    hub_certificate: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]


class State(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What I am at; sent when two nodes meet, when it changes, and every 30 s."""

    timestamp_version: Annotated[int, Meta(ge=0)] = 0
    snapshot_version: Annotated[int, Meta(ge=0)] = 0
    ready: Annotated[int, Meta(ge=0)] = 0
    """Newest timestamp version for which I can serve every metadata file."""
    has: Annotated[list[Hex64], Meta(max_length=limits.CONTENT_IDS_MAX)] = []
    """SHA-256 of artifacts that I hold whole."""
    wants: Annotated[list[Hex64], Meta(max_length=limits.CONTENT_IDS_MAX)] = []
    """SHA-256 of artifacts that I am fetching (and can serve parts of)."""
    addrs: Annotated[list[SocketAddress], Meta(max_length=limits.ADDRESSES_PER_DEVICE_MAX)] = []
    # Passed on to others in a Directory: what they would not take must not get this far.
    relay: RelayUrl | None = None
    offers_relay: RelayUrl | None = None
    """A relay that I serve, for those who have no hub's."""


class Notice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A timestamp.json that is newer than the receiver's."""

    timestamp: Annotated[bytes, Meta(max_length=limits.TIMESTAMP_BYTES_MAX)]


class Observed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The socket address from which your packets reach me."""

    addr: SocketAddress


class DirectoryEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device and how to reach it."""

    address: NodeAddress
    role: Annotated[str, Meta(max_length=16)] = "agent"
    age_ms: Millis = 0
    """Time since the sender itself had a link to it."""


class Directory(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Devices that the sender knows: from a hub all it introduces, from a neighbour some of its own."""

    entries: Annotated[list[DirectoryEntry], Meta(max_length=limits.DIRECTORY_ENTRIES_MAX)] = []


class ReportCarried(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device's signed report on its way to a hub."""

    envelope: Annotated[bytes, Meta(max_length=limits.REPORT_BYTES_MAX)]


class ReportStored(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A hub's word that it has this report, or a newer one of that device, on disk."""

    device: Hex64
    sequence: Annotated[int, Meta(ge=0)]


class ReportsLogged(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """From a hub to a hub: how many reports I have logged; ask for those that you have not seen."""

    epoch: Annotated[str, Meta(max_length=64)]
    """Names the log; another one begins anew."""
    last: Annotated[int, Meta(ge=0)]


class Fetching(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """To neighbours on the own network: I fetch this from outside for all of us; sent every 2 s while I do."""

    sha256: Hex64
    done: Annotated[int, Meta(ge=0)] = 0
    """Bytes that I have of it."""


class GetReports(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Request stream between hubs: reports logged after ``since``. Answered by ReportCarried frames and a ReportsLogged."""

    epoch: Annotated[str, Meta(max_length=64)] = ""
    since: Annotated[int, Meta(ge=0)] = 0


class FindContent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Request stream: who has or wants this artifact? Answered by a Directory."""

    sha256: Hex64


class AskHeld(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Request stream: which of these artifacts do you hold whole? Answered by a Held.

    A State names only so many; whoever publishes must know it of each.
    """

    sha256s: Annotated[list[Hex64], Meta(max_length=limits.CONTENT_IDS_MAX)]


class Held(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to AskHeld: those of the artifacts that the sender holds whole."""

    sha256s: Annotated[list[Hex64], Meta(max_length=limits.CONTENT_IDS_MAX)] = []


class AskDial(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Request stream: can I be reached from outside? Answered by a Dialled.

    The receiver connects to this TCP port at the address from which the sender's own packets come, at no other, and
    asks for ``GET /ping?PROOF``, where a relay answers.
    """

    port: Annotated[int, Meta(ge=1, le=65535)]
    proof: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    """Random; by it the sender knows the connection that this request has led to."""


class Dialled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to AskDial."""

    tried: bool
    """Whether the sender has tried: not too often, nor for a device that it sees through a relay or on its own network."""
    reached: bool = False
    addr: SocketAddress | None = None
    """Where it tried."""


class GetFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Request stream: a metadata file or small target by its TUF name. Answered by FileHead, then raw bytes."""

    name: FileName
    """As in the repository: ``metadata/4.snapshot.json``, ``targets/deployments/HASH.ID.json``."""
    at_least: Annotated[int, Meta(ge=0)] = 0
    """Wait (bounded) until ready for this timestamp version, as a notice outruns the files it names."""


class FileHead(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to GetFile: ``length`` bytes follow, then the end of the stream; -1: not here."""

    length: Annotated[int, Meta(ge=-1, le=limits.TORRENT_BYTES_MAX)]


class RenewRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Request stream to a hub: extend my membership. Answered by RenewReply or Refused."""

    certificate: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]
    """The chain by which I am a member now."""


class RenewReply(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to RenewRequest: the same chain with a new receipt."""

    certificate: Annotated[bytes, Meta(max_length=limits.CERTIFICATE_BYTES_MAX)]


class TunnelOpen(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """First frame on a tunnel stream; after a TunnelAccept the stream is one BitTorrent connection."""

    sha256: Hex64


class TunnelAccept(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The artifact is served here (whole or in part): BitTorrent may begin."""

    accepted: bool


Message: TypeAlias = (
    Hello
    | Refused
    | JoinRequest
    | JoinReply
    | State
    | Notice
    | Observed
    | Directory
    | ReportCarried
    | ReportStored
    | ReportsLogged
    | Fetching
    | FindContent
    | AskHeld
    | Held
    | AskDial
    | Dialled
    | GetFile
    | FileHead
    | RenewRequest
    | RenewReply
    | GetReports
    | TunnelOpen
    | TunnelAccept
)

TYPES: Final[dict[int, type[Message]]] = {
    0x01: Hello,
    0x02: Refused,
    0x03: JoinRequest,
    0x04: JoinReply,
    0x10: State,
    0x11: Notice,
    0x12: Observed,
    0x13: Directory,
    0x14: ReportCarried,
    0x15: ReportStored,
    0x16: ReportsLogged,
    0x17: Fetching,
    0x20: FindContent,
    0x21: GetFile,
    0x22: FileHead,
    0x23: GetReports,
    0x24: RenewRequest,
    0x25: RenewReply,
    0x26: AskHeld,
    0x27: Held,
    0x28: AskDial,
    0x29: Dialled,
    0x30: TunnelOpen,
    0x31: TunnelAccept,
}
_NUMBERS: Final[dict[type[Any], int]] = {kind: number for number, kind in TYPES.items()}

_encoder = msgspec.msgpack.Encoder()
_decoders: Final[dict[int, msgspec.msgpack.Decoder[Any]]] = {
    number: msgspec.msgpack.Decoder(kind) for number, kind in TYPES.items()
}


class UnknownFrame(Struct, frozen=True):
    """A frame of a type that this version does not know: counted and skipped."""

    type: int


def encode(message: Message) -> bytes:
    """One frame, header included."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body) + 1, _NUMBERS[type(message)]) + body


def parse_header(header: bytes, max_length: int) -> tuple[int, int]:
    """Read a frame's header.

    Args:
        header: 5 bytes.
        max_length: most bytes that the frame may have on this stream, type byte included.

    Returns:
        Bytes of the body that follow, and the type.

    Raises:
        PeerMisbehaved: ``frame-too-large`` or ``frame-empty``.
    """
    length, number = HEADER.unpack(header)
    if length < 1:
        raise PeerMisbehaved("a frame of no bytes", kind="frame-empty")
    if length > max_length:
        raise PeerMisbehaved(
            f"a frame of {length} bytes where {max_length} are allowed",
            kind="frame-too-large",
        )
    return length - 1, number


def decode(number: int, body: bytes) -> Message | UnknownFrame:
    """Decode a frame's body.

    Raises:
        PeerMisbehaved: ``frame-malformed``: not MessagePack, or not of the type's shape.
    """
    decoder = _decoders.get(number)
    if decoder is None:
        return UnknownFrame(number)
    try:
        message: Message = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerMisbehaved(
            f"a frame of type {number:#04x} that does not decode: {error}",
            kind="frame-malformed",
        ) from None
    return message
