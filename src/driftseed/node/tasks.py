"""Owned tasks: every task has an owner that cancels it and waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from driftseed.core import limits

_log = logging.getLogger(__name__)


class TaskOwner:
    """Starts tasks, notices when one fails, ends them all on close.

    A failure of one task does not end the others, as one peer must not take a node down; it is logged with
    its traceback, because it is a fault of ours: expected errors are handled where they are expected.

    Args:
        name: for the log.
        on_failure: told of a task that failed, where going on without it would be worse than ending.
    """

    def __init__(self, name: str, on_failure: Callable[[BaseException], None] | None = None) -> None:
        self._name = name
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Start a task; None (and the work is dropped) once the owner is closed."""
        if self._closed:
            work.close()
            return None
        task = asyncio.create_task(work, name=f"{self._name}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s failed", task.get_name(), exc_info=error)
            if self._on_failure is not None:
                self._on_failure(error)

    async def close(self, timeout_s: float = limits.SHUTDOWN_S) -> None:
        """Cancel all tasks and wait for their ends, at most ``timeout_s`` seconds."""
        self._closed = True
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=timeout_s)
            for task in pending:
                _log.error("task %s did not end in %.0f s", task.get_name(), timeout_s)
