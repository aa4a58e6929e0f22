"""What was refused and dropped, and why: counted by reason, the newest kept in words."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from driftseed.core.errors import DriftseedError, PeerMisbehaved

_log = logging.getLogger(__name__)

REFUSALS_KEPT: Final = 64
"""Refusals that are kept in words."""
REASONS_MAX: Final = 128
"""Different reasons that are counted by name; what comes after is counted as ``other``."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that could have changed this device, and was not let."""

    time: float
    reason: str
    detail: str
    peer: str


class Ledger:
    """Counts drops (malformed or excessive input) and refusals (false or stale claims).

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.drops: Counter[str] = Counter()
        self.refusal_counts: Counter[str] = Counter()
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)

    def drop(self, reason: str, peer: str = "", detail: str = "") -> None:
        """Count a malformed or excessive input."""
        self._count(self.drops, reason)
        _log.info("dropped", extra={"fields": {"reason": reason, "peer": peer[:16], "detail": detail}})

    def refuse(self, reason: str, peer: str = "", detail: str = "") -> None:
        """Count and keep a refusal."""
        self._count(self.refusal_counts, reason)
        self.refusals.append(Refusal(self._clock(), reason, detail[:512], peer))
        _log.warning("refused", extra={"fields": {"reason": reason, "peer": peer[:16], "detail": detail}})

    def refuse_error(self, error: DriftseedError, peer: str = "") -> None:
        """Count an error as a refusal under its own reason."""
        reason = error.kind if isinstance(error, PeerMisbehaved) else error.reason
        self.refuse(reason, peer, error.message)

    def snapshot(self) -> Mapping[str, Mapping[str, int]]:
        """Both counters, for the API."""
        return {"drops": dict(self.drops), "refusals": dict(self.refusal_counts)}

    @staticmethod
    def _count(counter: Counter[str], reason: str) -> None:
        counter[reason if reason in counter or len(counter) < REASONS_MAX else "other"] += 1
