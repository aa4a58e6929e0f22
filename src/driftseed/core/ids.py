"""Identifiers, each parsed once at the border and a type of its own from there on."""

from __future__ import annotations

import re
from typing import Final, NewType

from driftseed.core.errors import Misuse

DeviceId = NewType("DeviceId", str)
"""A device's Ed25519 public key, 64 lowercase hexadecimal characters: also its iroh endpoint id."""
FleetId = NewType("FleetId", str)
"""SHA-256 of the fleet's first root.json, 64 lowercase hexadecimal characters."""
Digest = NewType("Digest", str)
"""A SHA-256, 64 lowercase hexadecimal characters."""
SafeName = NewType("SafeName", str)
"""A name that is one harmless path component: releases, versions, file names, modules."""

_FIELD: Final = 2**255 - 19
_ORDER_8: Final = 2707385501144840649318225287225658788936804267575313519463743609750303402022
_SMALL_ORDER: Final = frozenset({0, 1, _ORDER_8, _FIELD - _ORDER_8, _FIELD - 1, _FIELD, _FIELD + 1})
"""The y coordinates of Ed25519's points of order 1, 2, 4 and 8, in every spelling that 255 bits allow."""

_HEX64 = re.compile(r"[0-9a-f]{64}")
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")


def _hex64(text: str, what: str) -> str:
    if not _HEX64.fullmatch(text):
        raise Misuse(f"not {what}: {text[:80]!r}", hint="it has 64 characters of 0-9 and a-f")
    return text


def is_weak_key(key: bytes) -> bool:
    """Whether an Ed25519 public key is a point of small order (RFC 8032, section 5.1; RFC 7748, section 6.1).

    Nobody holds the private half of such a key and everybody can sign for it: OpenSSL takes a signature of zeros
    for one message in four. So it must never stand for anyone.
    """
    return int.from_bytes(key, "little") & (2**255 - 1) in _SMALL_ORDER


def parse_device_id(text: str) -> DeviceId:
    """Check a device id. Raises Misuse."""
    return DeviceId(_hex64(text, "a device id"))


def parse_fleet_id(text: str) -> FleetId:
    """Check a fleet id. Raises Misuse."""
    return FleetId(_hex64(text, "a fleet id"))


def parse_digest(text: str) -> Digest:
    """Check a SHA-256 in hexadecimal. Raises Misuse."""
    return Digest(_hex64(text, "a SHA-256"))


def parse_safe_name(text: str, what: str) -> SafeName:
    """Check that a name can be one path component and nothing else.

    Args:
        text: the name, from a person or a signed document.
        what: what it names, for the message ("release name").

    Raises:
        Misuse: it is empty, longer than 128 characters, or has a character outside A-Z a-z 0-9 . _ + ~ -
            or does not start with a letter or digit.
    """
    if not _SAFE.fullmatch(text):
        raise Misuse(
            f"not a usable {what}: {text[:160]!r}",
            hint="1 to 128 of A-Z a-z 0-9 . _ + ~ -, the first one a letter or digit",
        )
    return SafeName(text)
