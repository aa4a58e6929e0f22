"""How word of a newer timestamp.json spreads: pure decisions about notices.

A notice is the signed timestamp.json itself. Two rules bring it to everyone, whoever is offline meanwhile:
each node passes the first sight of a newer valid one to its neighbours at once, and any two nodes that meet
(and again every ``limits.COMPARE_INTERVAL_S``) compare versions, so that the one that is behind learns it.
Whom to have as neighbours is ``core/neighbours.py``'s business, whether a notice is valid ``trust/``'s.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Final

from driftseed.core import limits
from driftseed.core.ids import DeviceId
from driftseed.core.verified import VerifiedNotice

NOTICE_REPEATED: Final = "notice-repeated"
"""Token: the same bytes came again; they are not verified a second time."""
REASONS_MAX: Final = 64
"""Different tokens under which faults are counted; further ones are counted as ``other``."""


class Move(StrEnum):
    """What to do about a peer whose version we have just learnt."""

    SEND_NOTICE = "send-notice"
    """It is behind: give it our timestamp.json."""
    REQUEST_REFRESH = "request-refresh"
    """It says it is ahead: ask it for its timestamp.json; nothing is believed before that verifies."""
    NOTHING = "nothing"


def on_version(ours: int, theirs: int) -> Move:
    """Compare timestamp versions, ours with what a peer says in a State frame.

    Both sides do it, so a newer version gets across even when one of the two frames is lost with its link.
    """
    if theirs < ours:
        return Move.SEND_NOTICE
    return Move.REQUEST_REFRESH if theirs > ours else Move.NOTHING


class NoticeBook:
    """What was heard from whom, so that each notice is verified once and given to each neighbour once.

    Everything in it is bounded: by the neighbours that have a link (``forget`` those that lose theirs) and
    by ``kept``.

    Args:
        version: the timestamp version that is trusted at the start.
        kept: notices whose bytes are remembered.
        peers_max: neighbours that are remembered; the longest unheard one goes first.
    """

    def __init__(
        self,
        version: int = 0,
        *,
        kept: int = limits.NOTICES_KEPT_MAX,
        peers_max: int = limits.HUB_LINKS_MAX,
    ) -> None:
        self._newest = version
        self._kept = kept
        self._peers_max = peers_max
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._at: OrderedDict[DeviceId, int] = OrderedDict()
        self._strikes: OrderedDict[DeviceId, int] = OrderedDict()
        self._counts: Counter[str] = Counter()

    @property
    def newest(self) -> int:
        """Newest timestamp version that is known to be signed."""
        return self._newest

    @property
    def counts(self) -> Mapping[str, int]:
        """Faults by token."""
        return dict(self._counts)

    def first_sight(self, data: bytes, sender: DeviceId) -> bool:
        """Whether these bytes are new here and worth verifying; a repetition is counted.

        A repetition is no fault by itself: two neighbours may tell the same news at once. Notices older than
        the newest are new here once more, so that a replayed one is refused under its own reason.
        """
        digest = hashlib.sha256(data).digest()
        if digest in self._seen:
            self._seen.move_to_end(digest)
            self._counts[NOTICE_REPEATED] += 1
            self._touch(sender)
            return False
        self._seen[digest] = None
        if len(self._seen) > self._kept:
            self._seen.popitem(last=False)
        return True

    def learn(self, notice: VerifiedNotice, sender: DeviceId | None) -> bool:
        """Note a notice that verified.

        Args:
            notice: from ``trust/``.
            sender: None when it was made or submitted here.

        Returns:
            Whether it is newer than all before: then refresh, and pass it on to ``recipients``.
        """
        if sender is not None:
            self.heard(sender, notice.version)
        if notice.version <= self._newest:
            return False
        self._newest = notice.version
        # Older notices are forgotten: who brings one from now on replays it, and that is to be seen.
        self._seen.clear()
        self._seen[hashlib.sha256(notice.data).digest()] = None
        return True

    def restart(self, version: int) -> None:
        """Go back to a version: a newer root took the word of whoever signed the later ones (TUF 5.3.11).

        Every neighbour counts as behind from now on, whatever it says, and so is told.
        """
        self._newest = version
        self._seen.clear()
        self._at.clear()

    def heard(self, peer: DeviceId, version: int) -> Move:
        """Note what a neighbour says it is at, and say what follows from that.

        What it says concerns only what it gets from us: a lie cannot make us believe in a version.
        """
        self._at[peer] = version
        self._touch(peer)
        return on_version(self._newest, version)

    def recipients(self, linked: Collection[DeviceId]) -> tuple[DeviceId, ...]:
        """Neighbours to give the newest notice to; each is named once for each version."""
        behind = tuple(peer for peer in linked if self._at.get(peer, 0) < self._newest)
        for peer in behind:
            self._at[peer] = self._newest
            self._touch(peer)
        return behind

    def invalid(self, sender: DeviceId, reason: str) -> int:
        """Count a notice that did not verify.

        Args:
            sender: who passed it to us: an honest node passes on nothing that does not verify.
            reason: the error's token.

        Returns:
            How many invalid ones this sender has given so far.
        """
        token = reason if reason in self._counts or len(self._counts) < REASONS_MAX else "other"
        self._counts[token] += 1
        # Not forgotten with the link, or dialling again would make it innocent.
        strikes = self._strikes.pop(sender, 0) + 1
        self._strikes[sender] = strikes
        if len(self._strikes) > self._kept:
            self._strikes.popitem(last=False)
        return strikes

    def forget(self, peer: DeviceId) -> None:
        """A link ended: what was sent over it may not have come through, and is sent again on the next."""
        self._at.pop(peer, None)

    def _touch(self, peer: DeviceId) -> None:
        if peer in self._at:
            self._at.move_to_end(peer)
        if len(self._at) > self._peers_max:
            self._at.popitem(last=False)
