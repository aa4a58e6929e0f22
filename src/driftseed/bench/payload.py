"""Files to carry: random, so that nothing on the way can make them smaller."""

from __future__ import annotations

import os
from pathlib import Path

from driftseed.core import limits


def write_random(path: Path, size: int) -> None:
    """Write a file of ``size`` random bytes."""
    with path.open("wb") as file:
        while size > 0:
            size -= file.write(os.urandom(min(size, limits.MIB)))
