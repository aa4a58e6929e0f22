"""Requests that a node makes of another: one stream each, one frame out, one answer back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import TypeVar

from driftseed.core import limits, wire
from driftseed.core.errors import PeerMisbehaved, TransportError
from driftseed.net.connection import Connection
from driftseed.net.link import refusal
from driftseed.net.stream import Stream

AnswerT = TypeVar("AnswerT", bound=wire.Message)

RESET_GONE = 1
"""QUIC application error code on a stream: whoever asked or answered does not go on."""


async def get_file(connection: Connection, name: str, max_length: int, *, at_least: int = 0) -> bytes | None:
    """Fetch a file by its repository name; None when the peer does not have it.

    Args:
        connection: to a member, or to the hub that admits us.
        name: such as ``metadata/4.snapshot.json``.
        max_length: most bytes to take.
        at_least: timestamp version for which the peer shall be ready; it may wait for that.

    Raises:
        PeerMisbehaved: it sends more than ``max_length``, or not what was asked for.
        TransportError: the link or the peer failed.
    """
    async with request(connection, wire.GetFile(name=name, at_least=at_least)) as stream:
        wait_s = limits.READ_TIMEOUT_S + (limits.FILE_REQUEST_WAIT_S if at_least else 0.0)
        head = await _answer(stream, wire.FileHead, wait_s)
        if head.length < 0:
            return None
        if head.length > max_length:
            raise PeerMisbehaved(
                f"{name} has {head.length} bytes where {max_length} are allowed", kind="file-too-large"
            )
        return await _read_exactly(stream, head.length)


async def ask_held(connection: Connection, sha256s: Collection[str]) -> set[str]:
    """Which of these artifacts a node holds whole. Raises PeerMisbehaved or TransportError."""
    held: set[str] = set()
    ordered = sorted(sha256s)
    for start in range(0, len(ordered), limits.CONTENT_IDS_MAX):
        asked = ordered[start : start + limits.CONTENT_IDS_MAX]
        async with request(connection, wire.AskHeld(sha256s=asked)) as stream:
            held.update((await _answer(stream, wire.Held, limits.READ_TIMEOUT_S)).sha256s)
    return held & set(ordered)


async def find_content(connection: Connection, sha256: str) -> wire.Directory:
    """Ask who has or wants an artifact. Raises PeerMisbehaved or TransportError."""
    async with request(connection, wire.FindContent(sha256=sha256)) as stream:
        return await _answer(stream, wire.Directory, limits.READ_TIMEOUT_S)


async def ask_dial(connection: Connection, port: int, proof: str) -> wire.Dialled:
    """Have a node connect to a port of ours, if it sees us where others would. Raises PeerMisbehaved or TransportError."""
    async with request(connection, wire.AskDial(port=port, proof=proof)) as stream:
        return await _answer(stream, wire.Dialled, limits.READ_TIMEOUT_S)


async def renew(connection: Connection, certificate: bytes) -> bytes:
    """Have a hub extend our membership; returns the new chain, which the caller verifies.

    Raises:
        NotAMember: the hub says no; the message says why.
        PeerMisbehaved: it does not answer what was asked.
        TransportError: the link or the hub failed.
    """
    async with request(connection, wire.RenewRequest(certificate=certificate)) as stream:
        answer = await stream.read_frame(limits.FRAME_BYTES_MAX, limits.READ_TIMEOUT_S)
        match answer:
            case wire.RenewReply(certificate=renewed):
                return renewed
            case wire.Refused():
                raise refusal(connection, answer)
            case _:
                raise PeerMisbehaved("an answer that is no RenewReply", kind="answer-unexpected")


@contextlib.asynccontextmanager
async def request(connection: Connection, message: wire.Message) -> AsyncIterator[Stream]:
    """A stream with one frame written on it, from which the answer is to be read. Raises TransportError."""
    stream = await connection.open_stream()
    try:
        await stream.write_frame(message, limits.WRITE_TIMEOUT_S)
        await stream.finish()
        yield stream
    except BaseException:
        # Also on cancellation: whoever asked is gone, the peer need not go on sending.
        with contextlib.suppress(TransportError):
            await stream.reset(RESET_GONE)
        raise


async def _read_exactly(stream: Stream, length: int) -> bytes:
    """A file's bytes, at no less than ``FILE_RATE_MIN`` on average (TUF 1.5.2, slow retrieval attack)."""
    data = bytearray()
    try:
        async with asyncio.timeout(limits.READ_TIMEOUT_S + length / limits.FILE_RATE_MIN):
            while len(data) < length:
                chunk = await stream.read_raw(length - len(data), limits.READ_TIMEOUT_S)
                if not chunk:
                    raise PeerMisbehaved(
                        f"a file of {length} bytes ended after {len(data)}", kind="file-truncated"
                    )
                data += chunk
    except TimeoutError:
        raise PeerMisbehaved(
            f"{len(data)} of {length} bytes of a file came, a few at a time", kind="file-slow"
        ) from None
    return bytes(data)


async def _answer(stream: Stream, kind: type[AnswerT], timeout_s: float) -> AnswerT:
    message = await stream.read_frame(limits.FRAME_BYTES_MAX, timeout_s)
    if not isinstance(message, kind):
        raise PeerMisbehaved(f"an answer that is not a {kind.__name__}", kind="answer-unexpected")
    return message
