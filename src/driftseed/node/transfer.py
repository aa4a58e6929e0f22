"""One artifact on its way to this node, and how content is to be carried at all."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from driftseed.core import limits
from driftseed.core.ids import Digest
from driftseed.core.model import Artifact
from driftseed.core.verified import VerifiedRelease


@dataclass(frozen=True, kw_only=True)
class ContentSettings:
    """How much to keep, and how fast to carry it.

    Args:
        quota_bytes: content that is kept to serve to others.
        upload_limit: bytes per second; 0 is unlimited.
        download_limit: likewise.
        relay_budget: bytes per second of content, each way, on paths through relays; 0 is unlimited.
        super_seed: libtorrent's super-seeding, which costs each new peer ten seconds. None: no, as the
            members divide the pieces among themselves (``swarm/division.py``).
    """

    quota_bytes: int = limits.CONTENT_QUOTA_DEFAULT
    upload_limit: int = 0
    download_limit: int = 0
    super_seed: bool | None = None
    relay_budget: int = 0


@dataclass(slots=True, eq=False)
class Transfer:
    """One artifact on its way here."""

    release: VerifiedRelease
    artifact: Artifact
    arrived: asyncio.Future[None]
    """Every piece is here; the SHA-256 of the whole is not yet compared."""
    task: asyncio.Task[None] | None = None
    done: int = 0
    rate: int = 0
    problem: str = ""
    """Reason token of what holds it up; empty while nothing does."""
    detail: str = ""

    @property
    def sha256(self) -> Digest:
        """The artifact's."""
        return Digest(self.artifact.sha256)

    @property
    def progress(self) -> float:
        """0 to 1."""
        if self.arrived.done():
            return 1.0
        return self.done / self.artifact.length if self.artifact.length else 0.0
