"""Where the passphrase of a fleet's keys comes from: a file, the environment, or a person at a terminal."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Final

from driftseed.core.errors import Misuse, PassphraseNeeded
from driftseed.store.files import read_secret

VARIABLE: Final = "DRIFTSEED_PASSPHRASE"
PIN_VARIABLE: Final = "DRIFTSEED_PIN"
IN_A_FILE: Final = "_FILE"
"""What the name of a variable ends with that says in which file it is: ``DRIFTSEED_PASSPHRASE_FILE``."""
_READ_BYTES: Final = 4096
PIN: Final = "pin of "
"""How a key that is asked for begins when it is a smart card or HSM."""

UNENCRYPTED_MEANS: Final = (
    "keys are written without a passphrase: whoever can read these files, a backup of them or this disk "
    "can sign releases and deployments for the whole fleet"
)


class Passphrases:
    """Asks at most once per command, as ``fleet init`` gives all keys of a fleet the same passphrase.

    A build system sets ``DRIFTSEED_PASSPHRASE`` or ``DRIFTSEED_PASSPHRASE_FILE``; a person is asked, and only at a terminal, so that a command
    in a script fails with a clear message instead of waiting for an answer that nobody gives.
    """

    def __init__(self) -> None:
        self._known: bytes | None = None

    def __call__(self, key: str) -> bytes:
        """The passphrase for a key that is encrypted.

        Args:
            key: the key's file.

        Raises:
            PassphraseNeeded: nothing is in the environment and nobody can be asked.
            NotFound, UnsafePermissions, Misuse: the file that the environment names cannot be used.
        """
        if key.startswith(PIN):
            return self._pin(key)
        if self._known is None:
            given = _from_environment(VARIABLE)
            self._known = _ask(f"Passphrase of {key}: ", key) if given is None else given
        return self._known

    @staticmethod
    def _pin(key: str) -> bytes:
        given = _from_environment(PIN_VARIABLE)
        return given or _ask(f"{key[:1].upper()}{key[1:]}: ", key, PIN_VARIABLE)


def new_passphrase(*, none: bool) -> bytes | None:
    """The passphrase for keys about to be made.

    Args:
        none: the person said ``--no-passphrase``.

    Returns:
        None for keys that are written without one.

    Raises:
        PassphraseNeeded: nothing is in the environment and nobody can be asked.
        Misuse: the two answers differ, or are empty.
    """
    if none:
        return None
    if (given := _from_environment(VARIABLE)) is not None:
        return given
    first = _ask("Passphrase for the new keys: ", "new keys")
    if not first:
        raise Misuse("an empty passphrase", hint="type one, or say --no-passphrase")
    if _ask("The same again: ", "new keys") != first:
        raise Misuse("the two passphrases are not the same", hint="try again")
    return first


def _from_environment(variable: str) -> bytes | None:
    """What a variable says, or the file that it names with ``_FILE`` behind: without its last line's end."""
    if given := os.environ.get(variable):
        return os.fsencode(given)
    named = os.environ.get(variable + IN_A_FILE)
    if not named:
        return None
    path = Path(named)
    try:
        secret = read_secret(path, size=_READ_BYTES)
    except OSError as error:
        raise Misuse(f"{path} cannot be read: {error.strerror}") from None
    secret = secret.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise Misuse(f"{path} is empty", hint=f"{variable}{IN_A_FILE} names a file with one line")
    return secret


def _ask(prompt: str, key: str, variable: str = VARIABLE) -> bytes:
    if not sys.stdin.isatty():
        raise PassphraseNeeded(
            f"a passphrase is needed ({key}), and there is no terminal to ask at",
            hint=f"set {variable} or {variable}{IN_A_FILE}, or for a new fleet say --no-passphrase",
        )
    return getpass.getpass(prompt).encode()
