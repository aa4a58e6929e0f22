"""Which of two versions is the newer one, for versions of any common scheme.

Versions are compared run by run: runs of digits as numbers, runs of letters as text without case, dots and
underscores only separate. What follows decides, from the oldest to the newest::

    1.0~rc1  <  1.0-rc1 = 1.0-rc.1 = 1.0rc1  <  1.0 = v1.0 = 1.0+build7  <  1.0-1  <  1.0a  <  1.0.1

- ``~`` sorts before everything, the end included (Debian policy 5.6.12);
- ``-`` and a letter begin a pre-release, whose numbers sort before its words (Semantic Versioning 2.0.0, 11);
- ``-`` and a digit begin a revision, which is newer (Debian's ``1.0-1``, git describe's ``1.0-14-gabc``).
  Here Semantic Versioning says otherwise; such versions are rarer than these;
- what follows ``+`` does not count (Semantic Versioning 2.0.0, 10).

It is used for one thing: a downgrade happens only where the deployment says so.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_RUN = re.compile(r"~|-?[a-z]+|-?[0-9]+", re.ASCII)
_LEADING_V = re.compile(r"v(?=[0-9])")
_PRE_RELEASE_WORDS: Final = frozenset({"alpha", "beta", "dev", "pre", "preview", "rc", "snapshot"})


class _Run(NamedTuple):
    rank: int
    size: int
    """Digits of a number without leading zeros: with the text this compares numbers of any size."""
    text: str


_TILDE: Final = _Run(0, 0, "")
_PRE_RELEASE: Final = _Run(1, 0, "")
_END: Final = _Run(2, 0, "")
_REVISION: Final = _Run(3, 0, "")
_LOW: Final = 4
_HIGH: Final = 5


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Key by which versions sort from old to new. Any text has one; equal keys mean equally new."""
    text = _LEADING_V.sub("", version.lower().partition("+")[0].strip(), count=1)
    runs: list[_Run] = []
    before_release = False
    for found in _RUN.finditer(text):
        run = found.group()
        dashed, body = run.startswith("-"), run.removeprefix("-")
        if body == "~":
            runs.append(_TILDE)
            before_release = True
        elif body[0].isdigit():
            if dashed:
                runs.append(_REVISION)
            digits = body.lstrip("0")
            runs.append(_Run(_LOW if before_release else _HIGH, len(digits), digits))
        else:
            if not before_release and (dashed or body in _PRE_RELEASE_WORDS):
                runs.append(_PRE_RELEASE)
                before_release = True
            runs.append(_Run(_HIGH if before_release else _LOW, 0, body))
    return (*runs, _END)


def compare_versions(left: str, right: str) -> int:
    """Compare two versions.

    Returns:
        -1 when ``left`` is older than ``right``, 1 when it is newer, 0 when neither is.
    """
    left_key, right_key = version_key(left), version_key(right)
    return (left_key > right_key) - (left_key < right_key)
