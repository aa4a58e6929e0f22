"""What a NAT does, told from what came back through it (RFC 4787's words, RFC 5780's questions).

A server with two addresses and two ports each is asked from one socket at what address it sees us (the
*mapping*), and from a fresh one to answer from where we have not sent to (the *filtering*). This module
judges the answers, and says what path two devices can have at best; whoever asks lives elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from driftseed.core.stun import SocketAddr

PathAtBest: TypeAlias = Literal["direct", "relayed"]


class Mapping(StrEnum):
    """On what the outer address of one inner socket depends (RFC 4787, section 4.1)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    BLOCKED = "blocked"
    """No UDP passes at all."""


class Filtering(StrEnum):
    """Whose packets are let in to an inner socket (RFC 4787, section 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Observations:
    """What was asked and what came back.

    Args:
        local: our own address and port of the socket that the mapping was asked with.
        first: where the server's first address and port sees that socket; None when nothing came back.
        other_address: where its second address, same port, sees the same socket.
        other_both: where its second address and second port see it.
        answer_from_elsewhere: on a fresh socket that had sent to the first address only, an answer came from
            the second address and port.
        answer_from_other_port: likewise, from the first address and the second port.
        hairpin: a packet to our own outer address came back in; None when it was not tried.
        open_after: seconds of silence, and whether a packet from the first address and port still came in.
    """

    local: SocketAddr
    first: SocketAddr | None
    other_address: SocketAddr | None = None
    other_both: SocketAddr | None = None
    answer_from_elsewhere: bool = False
    answer_from_other_port: bool = False
    hairpin: bool | None = None
    open_after: MappingOf[float, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a NAT, or its absence, does to UDP."""

    mapping: Mapping
    filtering: Filtering
    translated: bool = True
    """Our outer address is not our own."""
    port_kept: bool = False
    """The outer port is the inner one."""
    hairpin: bool | None = None
    """Two devices behind it reach each other by their outer addresses; None when it was not tried."""
    open_at_least_s: float = 0.0
    """Seconds of silence after which it was seen to be still open."""
    open_less_than_s: float | None = None
    """Seconds of silence after which it was seen to be closed; None when never."""

    @property
    def predictable(self) -> bool:
        """One outer address serves for every peer: it can be told to others and dialled by them."""
        return self.mapping is Mapping.ENDPOINT_INDEPENDENT


def classify(seen: Observations) -> Behaviour:
    """Name a NAT's behaviour (RFC 5780, sections 4.3 and 4.4)."""
    if seen.first is None:
        return Behaviour(Mapping.BLOCKED, Filtering.BLOCKED)
    if seen.first == seen.other_address == seen.other_both:
        mapping = Mapping.ENDPOINT_INDEPENDENT
    elif seen.other_address is not None and seen.other_address == seen.other_both:
        mapping = Mapping.ADDRESS_DEPENDENT
    else:
        mapping = Mapping.ADDRESS_AND_PORT_DEPENDENT
    if seen.answer_from_elsewhere:
        filtering = Filtering.ENDPOINT_INDEPENDENT
    elif seen.answer_from_other_port:
        filtering = Filtering.ADDRESS_DEPENDENT
    else:
        filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT
    still = [after for after, came in seen.open_after.items() if came]
    gone = [after for after, came in seen.open_after.items() if not came]
    return Behaviour(
        mapping=mapping,
        filtering=filtering,
        translated=seen.first != seen.local,
        port_kept=seen.first[1] == seen.local[1],
        hairpin=seen.hairpin,
        open_at_least_s=max(still, default=0.0),
        open_less_than_s=min(gone, default=None),
    )


def best_path(one: Behaviour, other: Behaviour, *, shared_nat: bool = False) -> PathAtBest:
    """What path two devices can have, once each has told the other its outer address.

    With a predictable address on both sides both send, and both NATs open. When one address cannot be known
    beforehand, its packets must be let in unasked: by a filter that looks at no port.

    Args:
        one: one side.
        other: the other side.
        shared_nat: both outermost NATs are the same one, so that the way leads in and out of it again.
    """
    if Mapping.BLOCKED in {one.mapping, other.mapping}:
        return "relayed"
    if shared_nat and not (one.hairpin and other.hairpin):
        return "relayed"
    if one.predictable and other.predictable:
        return "direct"
    if one.predictable == other.predictable:
        return "relayed"
    steady = one if one.predictable else other
    return "relayed" if steady.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT else "direct"
