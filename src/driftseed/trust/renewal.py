"""A hub's renewal of the timestamp: the fleet stays fresh while its operator's machine is off.

The timestamp key can say "this snapshot is the newest" and nothing else: a thief of it can keep devices at a
state that was really signed, for as long as nobody meets a higher version, but can make them install nothing.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftseed.core.errors import Misuse
from driftseed.trust.chain import TIMESTAMP_NAME, verified
from driftseed.trust.device import FleetTrust
from driftseed.trust.keys import signer_for
from driftseed.trust.signing import TIMESTAMP_LIFETIME, Clock, instant, sign_timestamp
from driftseed.trust.tufapi import MetaFile, Timestamp


class TimestampRenewer:
    """Signs timestamps over snapshots that were signed as the newest before.

    What it returns goes through ``FleetTrust.refresh`` as everybody's:
    ``trust.refresh(FilesSource({TIMESTAMP_NAME: renewed}.get, trust.serve))``.

    Args:
        trust: knows the newest root, which says whose timestamps count.
        key: the timestamp key of the hub's kit.
        clock: seconds since 1970.
    """

    def __init__(self, trust: FleetTrust, key: Ed25519PrivateKey, clock: Clock) -> None:
        self._trust = trust
        self._signer = signer_for(key)
        self._clock = clock

    def renew(self, current: bytes, *, force: bool = False) -> bytes | None:
        """Sign the next version over the same snapshot when less than half of the lifetime is left.

        Args:
            current: the newest timestamp.json; it may have expired while the hub was off.
            force: whatever is left.

        Returns:
            The new timestamp.json; None when it is not time yet.

        Raises:
            MetadataInvalid: ``current`` is not signed as the trusted root says.
            Misuse: the root does not name this key any more.
        """
        timestamp = self._verified(current)
        left = timestamp.expires - instant(self._clock)
        if not force and left >= TIMESTAMP_LIFETIME / 2:
            return None
        return self._sign(timestamp.version + 1, timestamp.snapshot_meta)

    def reconcile(self, ours: bytes, other: bytes) -> bytes | None:
        """Settle two timestamps that were signed apart: by a publisher and a hub, or by two hubs.

        Devices keep the first of a version that they meet (TUF 5.4.3), and never go back to an older snapshot
        (5.5.5), so the newer snapshot needs a version above both.

        Returns:
            The next version over the newer snapshot, when ``other`` has the same version and a newer snapshot,
            or a newer version over an older snapshot; None when nothing is to be settled, or by others.

        Raises:
            MetadataInvalid: one of them is not signed as the trusted root says.
            Misuse: the root does not name this key any more.
        """
        mine, theirs = self._verified(ours), self._verified(other)
        ahead = theirs.snapshot_meta.version - mine.snapshot_meta.version
        if theirs.version == mine.version and ahead > 0:
            return self._sign(mine.version + 1, theirs.snapshot_meta)
        if theirs.version > mine.version and ahead < 0:
            return self._sign(theirs.version + 1, mine.snapshot_meta)
        return None

    def _verified(self, data: bytes) -> Timestamp:
        return verified(data, Timestamp, TIMESTAMP_NAME, self._trust.root, Timestamp.type)

    def _sign(self, version: int, snapshot: MetaFile) -> bytes:
        if self._signer.public_key.keyid not in self._trust.root.roles[Timestamp.type].keyids:
            raise Misuse(
                "the kit's timestamp key is not the fleet's any more",
                hint="make a new kit for this hub: driftseed fleet hub-kit",
            )
        return sign_timestamp(version, snapshot, self._clock, [self._signer])
