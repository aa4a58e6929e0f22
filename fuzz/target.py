"""What a fuzz target is, and what it may find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Try: TypeAlias = Callable[[bytes], None]
"""Takes one input. Whatever it raises is a finding."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that reads what strangers send."""

    prepare: Callable[[Path], Try]
    """Called once with a scratch directory of its own."""
    seeds: Callable[[], Iterable[bytes]]
    """Inputs to begin from: good ones, and those that have once been found."""
    max_length: int = 4096
    """Bytes of an input."""


class Finding(AssertionError):
    """A promise that an input broke, though nothing was raised."""


def promise(holds: object, what: str) -> None:
    """Raise Finding unless something holds."""
    if not holds:
        raise Finding(what)
