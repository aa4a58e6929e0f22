"""The programs that make networks (``ip``, ``nft``, ``tc``, ``nsenter``): found, run, and believed or not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from driftseed.core.errors import LabFailed

PACKAGES: Final[Mapping[str, str]] = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "mount": "mount",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""What is needed, and the Debian package that brings it."""
TIMEOUT_S: Final = 20.0
"""Seconds for one of these programs; they take milliseconds."""
_SEARCH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def find(name: str) -> str | None:
    """Path of a program, also where only root looks for it."""
    return shutil.which(name, path=_SEARCH)


def missing() -> dict[str, str]:
    """Programs that are not here, with their packages."""
    return {name: package for name, package in PACKAGES.items() if find(name) is None}


def run(argv: Sequence[str], *, stdin: str = "") -> str:
    """Run a program to its end; what it printed.

    Raises:
        LabFailed: it is not there, failed, or did not end in ``TIMEOUT_S``.
    """
    try:
        done = subprocess.run(  # noqa: S603 - an argument list of the lab's own making, and no shell
            [find(argv[0]) or argv[0], *argv[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabFailed(f"{argv[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise LabFailed(f"{' '.join(argv)} failed: {said[:2000]}", hint=stdin[:2000])
    return done.stdout
