"""Update module ``script``: the payload is a program that does the installing.

It is called as an update module is: ``PAYLOAD STATE DIRECTORY``, in that directory, with the same environment.
A program that ignores its arguments must not do its work for every question that it is asked, so it is
only called for ``ArtifactInstall``, unless the meta-data names more.

Meta-data:

- ``states`` (list of strings, default ``["ArtifactInstall"]``): for which of the protocol's states and questions
  the program is called. With ``ArtifactRollback`` among them, rollback is supported, unless
  ``SupportsRollback`` is among them too: then the program is asked.
- ``reboot`` (``"No"``, ``"Yes"`` or ``"Automatic"``, default ``"No"``): the answer to ``NeedsArtifactReboot``,
  unless that is among the states.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from driftseed.core.errors import ModuleFailed
from driftseed.install.modules.common import Handler, Module, Tree

_STATES = (
    "ArtifactInstall",
    "NeedsArtifactReboot",
    "ArtifactReboot",
    "ArtifactVerifyReboot",
    "ArtifactCommit",
    "SupportsRollback",
    "ArtifactRollback",
    "ArtifactRollbackReboot",
    "ArtifactVerifyRollbackReboot",
    "ArtifactFailure",
    "Cleanup",
)
_REBOOTS = ("No", "Yes", "Automatic")


def _states(tree: Tree) -> frozenset[str]:
    named = tree.meta.get("states", ["ArtifactInstall"])
    if not isinstance(named, list) or not all(each in _STATES for each in named):
        raise ModuleFailed(
            f"meta-data 'states' is {named!r}: a list of some of {', '.join(_STATES)} is needed"
        )
    return frozenset(named)


def _reboot(tree: Tree) -> str:
    named = tree.text("reboot") or "No"
    if named not in _REBOOTS:
        raise ModuleFailed(f"meta-data 'reboot' is {named!r}: No, Yes or Automatic is needed")
    return named


def _call(tree: Tree, state: str) -> None:
    """Become the program. Does not return."""
    program = tree.payload()
    program.chmod(0o700)
    sys.stdout.flush()
    os.chdir(tree.path)
    try:
        os.execv(program, [str(program), state, str(tree.path)])  # noqa: S606 - its content was signed to be run
    except OSError as error:
        raise ModuleFailed(
            f"{program.name} cannot be run: {error.strerror} (does its first line name an interpreter?)"
        ) from None


def _handler(state: str) -> Handler:
    def handle(tree: Tree) -> None:
        states = _states(tree)
        if state in states:
            if state == "Cleanup" and not Path(tree.path / "files").is_dir():
                return  # it failed before there was a program
            _call(tree, state)
        elif state == "SupportsRollback":
            sys.stdout.write("Yes\n" if "ArtifactRollback" in states else "No\n")
        elif state == "NeedsArtifactReboot":
            sys.stdout.write(f"{_reboot(tree)}\n")
        elif state == "ArtifactInstall":
            raise ModuleFailed("meta-data 'states' is without ArtifactInstall: nothing would be installed")

    return handle


def check(tree: Tree) -> None:
    """``Download``: refuse bad meta-data while nothing was touched."""
    _states(tree)
    _reboot(tree)


MODULE = Module({**{state: _handler(state) for state in _STATES}, "Download": check})
