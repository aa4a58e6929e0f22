"""A content that the engine shall carry, kept where the death of the engine does not reach it."""

from __future__ import annotations

from dataclasses import dataclass, field

from driftseed.core import limits
from driftseed.swarm import protocol


@dataclass(slots=True)
class Wanted:
    """One content."""

    add: protocol.Add
    """How the engine is told to carry it."""
    peers: dict[tuple[str, int], None] = field(default_factory=dict)
    """Addresses it was told to connect to, the newest last; at most ``limits.SWARM_PEERS_MAX``."""

    def remember(self, ip: str, port: int) -> None:
        """Take an address in as the newest; the oldest goes where there are too many."""
        self.peers.pop((ip, port), None)
        self.peers[ip, port] = None
        while len(self.peers) > limits.SWARM_PEERS_MAX:
            del self.peers[next(iter(self.peers))]

    def commands(self) -> list[protocol.Command]:
        """All that an engine must be told that knows nothing of it."""
        connects = (protocol.ConnectPeer(sha256=self.add.sha256, ip=ip, port=port) for ip, port in self.peers)
        return [self.add, *connects]
