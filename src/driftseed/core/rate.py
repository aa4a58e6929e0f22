"""A token bucket: how often something may happen, with a clock that is handed in."""

from __future__ import annotations


class TokenBucket:
    """Lets at most ``burst + rate * t`` tokens through in any ``t`` seconds.

    Args:
        rate: tokens per second that come back; 0 for never.
        burst: tokens that it holds when full, as it is at first.

    Raises:
        ValueError: a rate or burst below 0.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        if not (rate >= 0 and burst >= 0):
            raise ValueError(f"a token bucket of rate {rate} and burst {burst}")
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at: float | None = None

    def take(self, tokens: float, now: float) -> bool:
        """Take tokens if there are as many; otherwise take none.

        Args:
            tokens: how many, 0 or more.
            now: seconds on any clock. Time that runs backwards gives nothing and takes nothing.
        """
        self._refill(now)
        if tokens > self._tokens:
            return False
        self._tokens -= tokens
        return True

    def wait(self, tokens: float, now: float) -> float:
        """Seconds until that many can be taken; infinity when they never can."""
        self._refill(now)
        missing = tokens - self._tokens
        if missing <= 0:
            return 0.0
        if tokens > self._burst or self._rate == 0:
            return float("inf")
        return missing / self._rate

    def _refill(self, now: float) -> None:
        if self._at is None or now > self._at:
            elapsed = 0.0 if self._at is None else now - self._at
            self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
            self._at = now
