"""Every decoder under coverage-guided fuzzing: what was ever found stays found, and a short look for more."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

FUZZ: Final = Path(__file__).parent.parent / "fuzz"
TARGETS: Final = sorted(path.name for path in (FUZZ / "corpus").iterdir())
SECONDS: Final = 1
"""Of fuzzing for each target; ``make fuzz`` looks for longer."""
CORPUS_FILES_MAX: Final = 64
"""Inputs that are kept for each target: seeds and findings, not all that a run comes across."""


def run(*arguments: str, found: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FUZZ / "run.py"), *arguments],
        env={**os.environ, "FUZZ_FOUND": str(found)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def atheris() -> None:
    if importlib.util.find_spec("atheris") is None:
        if os.environ.get("CI", "") not in {"", "0", "false"}:
            pytest.fail("atheris is not installed, and CI fuzzes: pip install -e '.[fuzz]'")
        pytest.skip("atheris is not installed: pip install -e '.[fuzz]'")


def test_what_was_found_once_is_not_found_again(tmp_path: Path) -> None:
    """The whole kept corpus, seeds and findings, without the fuzzer."""
    done = run("--replay", found=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = sum(1 for path in (FUZZ / "corpus").rglob("*") if path.is_file())
    assert done.stdout == f"{kept} inputs, nothing found\n"


@pytest.mark.parametrize("target", TARGETS)
def test_fuzzing_finds_nothing(tmp_path: Path, target: str, atheris: None) -> None:
    done = run(target, f"-max_total_time={SECONDS}", found=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert not list(tmp_path.glob("*-crash-*"))
    assert "stat::number_of_executed_units: 0\n" not in done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_the_kept_corpus_is_small(target: str) -> None:
    files = list((FUZZ / "corpus" / target).iterdir())
    assert 1 <= len(files) <= CORPUS_FILES_MAX
    assert sum(path.stat().st_size for path in files) <= 512 * 1024
