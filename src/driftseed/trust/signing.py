"""Making and signing TUF metadata: what the publisher's side and a hub's renewal share.

Lifetimes balance two risks. A short one limits how long a device can be kept at an old state without noticing
(freeze attack, TUF 1.5.2); a long one lets a fleet outlive its operator's holiday. The timestamp is short, as
hubs renew it by themselves; the rest is signed by people, or by a build system that may stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from driftseed.core.errors import ClockWrong, KeyUnusable
from driftseed.trust.tufapi import Metadata, MetaFile, SignedT, Signer, Timestamp, UnsignedMetadataError

ROOT_LIFETIME: Final = timedelta(days=2 * 365)
ROLE_LIFETIME: Final = timedelta(days=365)
"""Of targets, its delegations, and the snapshot."""
TIMESTAMP_LIFETIME: Final = timedelta(days=30)

Clock = Callable[[], float]
"""Seconds since 1970, UTC."""


def instant(clock: Clock) -> datetime:
    """The clock's time, whole seconds.

    Raises:
        ClockWrong: the clock says what no calendar has.
    """
    seconds = clock()
    try:
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=0)
    except (ValueError, OverflowError, OSError):
        raise ClockWrong(
            f"this device's clock says {seconds!r} seconds since 1970", hint="set the clock"
        ) from None


def expiry(clock: Clock, lifetime: timedelta) -> datetime:
    """When something signed now ends.

    Raises:
        ClockWrong: the clock is beyond the calendar's end.
    """
    try:
        return instant(clock) + lifetime
    except OverflowError:
        raise ClockWrong("this device's clock is at the end of the calendar", hint="set the clock") from None


def sign(payload: SignedT, signers: Iterable[Signer]) -> bytes:
    """Sign a payload with every signer; returns the metadata file."""
    metadata = Metadata(payload)
    for signer in signers:
        add_signature(metadata, signer)
    return metadata.to_bytes()


def add_signature(metadata: Metadata[SignedT], signer: Signer) -> None:
    """Sign metadata, beside the signatures that it has. Raises KeyUnusable: a key device or service did not."""
    try:
        metadata.sign(signer, append=True)
    except UnsignedMetadataError as error:
        raise KeyUnusable(
            f"key {signer.public_key.keyid[:16]} did not sign: {error}",
            hint="check the device or credentials, and for hsm: PYKCS11LIB",
        ) from error


def meta_file(version: int, data: bytes) -> MetaFile:
    """How one metadata file names another: version, length and SHA-256."""
    return MetaFile.from_data(version, data, ["sha256"])


def sign_timestamp(version: int, snapshot: MetaFile, clock: Clock, signers: Iterable[Signer]) -> bytes:
    """Sign a timestamp over a snapshot, for TIMESTAMP_LIFETIME from now."""
    payload = Timestamp(version=version, expires=expiry(clock, TIMESTAMP_LIFETIME), snapshot_meta=snapshot)
    return sign(payload, signers)
