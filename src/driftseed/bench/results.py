"""What a benchmark says: figures, how they were obtained, and whether the aim was met."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Figure: TypeAlias = "float | int | str"


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure should be.

    Args:
        figure: its name among the figures.
        sense: ``least`` when the figure shall not be below the bound, ``most`` when not above it.
        bound: in the figure's unit.
        text: for people.
    """

    figure: str
    sense: Literal["least", "most"]
    bound: float
    text: str

    def met(self, figures: Mapping[str, Figure]) -> bool:
        """Whether the figure is within its bound; a figure that is missing or no number is not."""
        value = figures.get(self.figure)
        if not isinstance(value, int | float) or math.isnan(value):
            return False
        return value >= self.bound if self.sense == "least" else value <= self.bound


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark's outcome.

    Args:
        name: as on the command line.
        method: how the figures were obtained, in sentences.
        figures: by name; the unit is the name's last part (``_s``, ``_mib_s``, ``_bytes``), ratios have none.
        aims: what is promised.
    """

    name: str
    method: str
    figures: Mapping[str, Figure]
    aims: Sequence[Aim] = field(default_factory=tuple)

    @property
    def met(self) -> bool:
        """Whether every aim was met."""
        return all(aim.met(self.figures) for aim in self.aims)

    def as_object(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "method": self.method,
            "figures": dict(self.figures),
            "aim": "; ".join(aim.text for aim in self.aims),
            "met": self.met,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all values do not exceed (nearest rank).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    rank = max(1, math.ceil(len(values) * percent / 100))
    return sorted(values)[rank - 1]


def kumar_ross_s(size: int, peers: int, seed_up: float, peer_up: float, peer_down: float = math.inf) -> float:
    """Seconds in which no protocol can be faster at giving a file to all of a swarm.

    Kumar and Ross, "Peer-assisted file distribution: the minimum distribution time" (HotWeb 2006).

    Args:
        size: bytes of the file.
        peers: leechers, not counting the seed.
        seed_up: the seed's uplink, bytes per second.
        peer_up: each leecher's.
        peer_down: the slowest leecher's downlink.
    """
    together = peers * size / (seed_up + peers * peer_up)
    return max(size / seed_up, size / peer_down, together)
