"""Runs the command line as a person would: in this process where that is the same, as a process where not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from driftseed.cli.main import run


@dataclass(frozen=True)
class Outcome:
    """What a command left behind for its caller."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


class Cli:
    """Commands in this process, with the real entry point and the real streams."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Outcome(code, captured.out, captured.err)

    def ok(self, *arguments: str | Path) -> Outcome:
        """A command that must succeed."""
        outcome = self(*arguments)
        assert outcome.code == 0, outcome.err + outcome.out
        return outcome

    def refused(self, code: int, reason: str, *arguments: str | Path) -> str:
        """A command that must fail, for people and for programs alike.

        Returns:
            What it said to people on standard error.
        """
        for_people = self(*arguments)
        assert for_people.code == code, for_people
        assert for_people.out == ""
        assert for_people.err.startswith("error: ")
        for_programs = self(*arguments, "--json")
        assert for_programs.code == code
        error = for_programs.json["error"]
        assert (error["reason"], error["exit_code"]) == (reason, code)
        assert set(error) == {"reason", "exit_code", "message", "hint"}
        return for_people.err


def run_process(
    *arguments: str | Path, stdin: str | None = None, environment: Mapping[str, str] | None = None
) -> Outcome:
    """A command as a process of its own, without a terminal."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("DRIFTSEED_")}
    done = subprocess.run(
        [sys.executable, "-m", "driftseed", *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=env | dict(environment or {}),
        start_new_session=True,
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr)


def snapshot(directory: Path) -> dict[str, str]:
    """Every file below a directory with its mode and the hash of its content."""
    return {
        str(
            path.relative_to(directory)
        ): f"{path.lstat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def labels(pairs: Sequence[str]) -> list[str]:
    """``--label`` before each pair."""
    return [word for pair in pairs for word in ("--label", pair)]
