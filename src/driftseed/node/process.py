"""A daemon's process: one for each data directory, and what it waits for."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

from driftseed.logs import LogOptions, configure
from driftseed.node.home import Home
from driftseed.store.files import DirectoryLock

_log = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run_alone(home: Home, log: LogOptions, daemon: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a daemon to its end, as the only process that uses its data directory.

    Raises:
        AlreadyRunning: another process uses it.
        Misuse: the log's file cannot be opened.
        Exception: what the daemon raises.
    """
    lock = DirectoryLock(home.directory)
    lock.acquire()
    try:
        handlers = configure(log)
        try:
            asyncio.run(daemon())
        finally:
            handlers.close()
    finally:
        lock.release()


async def until_signalled(failed: asyncio.Future[None]) -> None:
    """Wait for SIGTERM or SIGINT; a second one while shutting down has its usual effect again.

    Args:
        failed: ends with an error when a part of the daemon failed without which it must not go on: whoever
            supervises the process starts it again.

    Raises:
        BaseException: what ``failed`` ends with.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, asked.set)
    waiting = asyncio.create_task(asked.wait(), name="signals")
    try:
        ends: set[asyncio.Future[object]] = {waiting, failed}  # type: ignore[arg-type]  # only awaited
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
        _log.info("asked to stop")
    finally:
        waiting.cancel()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
