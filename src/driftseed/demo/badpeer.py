"""A BitTorrent peer that has every piece, and serves each of them spoilt.

It speaks just enough of the protocol to be taken for a seed (BEP 3; BEP 52's hash requests are declined). An
honest engine could not be made to do this, as it checks what it sends.
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Final

_PROTOCOL: Final = b"\x13BitTorrent protocol"
_RESERVED: Final = bytes(7) + b"\x10"
"""Of the extensions only version 2 (BEP 52, "upgrade path")."""
_PEER_ID: Final = b"-XX0000-" + b"m" * 12
_HANDSHAKE_BYTES: Final = 68
_UNCHOKE, _BITFIELD, _REQUEST, _PIECE = 1, 5, 6, 7
_HASH_REQUEST, _HASH_REJECT = 21, 23
_MESSAGE_BYTES_MAX: Final = 1 << 20
_BLOCK_BYTES_MAX: Final = 1 << 17


class BadPeer:
    """A listening peer for one artifact; make it with ``open``.

    Args:
        path: the true artifact.
        length: its bytes.
        piece_length: bytes of a piece.
    """

    def __init__(self, path: Path, length: int, piece_length: int) -> None:
        self._path = path
        self._piece_length = piece_length
        pieces = -(-length // piece_length)
        bits = (1 << pieces) - 1
        size = -(-pieces // 8)
        self._bitfield = (bits << (size * 8 - pieces)).to_bytes(size, "big")
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server

    @classmethod
    async def open(cls, path: Path, length: int, piece_length: int) -> BadPeer:
        """Listen on loopback, as every engine does here."""
        peer = cls(path, length, piece_length)
        peer._server = await asyncio.start_server(peer._talk, "127.0.0.1", 0)
        return peer

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def close(self) -> None:
        """Stop listening and hang up."""
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            shaken = await reader.readexactly(_HANDSHAKE_BYTES)
            # Whatever torrent they ask for is the one.
            writer.write(_PROTOCOL + _RESERVED + shaken[28:48] + _PEER_ID)
            writer.write(_message(_BITFIELD, self._bitfield) + _message(_UNCHOKE, b""))
            while True:
                (length,) = struct.unpack(">I", await reader.readexactly(4))
                if length > _MESSAGE_BYTES_MAX:
                    return
                body = await reader.readexactly(length)
                if length:
                    writer.write(self._answer(body[0], body[1:]))
                    await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            return  # they hung up on it, as they should
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, kind: int, body: bytes) -> bytes:
        if kind == _HASH_REQUEST:
            return _message(_HASH_REJECT, body)
        if kind != _REQUEST or len(body) != 12:
            return b""
        index, begin, size = struct.unpack(">III", body)
        with self._path.open("rb") as file:
            file.seek(index * self._piece_length + begin)
            block = bytearray(file.read(min(size, _BLOCK_BYTES_MAX)))
        if block:
            block[len(block) // 2] ^= 0x01
        return _message(_PIECE, body[:8] + block)


def _message(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body
