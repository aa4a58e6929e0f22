"""Opens a fleet's directory for a command, with the clock and the person's passphrase."""

from __future__ import annotations

import time
from pathlib import Path

from driftseed.cli.passphrase import Passphrases
from driftseed.trust.ceremony import FleetKeys
from driftseed.trust.repository import FleetRepository


def open_fleet(directory: Path) -> FleetRepository:
    """Open the fleet in a directory. Asks for a passphrase only when a key is used that has one.

    Raises:
        NotFound: no fleet there.
        StoreDamaged: a file of it cannot be read.
    """
    return FleetRepository.open(directory, Passphrases(), time.time)


def open_keys(directory: Path) -> FleetKeys:
    """Open the fleet in a directory, to change who signs what. Raises as ``open_fleet``."""
    return FleetKeys.open(directory, Passphrases(), time.time)
