"""What the tests of the laboratory share."""

from __future__ import annotations

import pytest

from driftseed.core.errors import LabUnavailable
from driftseed.lab.sandbox import find_sandbox


def require_lab() -> None:
    """Skip where no laboratory can be made, saying why; in CI that is a failure (conftest.py)."""
    try:
        find_sandbox()
    except LabUnavailable as error:
        pytest.skip(f"the laboratory cannot run here: {error.message}; {error.hint}")
