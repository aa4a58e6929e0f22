"""Where the laboratory is: in namespaces of its own, from which nothing gets out and nothing is left over.

The laboratory is a child process in new network, mount and PID namespaces. It ends with its parent, however
that ends (PR_SET_PDEATHSIG), and when it ends the kernel kills every process and takes away every interface
and rule in it. So there is nothing to clean up after it, and no name can clash with any on the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from driftseed.core.errors import LabFailed, LabUnavailable
from driftseed.lab import tools

_PRIVATE: Final = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_TRY: Final = """
set -e
mount -t tmpfs tmpfs /run
ip netns add try
ip -n try link add wan type veth peer name lan
nsenter --net=/run/netns/try nft add table ip nat
"""
"""What the laboratory will have to do, once each."""
TRY_S: Final = 20.0
LOAD_S: Final = 5.0
"""Seconds that the laboratory has for its end after it was asked to."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A way into namespaces of our own that this machine allows.

    Args:
        user: with a user namespace, as this user is not root, or a root without rights.
    """

    user: bool

    def command(self, argv: Sequence[str]) -> list[str]:
        """What to execute so that ``argv`` runs in a new laboratory and ends with its parent."""
        names = ("--user", "--map-root-user", *_PRIVATE) if self.user else _PRIVATE
        found = {each: tools.find(each) or each for each in ("setpriv", "unshare")}
        return [found["setpriv"], "--pdeathsig", "KILL", found["unshare"], *names, "--", *argv]


def find_sandbox() -> Sandbox:
    """How the laboratory can run here.

    Raises:
        LabUnavailable: it cannot; the message says why, for each way that was tried.
    """
    if lacking := tools.missing():
        packages = " ".join(sorted(set(lacking.values())))
        raise LabUnavailable(
            f"the laboratory needs {', '.join(sorted(lacking))}", hint=f"Debian: apt install {packages}"
        )
    failures = []
    for user in (False, True) if os.geteuid() == 0 else (True,):
        sandbox = Sandbox(user)
        try:
            tried = subprocess.run(  # noqa: S603 - an argument list of our own
                sandbox.command(["sh", "-c", _TRY]),
                capture_output=True,
                text=True,
                timeout=TRY_S,
                check=False,
                env={**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            failures.append(str(error))
            continue
        if tried.returncode == 0:
            return sandbox
        failures.append(f"{'in a user namespace' if user else 'as root'}: {tried.stderr.strip()[:300]}")
    raise LabUnavailable(
        f"this machine lets us make no networks ({'; '.join(failures)})",
        hint="run it as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1",
    )


async def run(experiment: str, arguments: Any, *, timeout_s: float) -> Any:
    """Run an experiment in a new laboratory; what it found, as JSON values.

    Args:
        experiment: one of ``lab.inside.EXPERIMENTS``.
        arguments: JSON values for it.
        timeout_s: seconds after which it is ended, whatever it does.

    Raises:
        LabUnavailable: no laboratory can be made here.
        LabFailed: it found something that is not as it has to be, or did not end in time.
    """
    sandbox = await asyncio.to_thread(find_sandbox)
    read_end, write_end = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *sandbox.command([sys.executable, "-m", "driftseed.lab.inside", experiment, str(write_end)]),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(write_end,),
        )
    finally:
        os.close(write_end)
    with os.fdopen(read_end, "rb") as results:
        try:
            async with asyncio.timeout(timeout_s):
                await process.communicate(json.dumps(arguments).encode())
        except TimeoutError:
            raise LabFailed(f"the experiment {experiment} did not end in {timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                # SIGKILL, as unshare keeps all others to itself; the kernel does the rest.
                process.kill()
                await process.wait()
        answer = await asyncio.to_thread(results.read)
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError:
        raise LabFailed(f"the experiment {experiment} ended without a result") from None
    if "failed" in found:
        raise LabFailed(str(found["failed"]), hint=str(found.get("hint", "")))
    return found["result"]


def prepare() -> None:
    """Inside: make a place for names of namespaces that is ours alone, and bring loopback up."""
    tools.run(["mount", "-t", "tmpfs", "tmpfs", "/run"])
    Path("/run/netns").mkdir()
    tools.run(["ip", "link", "set", "lo", "up"])
