"""Find update modules and call them, as Mender's update-module protocol v3 says.

A module is an executable that is called with a state and the absolute path of its working directory, which
is also its current directory. An exit status other than 0 is a failure. One status says more, as an
extension: 72 (this project's exit code for it) means that the disk is full, so that it is tried again
when there is space.

Augmented artifacts are not supported: nothing unsigned is ever given to a module, so ``header-augment``,
``streams-augment`` and ``files-augment`` never exist and the queries about them are never made.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from driftseed.core.errors import DiskFull, ModuleFailed, ModuleMissing, ModuleTimeout, UnsafePermissions
from driftseed.core.ids import parse_safe_name
from driftseed.core.updates import Reboot
from driftseed.install import process

BUILT_IN: Final = frozenset({"directory", "script", "single-file"})
"""Modules that come with the agent. One of the same name in a search directory is not used, so that a
release that names one of these means the same everywhere."""

_RUN_BUILT_IN: Final = Path(__file__).parent / "modules" / "run.py"
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_DETAIL_CHARS: Final = 2000


@dataclass(frozen=True, slots=True)
class ModuleResult:
    """How a call ended that was not cut short."""

    status: int
    """Exit status; negative: killed by that signal."""
    stdout: str
    output: str
    """The end of all that it printed."""


class ModuleRunner:
    """Calls update modules, one at a time.

    Args:
        search: directories with modules, the first one that has a name counts; they need not exist.
        run_dir: the agent's directory for working directories and the lock; made if it is not there.
        environment: what every module finds in its environment beside PATH and LANG
            (``DRIFTSEED_INSTALL_ROOT`` and ``DRIFTSEED_STATE_DIR`` at least). No secrets.
    """

    def __init__(self, search: Sequence[Path], run_dir: Path, environment: Mapping[str, str]) -> None:
        self._search = tuple(search)
        self._environment = dict(environment)
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.lock = run_dir / "lock"
        """Held by whatever runs: a health check uses the same, so that only one thing happens at once."""

    def environment(self, values: Mapping[str, str]) -> dict[str, str]:
        """What a module, or a health check, finds in its environment beside PATH and LANG."""
        return {**self._environment, **values}

    def names(self) -> frozenset[str]:
        """Names of all modules that can be called."""
        found = set(BUILT_IN)
        for directory in self._search:
            if directory.is_dir():
                found.update(path.name for path in directory.iterdir() if not _objection(path))
        return frozenset(found)

    def command(self, module: str) -> list[str]:
        """The program of a module.

        Raises:
            ModuleMissing: there is none, or it is not executable.
            UnsafePermissions: others could change what would be run.
            Misuse: not a name that a module can have.
        """
        name = parse_safe_name(module, "update module name")
        if name in BUILT_IN:
            return [sys.executable, "-I", "-S", str(_RUN_BUILT_IN), name]
        for directory in self._search:
            path = directory / name
            if path.exists():
                if objection := _objection(path):
                    raise objection
                return [str(path)]
        raise ModuleMissing(
            f"no update module {name!r} on this device",
            hint=f"put an executable of that name into {_listed(self._search)}",
        )

    async def call(
        self,
        module: str,
        state: str,
        workdir: Path,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> ModuleResult:
        """Call a module with a state or a question.

        Args:
            module: its name.
            state: first argument.
            workdir: second argument and current directory: the root of the File API tree.
            timeout_s: seconds that it may take.
            environment: values beside the runner's own.

        Raises:
            ModuleMissing, UnsafePermissions: it cannot be called.
            ModuleTimeout: it did not end in time; it and all that it started were killed.
            ModuleFailed: no process can be started for it, such as for want of memory.
        """
        command = [*self.command(module), state, str(workdir)]
        try:
            outcome = await process.run(
                command,
                directory=workdir,
                environment=process.scrubbed_environment(self.environment(environment or {})),
                timeout_s=timeout_s,
                lock=self.lock,
            )
        except OSError as error:
            raise ModuleFailed(f"{module} cannot be started for {state}: {error}") from error
        if outcome.status is None:
            raise ModuleTimeout(
                f"{module} did not end {state} in {timeout_s:g} s and was killed" + _said(outcome.output)
            )
        return ModuleResult(outcome.status, outcome.stdout, outcome.output)

    async def run(
        self,
        module: str,
        state: str,
        workdir: Path,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> ModuleResult:
        """``call`` for which anything but success is an error.

        Raises:
            ModuleFailed: it returned a failure.
            DiskFull: it says that the disk is full.
            ModuleMissing, UnsafePermissions, ModuleTimeout: see ``call``.
        """
        result = await self.call(module, state, workdir, timeout_s, environment)
        if result.status == DiskFull.exit_code:
            raise DiskFull(
                f"{module} has no space left in {state}" + _said(result.output),
                hint="free some space; it is tried again",
            )
        if result.status != 0:
            how = (
                f"was killed by signal {-result.status}" if result.status < 0 else f"returned {result.status}"
            )
            raise ModuleFailed(f"{module} {how} in {state}" + _said(result.output))
        return result

    async def ask(
        self,
        module: str,
        question: str,
        workdir: Path,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Ask a module one of the protocol's questions.

        Returns:
            The one line that it answers; empty when it says nothing, which means the question's default.

        Raises:
            ModuleFailed: it returned a failure, or more than one line.
            DiskFull, ModuleMissing, UnsafePermissions, ModuleTimeout: see ``run``.
        """
        result = await self.run(module, question, workdir, timeout_s, environment)
        if "\n" in result.stdout:
            raise ModuleFailed(f"{module} answers {question} with more than one line" + _said(result.stdout))
        return result.stdout


def parse_yes_no(module: str, question: str, answer: str) -> bool:
    """``Yes`` or ``No``; no answer is a no.

    Raises:
        ModuleFailed: it is something else.
    """
    if answer in {"", "No"}:
        return False
    if answer == "Yes":
        return True
    raise ModuleFailed(f"{module} answers {question} with {answer[:80]!r}: Yes or No was asked for")


def parse_reboot(module: str, answer: str) -> Reboot:
    """The answer to ``NeedsArtifactReboot``; no answer is a no.

    Raises:
        ModuleFailed: it is something else.
    """
    try:
        return Reboot(answer) if answer else Reboot.NO
    except ValueError:
        raise ModuleFailed(
            f"{module} answers NeedsArtifactReboot with {answer[:80]!r}: No, Yes or Automatic was asked for"
        ) from None


def _said(output: str) -> str:
    return f": {output[-_DETAIL_CHARS:]}" if output else ""


def _objection(path: Path) -> ModuleMissing | UnsafePermissions | None:
    """Why a file in a search directory cannot be called, or None."""
    try:
        status, directory = path.stat(), path.parent.stat()
    except OSError as error:
        return ModuleMissing(f"update module {path}: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return ModuleMissing(f"update module {path} is not a file")
    if not os.access(path, os.X_OK):
        return ModuleMissing(f"update module {path} is not executable", hint=f"chmod 755 {path}")
    for who, what in ((path, status), (path.parent, directory)):
        if what.st_mode & _WRITABLE_BY_OTHERS:
            return UnsafePermissions(
                f"{who} can be changed by others than its owner", hint=f"chmod go-w {who}"
            )
        if what.st_uid not in {0, os.geteuid()}:
            return UnsafePermissions(
                f"{who} belongs to another user (id {what.st_uid})", hint=f"chown {os.geteuid()} {who}"
            )
    return None


def _listed(directories: Iterable[Path]) -> str:
    return " or ".join(str(directory) for directory in directories) or "a directory that the agent searches"
