"""What a daemon's process waits for."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Final

_log = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def until_signalled() -> None:
    """Wait for SIGTERM or SIGINT; a second one while shutting down has its usual effect again."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, asked.set)
    try:
        await asked.wait()
        _log.info("asked to stop")
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
