"""Notices reach everybody once, and liars and floods gain nothing."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.gossip import NOTICE_REPEATED, REASONS_MAX, Move, NoticeBook, on_version
from driftseed.core.verified import VerifiedNotice
from support_core import device

A, B, C = device(1), device(2), device(3)


def notice(version: int) -> VerifiedNotice:
    return VerifiedNotice(version=version, snapshot_version=1, data=f"timestamp {version}".encode())


@pytest.mark.parametrize(
    ("ours", "theirs", "move"),
    [
        (5, 5, Move.NOTHING),
        (0, 0, Move.NOTHING),
        (5, 4, Move.SEND_NOTICE),
        (4, 5, Move.REQUEST_REFRESH),
        (0, 2**63, Move.REQUEST_REFRESH),
    ],
)
def test_two_that_meet_compare_versions(ours: int, theirs: int, move: Move) -> None:
    assert on_version(ours, theirs) is move


@given(st.integers(0), st.integers(0))
def test_exactly_one_of_two_sides_sends(ours: int, theirs: int) -> None:
    moves = {on_version(ours, theirs), on_version(theirs, ours)}
    assert moves == ({Move.NOTHING} if ours == theirs else {Move.SEND_NOTICE, Move.REQUEST_REFRESH})


def test_a_newer_notice_goes_to_all_but_its_sender_once() -> None:
    book = NoticeBook(version=1)
    assert book.learn(notice(2), A)
    assert book.recipients([A, B, C]) == (B, C)
    assert book.recipients([A, B, C]) == ()


def test_neighbours_that_say_they_are_there_already_are_not_told() -> None:
    book = NoticeBook(version=1)
    assert book.heard(B, 2) is Move.REQUEST_REFRESH
    assert book.learn(notice(2), A)
    assert book.recipients([A, B, C]) == (C,)


def test_an_old_or_equal_notice_is_not_news() -> None:
    book = NoticeBook(version=5)
    assert not book.learn(notice(5), A)
    assert not book.learn(notice(4), A)
    assert book.newest == 5


def test_a_lie_about_a_version_moves_nothing_here() -> None:
    book = NoticeBook(version=5)
    book.heard(A, 2**60)
    assert book.newest == 5
    assert book.learn(notice(6), B)


def test_what_was_sent_over_a_link_that_died_is_sent_again() -> None:
    book = NoticeBook(version=0)
    assert book.learn(notice(1), None)
    assert book.recipients([A]) == (A,)
    book.forget(A)
    assert book.recipients([A]) == (A,)


def test_the_same_bytes_are_verified_once_and_repetitions_counted() -> None:
    book = NoticeBook()
    assert book.first_sight(b"x", A)
    assert not book.first_sight(b"x", B)
    assert book.first_sight(b"y", A)
    assert book.counts == {NOTICE_REPEATED: 1}


def test_a_replayed_old_notice_is_looked_at_again_and_a_flood_of_it_is_not() -> None:
    book = NoticeBook()
    old, new = notice(1), notice(2)
    for each in (old, new):
        assert book.first_sight(each.data, A)
        assert book.learn(each, A)
    assert not book.first_sight(new.data, B)
    assert book.first_sight(old.data, B)
    assert not book.learn(old, B)
    assert [book.first_sight(old.data, B) for _ in range(3)] == [False] * 3


def test_invalid_notices_are_counted_by_token_and_sender_beyond_the_link() -> None:
    book = NoticeBook()
    assert book.invalid(A, "metadata-unsigned") == 1
    book.forget(A)
    assert book.invalid(A, "metadata-expired") == 2
    assert book.invalid(B, "metadata-unsigned") == 1
    assert book.counts == {"metadata-unsigned": 2, "metadata-expired": 1}


def test_everything_it_remembers_is_bounded() -> None:
    book = NoticeBook(kept=8, peers_max=8)
    for number in range(100):
        book.first_sight(str(number).encode(), device(number))
        book.heard(device(number), 1)
        book.invalid(device(number), f"token {number}")
    assert not book.first_sight(b"99", A)
    assert book.first_sight(b"0", A)
    assert len(book.counts) <= REASONS_MAX + 2  # "other" and the repetition
    assert book.counts["other"] == 100 - REASONS_MAX
    assert len(book._seen) == len(book._at) == len(book._strikes) == 8


@given(st.integers(2, 20), st.integers(0, 2**32), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_any_connected_overlay_is_flooded_and_falls_silent(
    count: int, seed: int, versions: list[int]
) -> None:
    """Every node ends at the newest version, and each link carries each version once per direction at most."""
    rng = random.Random(seed)
    neighbours: dict[int, set[int]] = {node: set() for node in range(count)}
    for node in range(1, count):
        for other in {rng.randrange(node), rng.randrange(node)}:
            neighbours[node].add(other)
            neighbours[other].add(node)
    books = [NoticeBook() for _ in range(count)]
    sent: list[tuple[int, int, int]] = []
    queue: deque[tuple[int, int | None, int]] = deque((rng.randrange(count), None, each) for each in versions)
    while queue:
        at, sender, version = queue.popleft()
        fresh = books[at].learn(notice(version), None if sender is None else device(sender))
        if not fresh:
            continue
        linked = [device(each) for each in sorted(neighbours[at])]
        for peer in books[at].recipients(linked):
            message = (at, int(peer, 16), version)
            sent.append(message)
            queue.append((message[1], at, version))
        rng.shuffle(queue)
    assert {book.newest for book in books} == {max(versions)}
    assert len(sent) == len(set(sent))
