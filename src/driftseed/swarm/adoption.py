"""From fetched to kept: the moment in which ``SHA256.unverified`` becomes ``SHA256``, while others read it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from driftseed.core.errors import EngineFailed
from driftseed.core.ids import Digest
from driftseed.core.verified import VerifiedArtifact, VerifiedTorrent
from driftseed.swarm.client import Engine
from driftseed.swarm.content import ContentStore, flush

log = logging.getLogger(__name__)


async def adopt(
    engine: Engine, content: ContentStore, torrent: VerifiedTorrent, artifact: VerifiedArtifact
) -> Path:
    """Keep a content that was fetched and verified, and go on serving it without dropping a connection.

    The bytes reach the disk before the name does. The engine renames, as it knows when nobody is reading;
    if it cannot (it died, or does not carry it), the file is renamed here and the engine told afterwards.

    Args:
        engine: running or not.
        content: where it was fetched to.
        torrent: by which it was fetched.
        artifact: the partial file, verified.

    Returns:
        The file under its final name.

    Raises:
        DiskFull, NotFound, OSError: as ``ContentStore.adopt``; it can be called again.
    """
    digest = Digest(artifact.artifact.sha256)
    partial = content.partial_path(digest)
    if digest in engine.carried and partial.exists():
        await asyncio.to_thread(flush, partial)
        try:
            await engine.rename(digest, digest)
        except EngineFailed as error:
            log.info("renaming %s without the engine: %s", digest, error)
    path = await asyncio.to_thread(content.adopt, artifact)
    # A no-op when the engine has renamed it; otherwise it learns the new name now.
    await engine.seed(torrent, path)
    return path
