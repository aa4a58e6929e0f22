"""The device's clock, which may be unset: it is never taken to be earlier than what it once was."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from driftseed.store.journal import Journal

FLOOR_KEY: Final = "clock-floor"
FLOOR_STEP_S: Final = 3600.0
"""Seconds by which the clock must have advanced before the floor is written again."""


class DeviceClock:
    """Seconds since 1970 that never fall behind a time which is known to be over.

    A board without a battery starts in 1970. That alone would make every certificate "not yet valid" and let
    replayed metadata seem fresh; so the newest time that was seen is kept, and a clock behind it counts as
    standing at it.

    Args:
        journal: keeps the floor across restarts.
        known: a time that is over for certain, such as that of joining.
        wall: the system's clock.
    """

    def __init__(self, journal: Journal, known: float, wall: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._wall = wall
        self._floor = max(known, float(journal.get(FLOOR_KEY) or 0.0))

    @property
    def behind_s(self) -> float:
        """Seconds that the system's clock is behind what is known to be over; 0 when it is not."""
        return max(0.0, self._floor - self._wall())

    def __call__(self) -> float:
        """Now."""
        return max(self._wall(), self._floor)

    def remember(self, plausible_until: float) -> None:
        """Raise the floor to now and keep it, if that is worth a write and the clock can be believed.

        A clock that is years ahead, of which a floor would never recover, shows itself by the metadata: what is
        fresh to everybody else has expired by it.

        Args:
            plausible_until: when the trusted metadata expires, seconds since 1970.

        Raises:
            DiskFull: the floor is what it was.
        """
        now = self._wall()
        if self._floor + FLOOR_STEP_S <= now < plausible_until:
            self._journal.set(FLOOR_KEY, repr(now))
            self._floor = now
