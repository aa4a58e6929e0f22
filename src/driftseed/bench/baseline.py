"""Runs plain libtorrent (``driftseed.swarm.baseline``) as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Final

from driftseed.core.errors import EngineFailed

TIMEOUT_S: Final = 300.0


async def _start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "driftseed.swarm.baseline", *arguments, stdin=PIPE, stdout=PIPE
    )


async def _answer(process: asyncio.subprocess.Process) -> dict[str, float]:
    """The line that it says. Raises EngineFailed."""
    if process.stdout is None:
        raise EngineFailed("plain libtorrent was started without a pipe")
    async with asyncio.timeout(TIMEOUT_S):
        line = await process.stdout.readline()
    if not line:
        raise EngineFailed(f"plain libtorrent ended with status {await process.wait()}")
    answer: dict[str, float] = json.loads(line)
    return answer


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def pair(path: Path, directory: Path) -> float:
    """Seconds for a file from one process to another.

    Raises:
        EngineFailed: libtorrent failed. TimeoutError: it takes for ever.
    """
    seed = await _start("seed", os.fspath(path))
    try:
        port = int((await _answer(seed))["port"])
        leech = await _start("fetch", os.fspath(path), os.fspath(directory), str(port))
        try:
            return (await _answer(leech))["seconds"]
        finally:
            await _end(leech)
    finally:
        await _end(seed)


async def swarm(path: Path, directory: Path, peers: int, limit: int) -> tuple[float, float]:
    """Seconds until a limited swarm of one seed and ``peers`` leechers has a file, and the seed's copies.

    Raises:
        EngineFailed: libtorrent failed. TimeoutError: it takes for ever.
    """
    process = await _start("swarm", os.fspath(path), os.fspath(directory), str(peers), str(limit))
    try:
        answer = await _answer(process)
    finally:
        await _end(process)
    return answer["seconds"], answer["copies"]
