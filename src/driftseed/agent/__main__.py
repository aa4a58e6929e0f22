"""The agent's own program: ``python -P -m driftseed.agent OPTIONS``, see ``agent/program.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from driftseed.agent.main import AgentOptions, run
from driftseed.core.errors import DriftseedError

INTERRUPTED: Final = 130
"""Exit code after a second Ctrl-C, as the command line has it."""


def main(text: str) -> int:
    """Run the agent until it is stopped.

    Args:
        text: ``AgentOptions`` as JSON.

    Returns:
        The exit code: 0, or the ``exit_code`` of the error, which was printed.
    """
    options = msgspec.json.decode(text, type=AgentOptions, dec_hook=_path)
    try:
        run(options)
    except DriftseedError as error:
        _say(f"error: {error.message}")
        if error.hint:
            _say(f"hint: {error.hint}")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _path(_type: type, value: Any) -> Path:
    return Path(value)


def _say(text: str) -> None:
    """Print on standard error, with control characters visible: names in it come from files and peers."""
    sys.stderr.write("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
