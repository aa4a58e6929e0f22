"""Where the passphrase of a fleet's keys comes from: the environment, or a person at a terminal."""

from __future__ import annotations

import getpass
import os
import sys
from typing import Final

from driftseed.core.errors import Misuse, PassphraseNeeded

VARIABLE: Final = "DRIFTSEED_PASSPHRASE"
PIN_VARIABLE: Final = "DRIFTSEED_PIN"
PIN: Final = "pin of "
"""How a key that is asked for begins when it is a smart card or HSM."""

UNENCRYPTED_MEANS: Final = (
    "keys are written without a passphrase: whoever can read these files, a backup of them or this disk "
    "can sign releases and deployments for the whole fleet"
)


class Passphrases:
    """Asks at most once per command, as ``fleet init`` gives all keys of a fleet the same passphrase.

    A build system sets ``DRIFTSEED_PASSPHRASE``; a person is asked, and only at a terminal, so that a command
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
        """
        if key.startswith(PIN):
            return self._pin(key)
        if self._known is None:
            given = _from_environment()
            self._known = _ask(f"Passphrase of {key}: ", key) if given is None else given
        return self._known

    @staticmethod
    def _pin(key: str) -> bytes:
        given = os.environ.get(PIN_VARIABLE)
        return os.fsencode(given) if given else _ask(f"{key[:1].upper()}{key[1:]}: ", key, PIN_VARIABLE)


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
    if (given := _from_environment()) is not None:
        return given
    first = _ask("Passphrase for the new keys: ", "new keys")
    if not first:
        raise Misuse("an empty passphrase", hint="type one, or say --no-passphrase")
    if _ask("The same again: ", "new keys") != first:
        raise Misuse("the two passphrases are not the same", hint="try again")
    return first


def _from_environment() -> bytes | None:
    given = os.environ.get(VARIABLE)
    return os.fsencode(given) if given else None


def _ask(prompt: str, key: str, variable: str = VARIABLE) -> bytes:
    if not sys.stdin.isatty():
        raise PassphraseNeeded(
            f"a passphrase is needed ({key}), and there is no terminal to ask at",
            hint=f"set {variable}, or for a new fleet say --no-passphrase",
        )
    return getpass.getpass(prompt).encode()
