"""The division of pieces among members: everybody comes to the same one alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from driftseed.swarm.division import MINE, OTHERS, piece_priorities

peer_ids = st.binary(min_size=20, max_size=20)


def owners(pieces: int, members: set[bytes]) -> list[list[bytes]]:
    """For each piece, the members that think it is theirs."""
    views = {member: piece_priorities(pieces, member, members - {member}) for member in members}
    return [[member for member in members if views[member][piece] == MINE] for piece in range(pieces)]


@given(members=st.sets(peer_ids, min_size=2, max_size=24), pieces=st.integers(0, 200))
def test_each_piece_falls_to_exactly_one_member(members: set[bytes], pieces: int) -> None:
    assert all(len(owner) == 1 for owner in owners(pieces, members))


@given(members=st.sets(peer_ids, min_size=3, max_size=10), data=st.data())
def test_member_that_leaves_moves_only_its_own_pieces(members: set[bytes], data: st.DataObject) -> None:
    leaving = data.draw(st.sampled_from(sorted(members)))
    before, after = owners(100, members), owners(100, members - {leaving})
    for old, new in zip(before, after, strict=True):
        assert old in ([leaving], new)


def test_parts_are_of_about_the_same_size() -> None:
    members = {number.to_bytes(20, "big") for number in range(16)}
    sizes = Counter(owner for (owner,) in owners(4096, members))
    assert len(sizes) == 16
    assert all(150 < size < 400 for size in sizes.values())


def test_nobody_else_fetching_means_no_preference() -> None:
    assert piece_priorities(3, b"me", []) == [OTHERS] * 3


def test_division_is_the_same_on_every_machine_and_version() -> None:
    priorities = piece_priorities(12, b"-DS0000-000000000001", {b"-DS0000-000000000002"})
    assert [piece for piece, priority in enumerate(priorities) if priority == MINE] == [0, 1, 2, 7, 10]
