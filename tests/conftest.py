"""What all tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

# A machine with two busy cores says nothing about how long an example takes.
hypothesis.settings.register_profile("driftseed", deadline=None, print_blob=True)
hypothesis.settings.load_profile("driftseed")

NOTHING_SKIPPED = "CI skips nothing that needs root or namespaces; this was skipped: "


def _in_ci() -> bool:
    return os.environ.get("CI", "") not in {"", "0", "false"}


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, turn the skip of a test marked ``root`` into a failure: an untested claim is not a claim."""
    report = yield
    expected = hasattr(report, "wasxfail")
    if _in_ci() and report.skipped and not expected and item.get_closest_marker("root"):
        report.outcome = "failed"
        report.longrepr = NOTHING_SKIPPED + _reason(report.longrepr)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI, turn the skip of a whole module into a failure: nobody can see which tests it holds."""
    report = yield
    if _in_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = NOTHING_SKIPPED + _reason(report.longrepr)
    return report


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty directory with a short name: a Unix socket's path has 107 bytes at most (unix(7))."""
    path = Path(tempfile.mkdtemp(prefix="ds-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
