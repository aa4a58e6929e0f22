"""What comes over the network besides frames, from the engine, and from the disk."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from choices import Choices, mutated
from codecs_targets import ADDRESS, ARTIFACT, DEVICE, DIGEST, FLEET, RAW, SHAPED, shaped
from driftseed.core import lan, limits, stun, wire
from driftseed.core.addresses import parse_host_port
from driftseed.core.errors import (
    ContentMismatch,
    PeerMisbehaved,
)
from driftseed.core.ids import DeviceId, Digest
from driftseed.core.model import (
    NodeAddress,
)
from driftseed.core.neighbours import DirectoryBook
from driftseed.net import relay_frames
from driftseed.node.contacts import load_contacts
from driftseed.swarm import bencode, protocol
from driftseed.swarm.torrent import BLOCK_BYTES, check_torrent, make_torrent
from target import Target, Try, promise

# --- BitTorrent -----------------------------------------------------------------------------------------------------


def _torrents(scratch: Path) -> Try:
    content = bytes(range(256)) * 400
    path = scratch / "content"
    path.write_bytes(content)
    digest = Digest(hashlib.sha256(content).hexdigest())
    good = make_torrent(path, digest, BLOCK_BYTES)
    artifact = msgspec.structs.replace(ARTIFACT, length=len(content), sha256=digest)
    example = bencode.decode(good)

    def one(data: bytes) -> None:
        if data[:1] == SHAPED:
            torrent = _encoded(mutated(_tree(example), Choices(data[1:])))
        elif data[:1] == b"\x02":
            choices = Choices(data[1:])
            at = choices.below(len(good))
            replacement = choices.rest()
            torrent = good[:at] + replacement + good[at + len(replacement) :]
        else:
            torrent = data[1:]
        with contextlib.suppress(ValueError):
            value = bencode.decode(torrent)
            promise(bencode.encode(value) == torrent, "bencoding that is not canonical was taken")
        try:
            check_torrent(torrent, artifact)
        except ContentMismatch as error:
            promise(error.hint, "no mend is named")
        else:
            promise(torrent == good, "another torrent than the one of this content was taken")

    return one


def _tree(value: bencode.Value) -> Any:
    """With text as keys, as ``mutated`` has it."""
    if isinstance(value, dict):
        return {key.decode("latin-1"): _tree(each) for key, each in value.items()}
    return [_tree(each) for each in value] if isinstance(value, list) else value


def _encoded(tree: Any) -> bytes:
    try:
        return bencode.encode(_bytes_tree(tree))
    except RecursionError:
        return b""


def _bytes_tree(tree: Any) -> bencode.Value:
    match tree:
        case dict():
            return {key.encode("utf-8", "replace"): _bytes_tree(each) for key, each in tree.items()}
        case list():
            return [_bytes_tree(each) for each in tree]
        case str():
            return tree.encode("utf-8", "replace")
        case bytes() | int():
            return tree
        case _:
            return repr(tree).encode()


def _torrent_seeds() -> Iterator[bytes]:
    yield RAW + b"d4:infod6:lengthi3ee12:piece layersdee"
    yield RAW + b"l" * 3000
    yield RAW + b"i-0e"
    yield RAW + b"99999999999:"
    yield b"\x02\x00\x00\x10xxxx"
    yield from (SHAPED + bytes([number, number, 1, 2, 3]) for number in range(10))


# --- the engine's pipe ---------------------------------------------------------------------------------------------------

PIPE: list[Any] = [
    protocol.Ready(ip="127.0.0.1", port=1),
    protocol.Added(sha256=DIGEST),
    protocol.Progress(sha256=DIGEST, done=1, total=2),
    protocol.Banned(sha256=DIGEST, ip="127.0.0.2"),
    protocol.PeerDisconnected(sha256=DIGEST, ip="127.0.0.2", port=3, message="gone"),
    protocol.StorageFailed(sha256=DIGEST, errno=28, message="full"),
    protocol.Add(sha256=DIGEST, torrent=b"t", directory="/x", filename="y", whole=False),
    protocol.SetLimits(upload=1, download=0),
]


def _pipe(_: Path) -> Try:
    def one(data: bytes) -> None:
        if data[:1] == SHAPED:
            body = shaped(data[1:], PIPE, msgspec.msgpack.encode)[1]
            stream = len(body).to_bytes(4, "big") + body
        else:
            stream = data[1:]
        for decoder in (protocol.event_decoder(), protocol.command_decoder()):
            whole: list[Any] = []
            with contextlib.suppress(ValueError):
                whole = [repr(each) for each in decoder.receive(stream)]
                split = protocol.event_decoder() if decoder._bytes_max == protocol.EVENT_BYTES_MAX else None
                if split is not None:
                    pieces = [
                        repr(each) for at in range(len(stream)) for each in split.receive(stream[at : at + 1])
                    ]
                    promise(pieces == whole, "the same bytes mean something else in pieces")

    return one


def _pipe_seeds() -> Iterator[bytes]:
    for number, message in enumerate(PIPE):
        yield RAW + protocol.encode(message)
        yield SHAPED + bytes([number, 1, 2, 3])
    yield RAW + b"\xff\xff\xff\xff"


# --- the relay --------------------------------------------------------------------------------------------------------------


def _relay(_: Path) -> Try:
    challenge = bytes(16)

    def one(data: bytes) -> None:
        with contextlib.suppress(PeerMisbehaved):
            frame = relay_frames.parse_client_frame(data)
            if isinstance(frame, relay_frames.Forward):
                promise(len(frame.destination) == relay_frames.KEY_BYTES, "no key")
                passed = relay_frames.forwarded_frame(data, frame.kind, bytes(32))
                promise(len(passed) == len(data) and passed[33:] == data[33:], "a payload is changed")
        with contextlib.suppress(PeerMisbehaved):
            value, end = relay_frames.read_varint(data)
            promise(relay_frames.read_varint(relay_frames.write_varint(value))[0] == value, "a number")
            promise(end <= len(data), "beyond the end")
        with contextlib.suppress(PeerMisbehaved):
            relay_frames.check_auth(data, challenge)
            promise(False, "a signature was guessed")  # this must not be reached

    return one


def _relay_seeds() -> Iterable[bytes]:
    key = bytes(32)
    return (
        bytes([4]) + key + b"\0payload",
        bytes([5]) + key + b"\0\0\x10payload",
        relay_frames.ping_frame(b"12345678"),
        relay_frames.pong_frame(b"12345678"),
        relay_frames.auth_frame(key, bytes(64)),
        relay_frames.challenge_frame(bytes(16)),
        b"", b"\x40\x04" + key, b"\xff", b"\x04" + key + b"\0",
    )  # fmt: skip


# --- STUN, announcements, contacts ------------------------------------------------------------------------------------------------


def _stun(_: Path) -> Try:
    def one(data: bytes) -> None:
        message = stun.decode(data)
        if message is not None:
            promise(stun.decode(message.encode()) == message, "a STUN message does not come back")

    return one


def _stun_seeds() -> Iterable[bytes]:
    transaction = bytes(range(12))
    return (
        stun.BindingRequest(transaction).encode(),
        stun.BindingRequest(transaction, change_ip=True, change_port=True, response_port=5).encode(),
        stun.BindingResponse(transaction, ("192.0.2.1", 4433)).encode(),
        stun.BindingResponse(transaction, ("2001:db8::1", 1)).encode(),
        b"\x01\x01\x00\x0c\x21\x12\xa4\x42"
        + transaction
        + b"\x00\x01\x00\x08\x00\x01\x11\x51\xc0\x00\x02\x01",
        b"\x00\x01\x00\x04\x21\x12\xa4\x42" + transaction + b"\x00\x03\xff\xff",
    )


def _announcements(_: Path) -> Try:
    networks = [ipaddress.ip_interface("192.0.2.9/24"), ipaddress.ip_interface("2001:db8::9/64")]
    tag = lan.fleet_tag(FLEET).encode()

    def one(data: bytes) -> None:
        choices = Choices(data)
        said: dict[bytes, bytes | None] = {
            b"v": lan.VERSION,
            b"f": tag,
            b"id": DEVICE.encode(),
            b"p6": b"4433",
        }
        for _ in range(choices.below(4)):
            said[(b"v", b"f", b"id", b"p6", b"x")[choices.below(5)]] = choices.some() or None
        addresses = []
        for _ in range(choices.below(8)):
            raw = choices.some()
            if len(raw) in {4, 16}:
                addresses.append(ipaddress.ip_address(raw))
        addresses.append(ipaddress.ip_address("192.0.2.8"))
        found = lan.read(
            said,
            addresses,
            choices.below(70_000) or None,
            own=DeviceId("aa" * 32),
            fleet=FLEET,
            networks=networks,
        )
        if isinstance(found, NodeAddress):
            promise(len(found.addrs) <= lan.ADDRESSES_MAX, "too many addresses")
            for each in found.addrs:
                host = ipaddress.ip_address(parse_host_port(each).host)
                promise(any(host in interface.network for interface in networks), "an address off the link")

    return one


def _announcement_seeds() -> Iterable[bytes]:
    return (
        b"\x00\x00\x11\x51\x00",
        b"\x01\x03\x05\xb2\xb2\xb2\xb2\xb2\x01\x04\xc0\x00\x02\x08\x00\x11\x51",
        b"\x01\x02\x03abc\x00\x00\x00\x01",
        b"\x00\x02\x10" + ipaddress.ip_address("2001:db8::8").packed + b"\x10" + bytes(16) + b"\x00\x00\x09",
    )


def _contacts(scratch: Path) -> Try:
    path = scratch / "contacts.json"

    def one(data: bytes) -> None:
        saved = shaped(data[1:], [CONTACTS], msgspec.json.encode)[1] if data[:1] == SHAPED else data[1:]
        path.write_bytes(saved)
        book = DirectoryBook(DEVICE)
        load_contacts(path, book, 5.0)
        promise(len(book) <= limits.DIRECTORY_KEPT_MAX, "more contacts than are kept")
        wire.encode(wire.Directory(entries=book.entries(6.0, limit=limits.DIRECTORY_ENTRIES_MAX)))
        book.choose([], 6.0, lambda: 0.5, own_role="agent", hubs_max=3, neighbours_max=5)

    return one


CONTACTS = [
    wire.DirectoryEntry(
        address=msgspec.structs.replace(ADDRESS, device=f"{number:064x}"), role="hub", age_ms=number
    )
    for number in range(3)
]


def _contact_seeds() -> Iterator[bytes]:
    yield RAW + msgspec.json.encode(CONTACTS)
    yield RAW + b"[" * 3000
    yield RAW + b'[{"address": {"device": "\xff"}}]'
    yield from (SHAPED + bytes([0, number, 1, 2, 3]) for number in range(8))


TARGETS: dict[str, Target] = {
    "torrents": Target(_torrents, _torrent_seeds),
    "engine-pipe": Target(_pipe, _pipe_seeds, 1024),
    "relay": Target(_relay, _relay_seeds, 1024),
    "stun": Target(_stun, _stun_seeds, 600),
    "lan": Target(_announcements, _announcement_seeds, 512),
    "contacts": Target(_contacts, _contact_seeds),
}
