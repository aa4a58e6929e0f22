"""Becomes the agent's own program, ``python -P -m driftseed.agent OPTIONS``; it imports nothing of the agent."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import msgspec

MALLOC_ENVIRONMENT: Final[Mapping[str, str]] = {"MALLOC_ARENA_MAX": "2"}
"""For glibc: each of the engine's and Python's threads would otherwise get a heap of its own."""


def become(options: Mapping[str, Any]) -> NoReturn:
    """Replace this process by the agent's program, under the same process id (execve(2)).

    The command line's libraries would otherwise stay in a device's memory for as long as its agent runs.

    Args:
        options: of ``agent.main.AgentOptions``, by name.

    Raises:
        OSError: the interpreter cannot be started.
    """
    # What is written must not be lost with this program's memory.
    sys.stdout.flush()
    sys.stderr.flush()
    text = msgspec.json.encode(options, enc_hook=os.fspath).decode()
    os.execve(  # noqa: S606 - our own interpreter, arguments as a list
        sys.executable,
        [sys.executable, "-P", "-m", "driftseed.agent", text],
        {**MALLOC_ENVIRONMENT, **os.environ},
    )
