"""Ask a release's own health check whether the device is well with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from driftseed.core.errors import HealthCheckFailed
from driftseed.core.model import HealthCheck
from driftseed.install import process

_DETAIL_CHARS: Final = 2000


async def run_health_check(
    health: HealthCheck, *, directory: Path, environment: Mapping[str, str], lock: Path
) -> None:
    """Run the check; returning means that the device is well.

    Args:
        health: the command, of which a relative program with a slash is looked up in ``directory``.
        directory: where it runs: the release's installation.
        environment: what it finds in its environment beside PATH and LANG.
        lock: the runner's, so that nothing of an earlier call is still at work.

    Raises:
        HealthCheckFailed: it returned anything but 0, took too long, or cannot be started; the message ends
            with the end of what it printed.
    """
    named = " ".join(health.command)
    try:
        outcome = await process.run(
            health.command,
            directory=directory,
            environment=process.scrubbed_environment(environment),
            timeout_s=health.timeout_s,
            lock=lock,
        )
    except OSError as error:
        raise HealthCheckFailed(f"the health check cannot be started: {named}: {error}") from error
    if outcome.status == 0:
        return
    if outcome.status is None:
        how = f"did not end in {health.timeout_s:g} s and was killed"
    elif outcome.status < 0:
        how = f"was killed by signal {-outcome.status}"
    else:
        how = f"returned {outcome.status}"
    said = outcome.output[-_DETAIL_CHARS:]
    raise HealthCheckFailed(f"the health check {how} ({named})" + (f": {said}" if said else ""))


def installation(install_root: Path, release: str, meta: Mapping[str, object]) -> Path:
    """Where a release's files are, as the module ``directory`` lays them out: the best place for its checks.

    Returns:
        ``current`` in the release's directory where that exists, or the directory, or the install root.
    """
    named = meta.get("path")
    base = install_root / (named if isinstance(named, str) else release)
    for place in (base / "current", base):
        if place.is_dir():
            return place
    return install_root
