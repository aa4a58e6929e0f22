"""What a daemon's process waits for."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Final

_log = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


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
