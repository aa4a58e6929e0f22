"""Instants in what is signed, and how people are told of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta

Instant = Annotated[float, Meta(ge=0.0, le=253402300799.0)]
"""Seconds since 1970, UTC, up to the year 9999."""


def describe_time(seconds: float) -> str:
    """An instant for people: RFC 3339, UTC, whole seconds; the number itself where a calendar has no such day."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s since 1970"
