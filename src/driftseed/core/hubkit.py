"""The hub kit: the one file that makes a machine a hub of a fleet.

JSON, mode 0600, written by ``driftseed fleet hub-kit`` and read by ``driftseed hub run``. It holds two private keys
without a passphrase, as a hub starts with nobody there to type one. What they can do is the least that a hub
needs: the enrolment key admits devices, the timestamp key renews the timestamp. Neither can make a device
install anything (docs/threat-model.md).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from driftseed.core.errors import StoreDamaged
from driftseed.core.model import FORMAT, Hex64, encode_document
from driftseed.core.tickets import fleet_of


class HubKit(Struct, frozen=True, kw_only=True):
    """What a hub needs and nothing more."""

    fleet: Hex64
    """SHA-256 of ``root``."""
    name: Annotated[str, Meta(max_length=128)]
    """The fleet's, for people."""
    root: bytes
    """The fleet's first root.json: the trust anchor. Base64 in the file."""
    enrolment_key: str
    """PEM, PKCS #8, unencrypted: signs membership certificates."""
    timestamp_key: str
    """PEM, PKCS #8, unencrypted: signs timestamp.json."""
    format: Annotated[int, Meta(ge=1, le=FORMAT)] = FORMAT


def encode_hub_kit(kit: HubKit) -> bytes:
    """The file's content."""
    return encode_document(kit)


def decode_hub_kit(data: bytes, where: str) -> HubKit:
    """Read a kit; its keys are not parsed here.

    Args:
        data: the file's content.
        where: the file's name, for messages.

    Raises:
        StoreDamaged: it is not a kit, or its root is not its fleet's.
    """
    try:
        kit = msgspec.json.decode(data, type=HubKit)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreDamaged(
            f"{where} is not a hub kit: {error}", hint="make a new one: driftseed fleet hub-kit DIR FILE"
        ) from None
    if kit.fleet != fleet_of(kit.root):
        raise StoreDamaged(
            f"{where}: its root is not that of its fleet",
            hint="make a new one: driftseed fleet hub-kit DIR FILE",
        )
    return kit
