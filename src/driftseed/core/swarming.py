"""From whom a node fetches a content: a pure choice among its holders.

The cheapest path first: the own network, then direct paths, then hubs, which everyone else uses too. Relayed
paths cost a hub each byte twice and carry content only when it cannot be had otherwise.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from driftseed.core import limits
from driftseed.core.ids import DeviceId
from driftseed.core.neighbours import PathKind, Random

RELAYED_PEERS_MAX: Final = 2
"""Relayed devices from which one content is fetched at once."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A device that says it has a content, or is fetching it."""

    device: DeviceId
    whole: bool
    """It has all of it; otherwise it may have parts."""
    hub: bool = False
    path: PathKind = "unknown"
    connected: bool = False
    """Content is exchanged with it already."""


def choose_swarm_peers(
    holders: Collection[Holder], rng: Random, *, peers_max: int = limits.SWARM_PEERS_MAX
) -> tuple[DeviceId, ...]:
    """Whom to exchange a content with.

    Among equals those that are connected stay, then chance decides, so that the load spreads. There is
    always somebody among them who has the whole content, if anybody has: peers that all lack the same piece
    are no use to each other. Relayed holders are taken only when no other has the whole content.

    Args:
        holders: what the neighbours' states and the hubs' directory say, each device once.
        rng: picks among equals.
        peers_max: most devices at once.

    Returns:
        The best first. Those connected now that are not named should be let go.
    """
    shuffled = sorted(
        sorted(holders, key=lambda each: each.device), key=lambda each: (not each.connected, rng())
    )
    near = sorted((each for each in shuffled if each.path != "relayed"), key=_rank)
    chosen = near[:peers_max]
    if peers_max < 1 or any(each.whole for each in chosen):
        return tuple(each.device for each in chosen[: max(peers_max, 0)])
    sources = [each for each in near[peers_max:] if each.whole][:1]
    if not sources:
        relayed = [each for each in shuffled if each.path == "relayed"]
        relayed.sort(key=lambda each: not each.whole)
        wanted = [each for each in relayed if each.whole or not near]
        sources = wanted[: min(RELAYED_PEERS_MAX, peers_max)]
    chosen = chosen[: peers_max - len(sources)] + sources
    return tuple(each.device for each in chosen)


def _rank(holder: Holder) -> int:
    if holder.hub:  # a site's own gateway is nearer than anyone outside whom we have yet to reach
        return 3 if holder.path != "lan" else 2
    return {"lan": 0, "direct": 1, "unknown": 2, "relayed": 4}[holder.path]
