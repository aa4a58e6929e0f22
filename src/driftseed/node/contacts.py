"""The directory book on disk: whom a node knew is dialled again after a restart, hub or no hub."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from driftseed.core import limits
from driftseed.core.errors import DiskFull
from driftseed.core.model import NodeAddress
from driftseed.core.neighbours import DirectoryBook
from driftseed.core.wire import DirectoryEntry
from driftseed.store.files import atomic_write

_log = logging.getLogger(__name__)

CONTACTS_FILE: Final = "contacts.json"
SAVE_EVERY_S: Final = 20.0
"""Seconds between looks at whether there is anything to save."""
_SAVED_MAX: Final = 4 * limits.DIRECTORY_ENTRIES_MAX


def load_contacts(path: Path, book: DirectoryBook, now: float) -> None:
    """Have the book learn what was saved; a file that cannot be read costs only the shortcut."""
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[DirectoryEntry])
    except FileNotFoundError:
        return
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _log.warning("contacts are lost", extra={"fields": {"path": str(path), "why": str(error)}})
        return
    book.learn(entries, now)


async def keep_contacts(path: Path, book: DirectoryBook, monotonic: Callable[[], float]) -> None:
    """Save when somebody new was met, until cancelled: a device that loses its power is not asked first."""
    saved: list[NodeAddress] = []
    while True:
        # The flash pays for each write, so that it is a look now and then and not an event.
        await asyncio.sleep(SAVE_EVERY_S)
        entries = book.entries(monotonic(), limit=_SAVED_MAX)
        addresses = sorted((entry.address for entry in entries), key=lambda each: each.device)
        if addresses != saved:
            await asyncio.to_thread(_write, path, entries)
            saved = addresses


def save_contacts(path: Path, book: DirectoryBook, now: float) -> None:
    """Save the devices that we have met, if there is space for them."""
    _write(path, book.entries(now, limit=_SAVED_MAX))


def _write(path: Path, entries: list[DirectoryEntry]) -> None:
    if not entries:
        return
    try:
        atomic_write(path, msgspec.json.encode(entries), mode=0o600)
    except DiskFull as error:
        _log.warning("contacts are not saved", extra={"fields": {"why": error.message}})
