"""Which device of a site fetches a content from outside, so that a thin uplink carries it once: pure.

Every device decides for itself, from what its neighbours on the own network say, and all that see the same decide
the same: the smallest id among those that want the content and are alive fetches, the others take it from there and
from each other. A neighbour that has all of it makes everybody follow. Whoever is silent, stands still, or gives
nothing is passed over for a while, so that neither a device that has died nor one that lies can starve a site.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from driftseed.core.ids import DeviceId

GATHER_S: Final = 1.5
"""Seconds for which a device waits for neighbours with smaller ids that have yet to hear of the content."""
HEARTBEAT_S: Final = 2.0
"""Seconds between two words of the one that fetches."""
SILENCE_S: Final = 6.0
"""Seconds without a word after which it is passed over."""
STANDSTILL_S: Final = 30.0
"""Seconds for which the one that fetches may get nothing."""
STARVED_S: Final = 12.0
"""Seconds for which a device gets nothing from neighbours that have what it lacks."""
HOPELESS_S: Final = 60.0
"""Seconds for which a device gets nothing, whatever the others say."""
PASSED_OVER_S: Final = 300.0
"""Seconds for which a neighbour that failed is passed over."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A device on the own network, as it describes itself."""

    device: DeviceId
    wants: bool = False
    whole: bool = False
    """It has all of the content."""


@dataclass(slots=True)
class _Word:
    """What the one that fetches said."""

    at: float
    done: int
    grown_at: float


class Election:
    """Who fetches one content, as one device sees it.

    Args:
        own: that device.
        now: seconds, as for all calls.
    """

    def __init__(self, own: DeviceId, now: float) -> None:
        self._own = own
        self._began = now
        self._words: dict[DeviceId, _Word] = {}
        self._passed_over: dict[DeviceId, float] = {}
        """Until when."""
        self._done = 0
        self._grown_at = now
        self._following = False
        self._leading_since = now
        self.leader: DeviceId | None = None
        """Who fetches, if it is a neighbour; None when it is ourselves, or when a neighbour has all of it."""

    def heard(self, device: DeviceId, done: int, now: float) -> None:
        """Note a neighbour's word that it fetches from outside, and how many bytes it has."""
        before = self._words.get(device)
        grown = before is None or done > before.done
        self._words[device] = _Word(now, done, now if before is None or grown else before.grown_at)

    def follows(self, neighbours: Collection[Neighbour], done: int, now: float) -> bool:
        """Whether this device leaves fetching from outside to others now.

        Args:
            neighbours: those on the own network that there are links with.
            done: bytes that it has of the content.
            now: seconds.
        """
        if done > self._done:
            self._done, self._grown_at = done, now
        present = {each.device: each for each in neighbours}
        self._forget(present, now)
        if self._following:
            self._judge(present, now)
        following = self._decide(neighbours, now)
        if following and not self._following:
            # What did not come before we followed is nobody else's fault.
            self._grown_at = now
        self._following = following
        return following

    def _decide(self, neighbours: Collection[Neighbour], now: float) -> bool:
        trusted = [each for each in neighbours if self._trusted(each.device, now)]
        before, self.leader = self.leader, None
        if any(each.whole for each in trusted):
            return True
        leader = min([self._own, *(each.device for each in trusted if each.wants)])
        if leader != self._own:
            self.leader = leader
            if leader != before:
                self._leading_since = now
            return True
        return now - self._began < GATHER_S and any(each.device < self._own for each in trusted)

    def _judge(self, present: dict[DeviceId, Neighbour], now: float) -> None:
        """Pass over whoever is to blame that nothing comes."""
        if self.leader is not None and self.leader in present:
            word = self._words.get(self.leader)
            heard_at = max(word.at if word is not None else 0.0, self._leading_since)
            silent = now - heard_at > SILENCE_S
            stands_still = word is not None and now - max(word.grown_at, self._leading_since) > STANDSTILL_S
            ahead = word is not None and word.done > self._done
            if silent or stands_still or (ahead and now - self._grown_at > STARVED_S):
                self._pass_over(self.leader, now)
        sources = [each.device for each in present.values() if each.whole and self._trusted(each.device, now)]
        limit = STARVED_S if sources else HOPELESS_S
        if now - self._grown_at > limit and (sources or self.leader is not None):
            for device in [*sources, *([self.leader] if self.leader is not None and not sources else [])]:
                self._pass_over(device, now)

    def _pass_over(self, device: DeviceId, now: float) -> None:
        self._passed_over[device] = now + PASSED_OVER_S
        # The next one gets its time.
        self._grown_at = now

    def _trusted(self, device: DeviceId, now: float) -> bool:
        return self._passed_over.get(device, float("-inf")) <= now

    def _forget(self, present: dict[DeviceId, Neighbour], now: float) -> None:
        """Keep what is known of those that are here, and no more: nobody can fill this."""
        self._words = {device: word for device, word in self._words.items() if device in present}
        self._passed_over = {device: until for device, until in self._passed_over.items() if until > now}
