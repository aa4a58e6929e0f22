"""The content that is kept: what survives a restart, what goes first, what never goes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.errors import ContentMismatch, DiskFull, Misuse, NotFound
from driftseed.core.ids import Digest
from driftseed.core.model import Artifact
from driftseed.core.verified import VerifiedArtifact
from driftseed.swarm.content import ContentStore

PLENTY = 1 << 50


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def store_at(
    directory: Path, quota: int = 1000, free: Callable[[Path], int] = lambda _: PLENTY
) -> ContentStore:
    return ContentStore(directory, quota, clock=Clock(), free=free)


def verified(path: Path, data: bytes) -> VerifiedArtifact:
    artifact = Artifact(filename="x", length=len(data), sha256=digest_of(data), torrent_sha256="0" * 64)
    return VerifiedArtifact(artifact, path)


def put(store: ContentStore, data: bytes) -> Digest:
    """As if fetched: reserve, write, verify, adopt."""
    digest = digest_of(data)
    store.make_room(digest, len(data))
    partial = store.partial_path(digest)
    partial.write_bytes(data)
    store.adopt(verified(partial, data))
    return digest


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_adopted_content_is_there_under_its_name_only(tmp_path: Path) -> None:
    store = store_at(tmp_path / "content")
    digest = put(store, b"data")
    assert store.has(digest)
    assert store.path(digest).read_bytes() == b"data"
    assert names(store.directory) == {digest}
    assert store.used_bytes == 4


def test_adoption_after_the_engine_has_renamed(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    digest = digest_of(b"data")
    (tmp_path / digest).write_bytes(b"data")
    assert store.adopt(verified(tmp_path / digest, b"data")).read_bytes() == b"data"
    assert store.has(digest)


def test_adoption_removes_what_a_restarted_engine_began_again(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    digest = digest_of(b"data")
    (tmp_path / digest).write_bytes(b"data")
    store.partial_path(digest).write_bytes(b"")
    store.adopt(verified(tmp_path / digest, b"data"))
    assert names(tmp_path) == {digest}


def test_adoption_of_nothing_is_told(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    with pytest.raises(NotFound):
        store.adopt(verified(tmp_path / "missing", b"data"))
    with pytest.raises(NotFound):
        store.path(digest_of(b"data"))


def test_content_and_the_order_of_its_use_survive_a_restart(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    first, second, third = (put(store, bytes([number]) * 10) for number in range(3))
    store.touch(first)
    again = store_at(tmp_path)
    assert again.digests() == [first, third, second]
    assert again.used_bytes == 30


def test_partial_content_survives_a_restart_and_counts(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    digest = digest_of(b"whole thing")
    store.make_room(digest, 11)
    store.partial_path(digest).write_bytes(b"whole")
    again = store_at(tmp_path)
    assert again.partials() == [digest]
    assert not again.has(digest)
    assert again.used_bytes == 5


def test_power_cut_in_the_middle_of_an_adoption_leaves_one_file(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    digest = put(store, b"data")
    store.partial_path(digest).write_bytes(b"da")
    again = store_at(tmp_path)
    assert again.has(digest)
    assert again.partials() == []
    assert names(tmp_path) == {digest}


def test_garbage_and_links_in_the_directory_are_removed_and_not_followed(tmp_path: Path) -> None:
    directory, outside = tmp_path / "content", tmp_path / "secret"
    outside.write_bytes(b"keep me")
    digest = put(store_at(directory), b"data")
    linked = digest_of(b"keep me")
    (directory / linked).symlink_to(outside)
    (directory / (digest_of(b"x") + ".unverified")).symlink_to(outside)
    (directory / ".new-abcdef").write_bytes(b"leftover")
    (directory / "README").write_bytes(b"")
    (directory / digest.upper()).write_bytes(b"")
    os.mkfifo(directory / digest_of(b"fifo"))
    again = store_at(directory)
    assert again.digests() == [digest]
    assert not again.has(linked)
    assert names(directory) == {digest}
    assert outside.read_bytes() == b"keep me"


def test_directory_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert store_at(tmp_path).digests() == []
    assert names(tmp_path) == {"lost+found"}


def test_content_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "file"):
        with pytest.raises(Misuse, match="is not a directory"):
            store_at(tmp_path / name)


def test_least_recently_used_goes_first_and_no_more_than_needed(tmp_path: Path) -> None:
    store = store_at(tmp_path, quota=100)
    first, second, third = (put(store, bytes([number]) * 30) for number in range(3))
    store.touch(first)
    new = digest_of(b"n" * 40)
    assert store.make_room(new, 40) == [second]
    assert names(tmp_path) == {first, third}
    assert store.used_bytes == 100


def test_pinned_content_never_goes(tmp_path: Path) -> None:
    store = store_at(tmp_path, quota=100)
    installed = put(store, b"i" * 60)
    other = put(store, b"o" * 40)
    store.pin(installed)
    with pytest.raises(DiskFull, match="does not fit into the quota of 100 bytes") as caught:
        store.make_room(digest_of(b"n"), 50)
    assert "quota" in caught.value.hint
    assert names(tmp_path) == {installed, other}, "nothing is evicted for what does not fit anyway"
    assert store.make_room(digest_of(b"n"), 40) == [other]
    store.discard(digest_of(b"n"))
    store.unpin(installed)
    assert store.make_room(digest_of(b"m"), 50) == [installed]


def test_quota_holds_at_its_boundary(tmp_path: Path) -> None:
    store = store_at(tmp_path, quota=100)
    store.make_room(digest_of(b"a"), 100)
    with pytest.raises(DiskFull):
        store.make_room(digest_of(b"b"), 1)
    store.discard(digest_of(b"a"))
    store.make_room(digest_of(b"b"), 100)
    with pytest.raises(DiskFull):
        store_at(tmp_path / "other", quota=100).make_room(digest_of(b"c"), 101)


def test_two_transfers_are_not_promised_the_same_space(tmp_path: Path) -> None:
    free = 100 + limits.DISK_MARGIN_BYTES
    store = store_at(tmp_path, quota=PLENTY, free=lambda _: free)
    store.make_room(digest_of(b"a"), 60)
    with pytest.raises(DiskFull, match="20 bytes more than are free"):
        store.make_room(digest_of(b"b"), 60)
    store.make_room(digest_of(b"b"), 40)
    store.make_room(digest_of(b"b"), 40)  # asking again is not asking for more


def test_free_space_is_made_by_evicting_before_it_is_refused(tmp_path: Path) -> None:
    free = limits.DISK_MARGIN_BYTES
    store = store_at(tmp_path, quota=PLENTY, free=lambda _: free)
    with pytest.raises(DiskFull):
        store.make_room(digest_of(b"a"), 1)
    store = store_at(tmp_path, quota=PLENTY)
    old = put(store, b"o" * 50)
    store = store_at(tmp_path, quota=PLENTY, free=lambda _: free)
    assert store.make_room(digest_of(b"a"), 50) == [old]


def test_added_file_is_copied_and_verified(tmp_path: Path) -> None:
    store = store_at(tmp_path / "content")
    source = tmp_path / "any name"
    source.write_bytes(b"data")
    digest = digest_of(b"data")
    store.make_room(digest, 4)
    assert store.add_file(source, digest).read_bytes() == b"data"
    assert store.add_file(source, digest) == store.path(digest)
    assert source.read_bytes() == b"data"
    assert names(store.directory) == {digest}


def test_added_file_with_another_hash_leaves_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path / "content")
    source = tmp_path / "x"
    source.write_bytes(b"forged")
    digest = digest_of(b"data")
    store.make_room(digest, 4)
    with pytest.raises(ContentMismatch, match="has SHA-256"):
        store.add_file(source, digest)
    assert names(store.directory) == set()
    assert store.used_bytes == 0
    with pytest.raises(FileNotFoundError):
        store.add_file(tmp_path / "missing", digest)
    assert names(store.directory) == set()


def test_link_at_the_place_of_a_partial_file_is_not_written_through(tmp_path: Path) -> None:
    store = store_at(tmp_path / "content")
    outside = tmp_path / "outside"
    outside.write_bytes(b"keep me")
    source = tmp_path / "x"
    source.write_bytes(b"data")
    store.partial_path(digest_of(b"data")).symlink_to(outside)
    store.add_file(source, digest_of(b"data"))
    assert outside.read_bytes() == b"keep me"


def test_removed_content_is_gone(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    digest = put(store, b"data")
    store.remove(digest)
    store.remove(digest)
    assert not store.has(digest)
    assert names(tmp_path) == set()
    store.touch(digest)
    assert names(tmp_path) == set()


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "touch", "pin", "unpin", "remove", "restart"]), st.integers(0, 7)),
        max_size=40,
    )
)
def test_quota_and_pins_hold_whatever_happens(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("content")
    clock = Clock()
    store = ContentStore(directory, 100, clock=clock, free=lambda _: PLENTY)
    datas = [bytes([number]) * (10 + 7 * number) for number in range(8)]
    for step, number in steps:
        digest = digest_of(datas[number])
        pinned = {each for each in store.pins if store.has(each)}
        if step == "put":
            try:
                put(store, datas[number])
            except DiskFull:
                assert not store.has(digest)
            assert all(map(store.has, pinned))
        elif step == "restart":
            pins = store.pins
            store = ContentStore(directory, 100, clock=clock, free=lambda _: PLENTY)
            for each in pins:
                store.pin(each)
        else:
            {"touch": store.touch, "pin": store.pin, "unpin": store.unpin, "remove": store.remove}[step](
                digest
            )
        assert store.used_bytes <= 100
        assert names(directory) == set(store.digests())
        assert all(digest_of(store.path(each).read_bytes()) == each for each in store.digests())
