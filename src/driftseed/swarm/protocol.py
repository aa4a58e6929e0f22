"""Frames on the socket between the agent and the engine, its child process.

Each frame is a length (32 bits, big-endian) and that many bytes of MessagePack: a map whose ``type`` names the
class below. The agent sends commands, the engine events; neither answers the other frame for frame, as
the agent keeps what it wants and says all of it again to a new engine when one has died.

The engine reads what hostile peers send it, so the agent trusts its frames no further than their shape.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.model import Hex64

COMMAND_BYTES_MAX: Final = limits.TORRENT_BYTES_MAX + 64 * limits.KIB
"""Bytes of a command's frame: an ``Add`` carries a whole torrent file."""
EVENT_BYTES_MAX: Final = 16 * limits.KIB
"""Bytes of an event's frame."""
TEXT_CHARS_MAX: Final = 512
"""Characters of a message for people; longer ones are cut."""

_HEADER: Final = struct.Struct(">I")

Ip = Annotated[str, Meta(max_length=64)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=TEXT_CHARS_MAX)]


class Add(Struct, frozen=True, kw_only=True, tag=True):
    """Carry a content."""

    sha256: Hex64
    torrent: bytes
    """Verified: one file, named by ``sha256``."""
    directory: str
    filename: str
    """Name of the file in ``directory``."""
    whole: bool
    """The file is complete and its SHA-256 was verified: seed it. False: whatever is there is checked
    piece by piece and the rest fetched."""
    super_seed: bool = False
    """Send each piece to one peer first and let them pass it on: for an origin with little upload."""


class Remove(Struct, frozen=True, kw_only=True, tag=True):
    """Stop carrying a content; its file stays."""

    sha256: Hex64


class ConnectPeer(Struct, frozen=True, kw_only=True, tag=True):
    """Connect to a peer that carries this content."""

    sha256: Hex64
    ip: Ip
    port: Port


class Ban(Struct, frozen=True, kw_only=True, tag=True):
    """Have nothing to do with an address: it was banned before this engine was started."""

    ip: Ip


class SetLimits(Struct, frozen=True, kw_only=True, tag=True):
    """Bytes per second for all contents together; 0: unlimited."""

    upload: Count
    download: Count


class SuperSeed(Struct, frozen=True, kw_only=True, tag=True):
    """Switch super-seeding of a content."""

    sha256: Hex64
    on: bool


class Rename(Struct, frozen=True, kw_only=True, tag=True):
    """Rename a content's file within its directory, going on serving it."""

    sha256: Hex64
    filename: str


class Stop(Struct, frozen=True, kw_only=True, tag=True):
    """Flush and end."""


Command: TypeAlias = Add | Remove | ConnectPeer | Ban | SetLimits | SuperSeed | Rename | Stop


class Ready(Struct, frozen=True, kw_only=True, tag=True):
    """The engine listens here."""

    ip: Ip
    port: Port


class Added(Struct, frozen=True, kw_only=True, tag=True):
    """A content is being carried."""

    sha256: Hex64


class Progress(Struct, frozen=True, kw_only=True, tag=True):
    """How far a content is; sent while something changes."""

    sha256: Hex64
    done: Count
    """Bytes of pieces that are here and verified."""
    total: Count
    rate_down: Count = 0
    """Payload bytes per second."""
    rate_up: Count = 0
    peers: Count = 0
    """Connections."""
    downloaded: Count = 0
    """Payload bytes since it was added."""
    uploaded: Count = 0
    checking: bool = False
    """What is on the disk is being checked; ``done`` is not known yet."""


class Completed(Struct, frozen=True, kw_only=True, tag=True):
    """Every piece is in the file and verified against the torrent; sent for ``whole=False`` only."""

    sha256: Hex64


class HashFailed(Struct, frozen=True, kw_only=True, tag=True):
    """A piece did not have its hash and is fetched again."""

    sha256: Hex64
    piece: Count


class Banned(Struct, frozen=True, kw_only=True, tag=True):
    """The peer at this address sent bad pieces; nothing more is exchanged with it, for any content."""

    sha256: Hex64
    ip: Ip


class PeerConnected(Struct, frozen=True, kw_only=True, tag=True):
    """A BitTorrent connection was made."""

    sha256: Hex64
    ip: Ip
    port: Port


class PeerDisconnected(Struct, frozen=True, kw_only=True, tag=True):
    """A BitTorrent connection ended, or could not be made."""

    sha256: Hex64
    ip: Ip
    port: Port
    message: Text


class StorageFailed(Struct, frozen=True, kw_only=True, tag=True):
    """The disk refused; the content stays as it is until it is removed."""

    sha256: Hex64
    errno: int
    """As in the module ``errno``; 0 when it was none of the system's."""
    message: Text


class Renamed(Struct, frozen=True, kw_only=True, tag=True):
    """A content's file has its new name."""

    sha256: Hex64
    filename: str


class Failed(Struct, frozen=True, kw_only=True, tag=True):
    """A command for this content could not be carried out, or it cannot be carried any more."""

    sha256: Hex64
    message: Text


class Died(Struct, frozen=True, kw_only=True, tag=True):
    """The engine's process ended without being told to; a new one is started. Made by the agent's side."""

    status: int
    """Exit status; negative: killed by that signal."""
    message: Text


class GaveUp(Struct, frozen=True, kw_only=True, tag=True):
    """The engine died too often in a short time; nothing is carried. Made by the agent's side."""

    message: Text


EngineEvent: TypeAlias = (
    Ready
    | Added
    | Progress
    | Completed
    | HashFailed
    | Banned
    | PeerConnected
    | PeerDisconnected
    | StorageFailed
    | Renamed
    | Failed
)
"""What the engine's process may say."""
Event: TypeAlias = EngineEvent | Died | GaveUp

_encoder: Final = msgspec.msgpack.Encoder()


def encode(message: Command | EngineEvent) -> bytes:
    """One frame, header included."""
    body = _encoder.encode(message)
    return _HEADER.pack(len(body)) + body


def clip(text: str) -> str:
    """Text for a message field, cut to what a frame may hold."""
    return text[:TEXT_CHARS_MAX]


MessageT = TypeVar("MessageT")


class FrameDecoder(Generic[MessageT]):
    """Cuts a byte stream into frames and decodes them.

    Args:
        decoder: of the frames that this side receives.
        bytes_max: most bytes that one may have.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[MessageT], bytes_max: int) -> None:
        self._decoder = decoder
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def receive(self, data: bytes) -> list[MessageT]:
        """Take bytes in; return the messages that are now complete.

        Raises:
            ValueError: a frame is longer than allowed, or does not decode. The stream is then
                of no further use.
        """
        self._buffer += data
        messages: list[MessageT] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, start)
            if length > self._bytes_max:
                raise ValueError(f"a frame of {length} bytes where {self._bytes_max} are allowed")
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(self._buffer[start + _HEADER.size : end]))
            except RecursionError:
                raise ValueError("nested too deeply") from None
            start = end
        del self._buffer[:start]
        return messages


def command_decoder() -> FrameDecoder[Command]:
    """For the engine's side."""
    return FrameDecoder(msgspec.msgpack.Decoder(Command), COMMAND_BYTES_MAX)


def event_decoder() -> FrameDecoder[EngineEvent]:
    """For the agent's side."""
    return FrameDecoder(msgspec.msgpack.Decoder(EngineEvent), EVENT_BYTES_MAX)
