"""How values on the command line are written: durations, ``k=v`` pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from driftseed.core import limits
from driftseed.core.errors import Misuse, SelectorError
from driftseed.core.selectors import Operator, Requirement, parse_selector

_DURATION = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_PART = re.compile(r"([0-9]+)([smhdw])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
DURATION_MAX_S: Final = 10 * 366 * 86400
"""Seconds: ten years. More is a slip of the hand, and some clocks end in 2038."""


def parse_duration(text: str, *, most: float = DURATION_MAX_S) -> float:
    """Read ``30m``, ``12h``, ``7d``, ``1d12h``.

    Args:
        text: numbers, each with s, m, h, d or w after it.
        most: seconds that it may be at most.

    Returns:
        Seconds, more than 0.

    Raises:
        Misuse: not of this form, nothing at all, or more than ``most``.
    """
    if not _DURATION.fullmatch(text):
        raise Misuse(f"not a duration: {text[:80]!r}", hint="write 90s, 30m, 12h, 7d or 1d12h")
    seconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= most:
        raise Misuse(
            f"{text[:80]} is out of range", hint=f"more than 0s, at most {format_duration(int(most))}"
        )
    return float(seconds)


_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """Read a number of bytes: ``4096``, ``64K``, ``4M``, ``50G``; units are powers of 1024.

    Raises:
        Misuse: it is not one, or over a pebibyte.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(found[1]) * _SIZE_UNITS[found[2].upper()] if found else -1
    if not 0 <= size <= 2**50:
        raise Misuse(f"not a number of bytes: {text[:80]!r}", hint="write 4096, 64K, 4M or 50G")
    return size


def format_duration(seconds: int) -> str:
    """Write a whole number of seconds so that ``parse_duration`` reads the same again."""
    text = ""
    for unit in ("d", "h", "m", "s"):
        count, seconds = divmod(seconds, _UNITS[unit])
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_pairs(pairs: Iterable[str], what: str) -> dict[str, str]:
    """Read ``k=v`` pairs; a value may contain more equals signs.

    Raises:
        Misuse: no equals sign, an empty key, or a key given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Misuse(f"not a {what}: {pair[:80]!r}", hint=f"write --{what} KEY=VALUE")
        if key in found:
            raise Misuse(f"{what} {key!r} is given twice", hint=f"leave one {what} {key}=... out")
        found[key] = value
    return found


def parse_labels(pairs: Iterable[str]) -> dict[str, str]:
    """Read labels, which have Kubernetes' syntax.

    Raises:
        Misuse: a key or value that no selector could match, or more labels than a device may have.
    """
    labels = parse_pairs(pairs, "label")
    for key, value in labels.items():
        if (
            len(key) > limits.LABEL_CHARS_MAX
            or len(value) > limits.LABEL_CHARS_MAX
            or not _selectable(key, value)
        ):
            raise Misuse(
                f"not a label: {key[:80]}={value[:80]}",
                hint="key and value have up to 63 of A-Z a-z 0-9 . _ -, the first and last one a letter or digit; "
                "before the key a DNS name and / may stand",
            )
    if len(labels) > limits.LABELS_MAX:
        raise Misuse(f"{len(labels)} labels, and a device may have {limits.LABELS_MAX}")
    return labels


def _selectable(key: str, value: str) -> bool:
    """Whether a selector can name exactly this pair: the selectors' own parser says what a label is."""
    try:
        selector = parse_selector(f"{key}={value}", known_keys=None)
    except SelectorError:
        return False
    return selector.requirements == (Requirement(key, Operator.IN, (value,)),)
