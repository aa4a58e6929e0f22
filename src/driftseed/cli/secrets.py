"""Secrets that commands are given: as a string, as ``@FILE``, or on standard input.

What is on a command line is shown to every user of the machine in the list of processes; a file and a pipe are not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from driftseed.cli.output import note
from driftseed.core import limits
from driftseed.core.errors import Misuse, NotFound, TicketDamaged
from driftseed.store.files import read_secret

STANDARD_INPUT: Final = "-"
_IN_A_FILE: Final = "@"
_TICKET_READ_BYTES: Final = 2 * limits.TICKET_BYTES_MAX
"""Bytes that are read of a ticket: mail programs wrap and quote it."""
_TOKEN_READ_BYTES: Final = 4 * limits.KIB


def read_ticket(text: str) -> str:
    """A ticket, however it was given.

    Args:
        text: the ticket itself, ``@FILE``, or ``-`` for standard input.

    Raises:
        NotFound: there is no such file.
        UnsafePermissions: others than its owner can read or change the file.
        TicketDamaged: the file cannot be read.
    """
    if text == STANDARD_INPUT:
        return sys.stdin.read(_TICKET_READ_BYTES)
    if not is_file(text):
        _warn("ticket", "@FILE (see 'driftseed fleet invite --out FILE') or -")
        return text
    path = Path(text[1:])
    try:
        return read_secret(path, size=_TICKET_READ_BYTES).decode("ascii", "replace")
    except NotFound:
        raise NotFound(
            f"there is no file {str(path)!r} with a ticket",
            hint="make one: driftseed fleet invite DIR --out FILE",
        ) from None
    except OSError as error:
        raise TicketDamaged(f"the ticket in {path} cannot be read: {error.strerror}") from None


def read_token(text: str | None) -> str | None:
    """An API token, however it was given; None when it was not.

    Raises:
        NotFound: there is no such file.
        UnsafePermissions: others than its owner can read or change the file.
        Misuse: the file cannot be read.
    """
    if text is None:
        return None
    if text == STANDARD_INPUT:
        return sys.stdin.read(_TOKEN_READ_BYTES).strip()
    if not is_file(text):
        _warn("token", "--token @FILE, --token - or DRIFTSEED_TOKEN")
        return text
    path = Path(text[1:])
    try:
        return read_secret(path, size=_TOKEN_READ_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise Misuse(f"the token in {path} cannot be read: {error.strerror}") from None


def is_file(text: str) -> bool:
    """Whether what was given says in which file the secret is."""
    return text.startswith(_IN_A_FILE)


def _warn(what: str, better: str) -> None:
    """To people only: a program that reads standard error has no use for it."""
    if sys.stderr.isatty():
        note(f"warning: every user of this machine can see a {what} on a command line; better: {better}")
