"""Where metadata and small targets come from."""

from __future__ import annotations

from typing import Protocol

from driftseed.core.errors import FileMissing, PeerMisbehaved, TransportError
from driftseed.trust.chain import Read


class MetadataSource(Protocol):
    """Gives files by their repository name; a neighbour, a kit, a test's attacker."""

    def fetch(self, name: str, max_length: int) -> bytes:
        """Fetch one file. Called in a worker thread; may block, within its own timeout.

        Args:
            name: such as ``metadata/4.snapshot.json``.
            max_length: bytes; one that gives more has misbehaved, and is not believed.

        Raises:
            FileMissing: it does not have this file.
            TransportError: it failed.
        """


class FilesSource:
    """Files that are at hand: the first layer that has one gives it.

    ``FilesSource({TIMESTAMP_NAME: renewed}.get, trust.serve)`` is what this node has, under a newer timestamp.
    """

    def __init__(self, *layers: Read) -> None:
        self._layers = layers

    def fetch(self, name: str, max_length: int) -> bytes:  # noqa: ARG002 - the reader checks the length
        """Give a file. Raises FileMissing."""
        for read in self._layers:
            if (data := read(name)) is not None:
                return data
        raise FileMissing(f"{name} is not at hand")


def fetch_bounded(source: MetadataSource, name: str, max_length: int) -> bytes:
    """Fetch a file and hold the source to its contract: bounded, and failing only as it may.

    Raises:
        FileMissing: it does not have this file.
        PeerMisbehaved: ``file-too-large`` (TUF 1.5.2, endless data attack).
        TransportError: every other failure.
    """
    try:
        data = source.fetch(name, max_length)
    except OSError as error:
        raise TransportError(f"{name} could not be fetched: {error}") from error
    if len(data) > max_length:
        raise PeerMisbehaved(
            f"{name} came with {len(data)} bytes where {max_length} are allowed", kind="file-too-large"
        )
    return data
