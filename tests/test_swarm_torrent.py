"""Torrents: the same as libtorrent's own, and nothing but the one form passes the check."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.errors import ArtifactUnreadable, ContentMismatch
from driftseed.core.ids import Digest
from driftseed.core.model import Artifact
from driftseed.swarm import bencode
from driftseed.swarm.torrent import (
    BLOCK_BYTES,
    PIECE_BYTES_MAX,
    PIECE_BYTES_MIN,
    PIECES_MAX,
    check_torrent,
    default_piece_length,
    make_torrent,
)

EDGES = [
    length + difference
    for length in (BLOCK_BYTES, 2 * BLOCK_BYTES, 4 * BLOCK_BYTES, 12 * BLOCK_BYTES, 1024 * 1024)
    for difference in (-1, 0, 1)
]


def write(directory: Path, data: bytes) -> tuple[Path, Digest, Artifact]:
    digest = Digest(hashlib.sha256(data).hexdigest())
    path = directory / digest
    path.write_bytes(data)
    artifact = Artifact(filename="x.bin", length=len(data), sha256=digest, torrent_sha256="0" * 64)
    return path, digest, artifact


@pytest.mark.parametrize("piece_length", [BLOCK_BYTES, 64 * 1024])
@pytest.mark.parametrize("length", [1, *EDGES])
def test_torrent_is_the_one_that_libtorrent_makes(tmp_path: Path, length: int, piece_length: int) -> None:
    path, digest, artifact = write(tmp_path, random.Random(length).randbytes(length))
    ours = make_torrent(path, digest, piece_length)

    creator = lt.create_torrent(lt.list_files(str(path)), piece_length, lt.create_torrent.v2_only)
    lt.set_piece_hashes(creator, str(tmp_path))
    theirs: Any = creator.generate()
    decoded: Any = lt.bdecode(ours)
    assert decoded[b"info"] == theirs[b"info"]
    assert decoded[b"piece layers"] == theirs.get(b"piece layers", {})
    loaded: Any = lt.load_torrent_buffer(ours)
    assert not loaded.ti.info_hashes().has_v1()
    check_torrent(ours, artifact)


def test_torrent_does_not_depend_on_name_or_time(tmp_path: Path) -> None:
    path, digest, _ = write(tmp_path, b"x" * 100_000)
    first = make_torrent(path, digest)
    moved = path.rename(tmp_path / "../ [other] name.tar.gz")
    assert make_torrent(moved, digest) == first
    moved.unlink()


def test_artifact_that_changes_while_the_release_is_made_is_noticed(tmp_path: Path) -> None:
    path, digest, _ = write(tmp_path, b"x" * 100_000)
    path.write_bytes(b"y" * 100_000)
    with pytest.raises(ArtifactUnreadable, match="has SHA-256"):
        make_torrent(path, digest)


def test_artifact_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match="cannot read"):
        make_torrent(tmp_path / "missing", Digest("0" * 64))
    with pytest.raises(ArtifactUnreadable, match="cannot read"):
        make_torrent(tmp_path, Digest("0" * 64))


def test_empty_artifact_has_a_torrent_too(tmp_path: Path) -> None:
    path, digest, artifact = write(tmp_path, b"")
    check_torrent(make_torrent(path, digest), artifact)


@pytest.mark.parametrize(
    "piece_length", [0, 1, BLOCK_BYTES - 1, 3 * BLOCK_BYTES, 2 * PIECE_BYTES_MAX, -BLOCK_BYTES]
)
def test_piece_length_out_of_bounds_is_refused(tmp_path: Path, piece_length: int) -> None:
    path, digest, _ = write(tmp_path, b"x")
    with pytest.raises(ValueError, match="a piece length of"):
        make_torrent(path, digest, piece_length)


@given(length=st.integers(0, limits.ARTIFACT_BYTES_MAX))
def test_piece_length_keeps_every_torrent_within_its_limit(length: int) -> None:
    piece_length = default_piece_length(length)
    pieces = -(-length // piece_length)
    assert PIECE_BYTES_MIN <= piece_length <= PIECE_BYTES_MAX
    assert piece_length & (piece_length - 1) == 0
    assert pieces <= PIECES_MAX
    assert pieces * 32 + 1024 <= limits.TORRENT_BYTES_MAX


def mutations() -> dict[str, Any]:  # noqa: C901  # a flat list of one-liners
    """Ways in which a signed torrent might be wrong, each done to the decoded one of DATA."""
    other = b"f" * 64

    def name(torrent: Any) -> None:
        torrent[b"info"][b"name"] = other

    def path_in_tree(torrent: Any) -> None:
        tree = torrent[b"info"][b"file tree"]
        tree[b"../../etc/passwd"] = tree.pop(next(iter(tree)))

    def second_file(torrent: Any) -> None:
        tree = torrent[b"info"][b"file tree"]
        tree[other] = {b"": {b"length": 0}}

    def directory(torrent: Any) -> None:
        info = torrent[b"info"]
        info[b"file tree"] = {info[b"name"]: info[b"file tree"]}

    def symlink(torrent: Any) -> None:
        leaf(torrent)[b"attr"] = b"l"
        leaf(torrent)[b"symlink path"] = [b"etc", b"passwd"]

    def leaf(torrent: Any) -> Any:
        info = torrent[b"info"]
        return info[b"file tree"][info[b"name"]][b""]

    def length(torrent: Any) -> None:
        leaf(torrent)[b"length"] += 1

    def hybrid(torrent: Any) -> None:
        torrent[b"info"][b"pieces"] = bytes(20)

    def version(torrent: Any) -> None:
        torrent[b"info"][b"meta version"] = 3

    def tracker(torrent: Any) -> None:
        torrent[b"announce"] = b"http://tracker.example/announce"

    def web_seed(torrent: Any) -> None:
        torrent[b"url-list"] = [b"http://127.0.0.1/"]

    def private(torrent: Any) -> None:
        torrent[b"info"][b"private"] = 1

    def piece_length(torrent: Any) -> None:
        torrent[b"info"][b"piece length"] = 48 * 1024

    def piece_length_text(torrent: Any) -> None:
        torrent[b"info"][b"piece length"] = b"16384"

    def root(torrent: Any) -> None:
        leaf(torrent)[b"pieces root"] = bytes(31)

    def no_layers(torrent: Any) -> None:
        torrent[b"piece layers"] = {}

    def short_layer(torrent: Any) -> None:
        layers = torrent[b"piece layers"]
        for key in layers:
            layers[key] = layers[key][:-32]

    def wrong_layer(torrent: Any) -> None:
        layers = torrent[b"piece layers"]
        for key in layers:
            layers[key] = bytes(32) + layers[key][32:]

    def list_as_info(torrent: Any) -> None:
        torrent[b"info"] = []

    return {key: value for key, value in locals().items() if callable(value) and key != "leaf"}


DATA = b"seed" * 20_000


@pytest.mark.parametrize("what", mutations())
def test_torrent_of_any_other_form_is_refused(tmp_path: Path, what: str) -> None:
    path, digest, artifact = write(tmp_path, DATA)
    torrent: Any = bencode.decode(make_torrent(path, digest))
    mutations()[what](torrent)
    with pytest.raises(ContentMismatch, match=r"the torrent of x\.bin is not usable"):
        check_torrent(bencode.encode(torrent), artifact)


def test_torrent_of_another_artifact_is_refused(tmp_path: Path) -> None:
    path, digest, _ = write(tmp_path, DATA)
    _, _, other = write(tmp_path, DATA[::-1])
    with pytest.raises(ContentMismatch, match="name is not the artifact's SHA-256"):
        check_torrent(make_torrent(path, digest), other)


def test_torrent_over_the_size_limit_is_not_read(tmp_path: Path) -> None:
    _, _, artifact = write(tmp_path, DATA)
    with pytest.raises(ContentMismatch, match="are allowed"):
        check_torrent(b"d" * (limits.TORRENT_BYTES_MAX + 1), artifact)


@given(data=st.binary(max_size=300))
def test_garbage_is_a_mismatch_and_nothing_worse(data: bytes) -> None:
    artifact = Artifact(filename="x", length=1, sha256="0" * 64, torrent_sha256="0" * 64)
    with pytest.raises(ContentMismatch):
        check_torrent(data, artifact)


values = st.recursive(
    st.binary(max_size=20) | st.integers(-(10**18), 10**18),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=8), inner, max_size=4),
    max_leaves=20,
).filter(lambda value: _depth(value) <= bencode.DEPTH_MAX)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


@given(value=values)
def test_bencode_comes_back_and_is_what_libtorrent_writes(value: Any) -> None:
    data = bencode.encode(value)
    assert bencode.decode(data) == value
    assert data == lt.bencode(value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no value"),
        (b"i01e", "no integer"),
        (b"i-0e", "no integer"),
        (b"i" + b"9" * 30 + b"e", "no integer"),
        (b"03:abc", "no value"),
        (b"4:abc", "cut off"),
        (b"99999999999:", "no value"),
        (b"l", "no value"),
        (b"d1:b0:1:a0:e", "out of order"),
        (b"d1:a0:1:a0:e", "out of order"),
        (b"di1e0:e", "no value"),
        (b"0:0:", "after the end"),
        (b"l" * 9 + b"e" * 9, "deeper"),
        (b"l" * 1_000_000, "deeper"),
        (b"l" + b"0:" * 2000 + b"e", "more than"),
    ],
)
def test_bencode_that_is_not_canonical_or_not_bounded_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        bencode.decode(data)
