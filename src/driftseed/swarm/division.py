"""Who takes which piece from the origin first: pure, and the same result at every member without a word.

Left to itself, each member of a swarm asks the origin for whatever is rarest, and several ask for the same; so a
scarce origin sends everything more than once. Here the pieces are divided among the members that are fetching,
by rendezvous hashing (Thaler and Ravishankar 1998) over their peer ids: each takes its own part from the origin
first and the other parts from the members they fell to. It is an order, not a rule: a member that has its
part goes on with the others, so one that vanishes or lies delays nothing for long.

libtorrent's own answer, super-seeding, gives a new peer nothing in its first ten seconds (2.1.1: the pieces
offered during the handshake are dropped), which is as long as many a payload needs.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Final

MINE: Final = 7
"""libtorrent's top priority. It weighs ``availability * (8 - priority)``, the lowest first."""
OTHERS: Final = 4
"""libtorrent's default priority."""


def piece_priorities(pieces: int, me: bytes, others: Collection[bytes]) -> list[int]:
    """The priority of each piece for this member.

    Args:
        pieces: how many there are.
        me: this member's peer id.
        others: peer ids of the other members that are fetching, as far as this one knows. Two members with
            different views disagree only on pieces of those that one of them does not know.

    Returns:
        One priority for each piece, in order.
    """
    if not others:
        return [OTHERS] * pieces
    best = _scores(pieces, me)
    mine = [True] * pieces
    for other in others:
        for piece, score in enumerate(_scores(pieces, other)):
            if score > best[piece]:
                best[piece] = score
                mine[piece] = False
    return [MINE if own else OTHERS for own in mine]


def _scores(pieces: int, member: bytes) -> list[float]:
    # Not for secrecy: it must be fast, and the same on every machine (guaranteed for bytes and version 2).
    generator = random.Random()  # noqa: S311
    generator.seed(member, version=2)
    return [generator.random() for _ in range(pieces)]
