"""Torrent files (BEP 52, BitTorrent v2 only): made when a release is created, checked before they are used.

A torrent here has exactly one form: one file, whose name is the artifact's SHA-256. So a torrent can choose
neither a path on a device nor a tracker, two publishers make the same bytes from the same file, and nothing in
it is left unchecked.

Both directions are written out instead of being left to libtorrent: making reads the file once for all its
hashes (and so notices a file that changes while it is read), and the agent checks a torrent without loading the
engine into its own process. ``tests/test_swarm_torrent.py`` holds both against libtorrent's own results.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO, Final

from driftseed.core import limits
from driftseed.core.errors import ArtifactUnreadable, ContentMismatch
from driftseed.core.ids import Digest
from driftseed.core.model import Artifact
from driftseed.swarm import bencode

BLOCK_BYTES: Final = 16 * limits.KIB
"""Bytes of a leaf of the Merkle tree (BEP 52)."""
PIECE_BYTES_MIN: Final = BLOCK_BYTES
PIECE_BYTES_MAX: Final = 16 * limits.MIB
"""Bytes of a piece. What is passed on is whole pieces, so larger ones slow a swarm down."""
PIECES_MAX: Final = 128 * limits.KIB
"""Pieces of one torrent: 4 MiB of hashes, so the file stays under ``limits.TORRENT_BYTES_MAX``."""
PIECES_AIM: Final = 4 * limits.KIB
"""Above so many pieces a larger piece length is chosen."""
HASH_BYTES: Final = 32
READ_BYTES: Final = 1 * limits.MIB

_ZERO_LEAF: Final = bytes(HASH_BYTES)


def default_piece_length(length: int) -> int:
    """The piece length for a file of ``length`` bytes: a power of two, in bytes.

    A swarm of N devices needs about log2(N) piece times more than the bound says, so pieces are small; but
    each costs a message to every neighbour when it arrives, so there are not many more than ``PIECES_AIM``.
    """
    piece_length = PIECE_BYTES_MIN
    while length > piece_length * PIECES_AIM and piece_length < PIECE_BYTES_MAX:
        piece_length *= 2
    return piece_length


def make_torrent(path: Path, sha256: Digest, piece_length: int | None = None) -> bytes:
    """Make the torrent file of an artifact. Blocking: reads the whole file once.

    Args:
        path: the artifact, anywhere, under any name.
        sha256: its SHA-256 as it will be signed; also the name in the torrent.
        piece_length: bytes of a piece; None chooses by the file's length.

    Returns:
        The bencoded torrent. The same content and piece length always make the same bytes.

    Raises:
        ArtifactUnreadable: the file cannot be read, or what was read does not have this SHA-256.
        ValueError: ``piece_length`` is not a power of two in bounds, or makes too many pieces.
    """
    try:
        with path.open("rb") as file:
            length = path.stat().st_size
            chosen = default_piece_length(length) if piece_length is None else piece_length
            problem = _piece_length_problem(chosen, length)
            if problem:
                raise ValueError(problem)
            whole, pieces = _hash_file(file, chosen // BLOCK_BYTES)
    except OSError as error:
        raise ArtifactUnreadable(
            f"cannot read {path}: {error.strerror}", hint="check that it is a file that you may read"
        ) from error
    if whole != sha256:
        raise ArtifactUnreadable(
            f"{path} has SHA-256 {whole}, not {sha256}",
            hint="it changed while the release was made; run the command again when nothing writes to it",
        )
    entry: dict[bytes, bencode.Value] = {b"length": length}
    layers: dict[bytes, bencode.Value] = {}
    if length:
        root = _pieces_root(pieces, chosen // BLOCK_BYTES, single=length <= chosen)
        entry[b"pieces root"] = root
        if length > chosen:
            layers[root] = b"".join(pieces)
    name = sha256.encode()
    return bencode.encode(
        {
            b"info": {
                b"file tree": {name: {b"": entry}},
                b"meta version": 2,
                b"name": name,
                b"piece length": chosen,
            },
            b"piece layers": layers,
        }
    )


def check_torrent(data: bytes, artifact: Artifact) -> None:
    """Check that a torrent is this artifact's and of the one form that is made here.

    Args:
        data: the torrent file.
        artifact: what it must describe.

    Raises:
        ContentMismatch: it is too long, not bencoded, not version 2 only, not one file named by its SHA-256
            and of its length, its piece length is out of bounds, or its piece hashes do not make its root.
    """
    try:
        _check(data, artifact)
    except ValueError as error:
        raise ContentMismatch(
            f"the torrent of {artifact.filename} is not usable: {error}",
            hint="the release must be made again with this version of driftseed",
        ) from error


def _check(data: bytes, artifact: Artifact) -> None:
    if len(data) > limits.TORRENT_BYTES_MAX:
        raise ValueError(f"{len(data)} bytes, and {limits.TORRENT_BYTES_MAX} are allowed")
    document = _dictionary(bencode.decode(data), {b"info", b"piece layers"}, "torrent")
    info = _dictionary(document[b"info"], {b"file tree", b"meta version", b"name", b"piece length"}, "info")
    if info[b"meta version"] != 2:
        raise ValueError("not BitTorrent version 2")
    name = artifact.sha256.encode()
    if info[b"name"] != name:
        raise ValueError("its name is not the artifact's SHA-256")
    tree = _dictionary(info[b"file tree"], {name}, "file tree")
    leaf = _dictionary(tree[name], {b""}, "file tree entry")
    keys = {b"length", b"pieces root"} if artifact.length else {b"length"}
    entry = _dictionary(leaf[b""], keys, "file")
    if entry[b"length"] != artifact.length:
        raise ValueError(f"length {entry[b'length']!r}, and {artifact.length} is signed")
    piece_length = info[b"piece length"]
    if not isinstance(piece_length, int):
        raise ValueError("its piece length is not a number")  # noqa: TRY004  # bad data, see below
    problem = _piece_length_problem(piece_length, artifact.length)
    if problem:
        raise ValueError(problem)
    _check_layers(document[b"piece layers"], entry.get(b"pieces root"), artifact.length, piece_length)


def _check_layers(layers: bencode.Value, root: bencode.Value | None, length: int, piece_length: int) -> None:
    if root is not None and (not isinstance(root, bytes) or len(root) != HASH_BYTES):
        raise ValueError("its pieces root is not a SHA-256")
    if length <= piece_length or root is None:
        _dictionary(layers, set(), "piece layers")
        return
    layer = _dictionary(layers, {root}, "piece layers")[root]
    if not isinstance(layer, bytes) or len(layer) != -(-length // piece_length) * HASH_BYTES:
        raise ValueError("its piece layer does not have one hash for each piece")
    pieces = [layer[at : at + HASH_BYTES] for at in range(0, len(layer), HASH_BYTES)]
    if _pieces_root(pieces, piece_length // BLOCK_BYTES, single=False) != root:
        raise ValueError("its piece hashes do not make its pieces root")


def _dictionary(value: bencode.Value, keys: set[bytes], what: str) -> dict[bytes, bencode.Value]:
    """A dictionary that has these keys and no other: what is not expected is not passed to the engine."""
    if not isinstance(value, dict):
        raise ValueError(f"its {what} is not a dictionary")  # noqa: TRY004  # bad data, not a wrong type of ours
    if set(value) != keys:
        raise ValueError(f"its {what} has keys {sorted(value)[:8]!r}, and {sorted(keys)!r} are expected")
    return value


def _piece_length_problem(piece_length: int, length: int) -> str:
    if not PIECE_BYTES_MIN <= piece_length <= PIECE_BYTES_MAX or piece_length & (piece_length - 1):
        return f"a piece length of {piece_length}, and a power of two from 16 KiB to 16 MiB is allowed"
    if length > piece_length * PIECES_MAX:
        return f"more than {PIECES_MAX} pieces"
    return ""


def _hash_file(file: BinaryIO, leaves_per_piece: int) -> tuple[str, list[bytes]]:
    """SHA-256 of the whole, and the piece layer of its Merkle tree.

    A file that is not longer than a piece has one entry, over its own leaves only: the tree of a short
    file has no padding to a whole piece (BEP 52, "pieces root").
    """
    whole = hashlib.sha256()
    pieces: list[bytes] = []
    leaves: list[bytes] = []
    while chunk := file.read(READ_BYTES):
        whole.update(chunk)
        view = memoryview(chunk)
        for at in range(0, len(chunk), BLOCK_BYTES):
            leaves.append(hashlib.sha256(view[at : at + BLOCK_BYTES]).digest())
            if len(leaves) == leaves_per_piece:
                pieces.append(_merkle_root(leaves, _ZERO_LEAF, leaves_per_piece))
                leaves = []
    if leaves:
        size = leaves_per_piece if pieces else _power_of_two(len(leaves))
        pieces.append(_merkle_root(leaves, _ZERO_LEAF, size))
    return whole.hexdigest(), pieces


def _pieces_root(pieces: list[bytes], leaves_per_piece: int, *, single: bool) -> bytes:
    if single:
        return pieces[0]
    padding = _merkle_root([_ZERO_LEAF], _ZERO_LEAF, leaves_per_piece)
    return _merkle_root(pieces, padding, _power_of_two(len(pieces)))


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _merkle_root(nodes: list[bytes], padding: bytes, size: int) -> bytes:
    """Root over ``nodes``, padded on the right to ``size`` (a power of two) of them."""
    while size > 1:
        if len(nodes) % 2:
            nodes = [*nodes, padding]
        nodes = [hashlib.sha256(nodes[at] + nodes[at + 1]).digest() for at in range(0, len(nodes), 2)]
        padding = hashlib.sha256(padding + padding).digest()
        size //= 2
    return nodes[0]
